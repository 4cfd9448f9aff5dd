"""Photos like a text or like another photo: nearest stored vectors, by any encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import plots, schema
from pipeline.config import ProjectConfig
from pipeline.errors import DataError, StoreError
from pipeline.files import replaced
from pipeline.images import Reader, decode
from pipeline.models.profiles import build_encoder
from pipeline.models.roles import Encoder
from pipeline.store import Store
from pipeline.vectors import Vectors

LAYOUT = pa.schema(
    [
        pa.field("rank", pa.int32()),
        pa.field("similarity", pa.float32()),
        pa.field("image_id", pa.string()),
        pa.field("batch", pa.string()),
        pa.field("file_name", pa.string()),
        pa.field("uri", pa.string()),
    ]
)


def by_text(config: ProjectConfig, store: Store, text: str, limit: int, batch: str | None = None) -> pa.Table:
    """The `limit` images nearest to a text by cosine, best first: rows of `LAYOUT`.

    The text is taken as it stands, as CLIP's retrieval is measured; put it into a sentence if you like.

    Raises:
        DataError: the text is blank. StoreError: nothing is embedded yet. WeightsError: no weights.
    """
    if not text.strip():
        raise DataError("there is nothing to search for", 'say what: cvp search PROJECT "a red car"')
    encoder = build_encoder(config)
    return _nearest(store, encoder, encoder.encode_texts([text])[0], limit, batch)


def by_image(config: ProjectConfig, store: Store, path: Path, limit: int, batch: str | None = None) -> pa.Table:
    """The `limit` images nearest to a photo, itself perhaps among them, by cosine: rows of `LAYOUT`, best first.

    Raises:
        DataError: it is no image. StoreError: nothing is embedded yet. WeightsError: no weights.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}", "name a photo") from error
    photo = decode(data, config.source.max_pixels)
    encoder = build_encoder(config)
    return _nearest(store, encoder, encoder.encode_images([photo.pixels])[0], limit, batch)


def _nearest(store: Store, encoder: Encoder, vector: NDArray[np.floating], limit: int, batch: str | None) -> pa.Table:
    found = Vectors(store.uri).search(vector.astype(np.float32), encoder.producer, limit, batch)
    place = ["image_id", "batch"]
    images = store.read("images", columns=[*place, "file_name", "uri"])
    named = found.join(schema.where_in(images, "image_id", found.column("image_id").to_pylist()), place)
    named = named.sort_by([("similarity", "descending"), ("image_id", "ascending"), ("batch", "ascending")])
    ranks = pa.array(np.arange(1, named.num_rows + 1, dtype=np.int32))
    return named.append_column("rank", ranks).select(LAYOUT.names).cast(LAYOUT)


def sheet(config: ProjectConfig, store: Store, found: pa.Table, path: Path) -> None:
    """Write the photos found as one picture, PNG or JPEG by its suffix; files that have gone are left out.

    Raises:
        StoreError: another suffix, or the file cannot be written.
    """
    form = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}.get(path.suffix.lower())
    if form is None:
        raise StoreError(f"{path} is neither .png nor .jpg", "name a picture file")
    images = schema.where_in(store.read("images"), "image_id", found.column("image_id").to_pylist())
    at = {(row["image_id"], row["batch"]): i for i, row in enumerate(images.select(["image_id", "batch"]).to_pylist())}
    hits = found.to_pylist()
    rows = images.take([at[hit["image_id"], hit["batch"]] for hit in hits])
    pixels = Reader(config.source.max_pixels).read_rows(rows)
    words = [f"{hit['rank']}  {hit['similarity']:.3f}  {hit['file_name']}" for hit in hits]
    shown = [(p, w) for p, w in zip(pixels, words, strict=True) if p is not None]
    data = plots.contact_sheet(
        [p for p, _ in shown], captions=[w for _, w in shown], form="JPEG" if form == "JPEG" else "PNG"
    )
    with replaced(path) as made:
        made.write_bytes(data)
