"""Collection: a batch's files become rows of `images`, people's labels rows of `ground_truth`.

Files are decoded and only their sizes are kept; those that cannot be used are listed with the reason
and never stop a batch, not even one that kills the process which decodes it.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable
from dataclasses import fields, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import boxes, masks, schema
from pipeline.ahead import ahead, cores
from pipeline.compute import Compute, map_batches
from pipeline.config import SourceConfig, TileConfig
from pipeline.formats import Folder, Labels, Record, read_labels
from pipeline.ids import image_id, tile_id
from pipeline.images import Photo, UnusableImage, decode
from pipeline.ontology import Ontology
from pipeline.sources import Source, SourceFile
from pipeline.store import Staging

Window = tuple[int, int, int, int]

_log = logging.getLogger(__name__)
_FILES_PER_SHARD = 256
_AT_ONCE = 8  # files that are fetched at a time, or done by a thread in one go
_BYTES_PER_PIXEL = 8  # no format needs more; a larger file is not read into memory
_SHORTEST = 0.5  # pixels; a box with a shorter side is empty


def tile_windows(width: int, height: int, size: int, overlap: int) -> list[Window]:
    """Windows (x, y, width, height) that together cover a photo, row by row.

    Neighbours share `overlap` pixels; the last of a row or column is aligned to the photo's edge and
    shares more, so that all are `size` pixels wide and high where the photo is. Size 0: the photo.
    """
    if not size:
        return [(0, 0, width, height)]
    columns, rows = _starts(width, size, overlap), _starts(height, size, overlap)
    return [(x, y, min(size, width), min(size, height)) for y in rows for x in columns]


def _starts(length: int, size: int, overlap: int) -> list[int]:
    if length <= size:
        return [0]
    return [*range(0, length - size, size - overlap), length - size]


# -- images ---------------------------------------------------------------------------------------

# Files of a source, as workers get them, and what becomes of each: rows of `images`, or one of `rejected_files`.
_FILES = pa.schema([(f.name, pa.int64() if f.name == "bytes" else pa.string()) for f in fields(SourceFile)])
_SEEN = pa.schema(
    {field.name: field.type for name in ("rejected_files", "images") for field in schema.table(name).schema}
)


class CollectWorker:
    """Rows of files to what becomes of them: each is read, hashed and decoded where this runs.

    Args:
        source: that has the files. batch: that they are of.

    Raises:
        ComputeError: the source's folder is not on this machine, now or when a file cannot be read.
    """

    def __init__(self, source: Source, batch: str, config: SourceConfig) -> None:
        self._source, self._batch, self._config = source, batch, config
        self._decoding = threading.Semaphore(cores())  # a photo takes much more memory than its file

    def __call__(self, rows: pa.Table) -> pa.Table:
        files = [SourceFile(**row) for row in rows.to_pylist()]
        if files:
            self._source.require_here()
        # S3 is waited for, file by file; on a disk, handing over a small photo alone would cost a tenth of its time.
        size, threads = (1, _AT_ONCE) if self._source.uri.startswith("s3://") else (_AT_ONCE, cores())
        parts = [files[start : start + size] for start in range(0, len(files), size)]
        seen = ahead(lambda part: [row for file in part for row in self._seen(file)], parts, threads=threads)
        return pa.Table.from_pylist(list(chain.from_iterable(seen)), schema=_SEEN)

    def _seen(self, file: SourceFile) -> list[dict[str, Any]]:
        try:
            if file.bytes > self._config.max_pixels * _BYTES_PER_PIXEL:
                raise UnusableImage(
                    "too_large", f"{file.bytes:,} bytes", "raise source.max_pixels in project.yaml if the photo is real"
                )
            data = self._source.read(file)
            with self._decoding:
                photo = decode(data, self._config.max_pixels)
        except UnusableImage as error:
            return [_rejected(file, self._batch, error)]
        return list(_image_rows(file, self._batch, image_id(data), photo, self._config))


def collect_images(
    source: Source, batch: str, config: SourceConfig, compute: Compute, staging: Staging
) -> tuple[pa.Table, pa.Table]:
    """The tables `images` and `rejected_files` of one batch. Annotation files are in neither.

    Raises:
        DataError: the batch is not there.
        ComputeError: the source's folder is not on a machine that should read it.
        StoreUnavailable: S3 does not answer.
    """
    files = [f for f in source.files(batch) if not f.is_sidecar]
    killers: list[pa.Table] = []
    how = replace(compute, batch_size=_FILES_PER_SHARD, batches_per_shard=1, failed=killers.append)
    listed = pa.table({name: [getattr(f, name) for f in files] for name in _FILES.names}, schema=_FILES)
    options = {"source": source, "batch": batch, "config": config}
    seen = map_batches(CollectWorker, options, listed, how, staging)
    killed = {row["uri"]: row["reason"] for table in killers for row in table.to_pylist()}
    fatal = [_rejected(f, batch, _fatal(killed[f.uri])) for f in files if f.uri in killed]
    return _told_apart(pa.concat_tables([seen, pa.Table.from_pylist(fatal, schema=_SEEN)]), listed)


def _told_apart(seen: pa.Table, files: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Rows of `images` and of `rejected_files`, in the order of the files; of equal files the first one is used."""
    seen = seen.append_column("place", pc.index_in(seen["uri"], files["uri"].combine_chunks()))
    whole = pc.is_valid(seen["parent_id"])
    used, rejected = seen.filter(whole), [seen.filter(pc.invert(whole))]
    place = used["place"].to_numpy()
    contents = used["parent_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, first, which = np.unique(contents, return_index=True, return_inverse=True)
    first_place = place[first][which]
    again = place != first_place
    corner = again & (used["tile_x"].to_numpy() == 0) & (used["tile_y"].to_numpy() == 0)  # one row a file
    names = files["name"].take(pa.array(first_place[corner])).to_pylist()
    rejected.append(_repeated(used.filter(pa.array(corner)), names))
    return (
        schema.table("images").conform(used.filter(pa.array(~again))),
        schema.table("rejected_files").conform(pa.concat_tables(rejected).sort_by("place")),
    )


def _repeated(rows: pa.Table, names: list[str]) -> pa.Table:
    """Rows of files whose bytes are those of the files of these `names`."""
    said = {"reason": ["duplicate_file"] * len(names)}
    said["detail"] = [f"the same bytes as {name}; nothing need be done" for name in names]
    for column, values in said.items():
        rows = rows.set_column(rows.schema.get_field_index(column), column, pa.array(values, pa.string()))
    return rows


def _fatal(reason: str) -> UnusableImage:
    return UnusableImage("fatal", reason, "remove it, or convert it with another program")


def _rejected(file: SourceFile, batch: str, error: UnusableImage) -> dict[str, Any]:
    return {
        "batch": batch,
        "uri": file.uri,
        "file_name": file.name,
        "bytes": file.bytes,
        "reason": error.reason,
        "detail": f"{error.what}; {error.remedy}",
    }


def _image_rows(
    file: SourceFile, batch: str, parent: str, photo: Photo, config: SourceConfig
) -> Iterable[dict[str, Any]]:
    path = f"{batch}/{file.name}"
    height, width = photo.pixels.shape[:2]
    shared = {
        "batch": batch,
        "uri": file.uri,
        "file_name": file.name,
        "parent_id": parent,
        "photo_width": width,
        "photo_height": height,
        "format": photo.format,
        "mode": photo.mode,
        "orientation": photo.orientation,
        "captured_at": photo.captured_at,
        "bytes": file.bytes,
        "location": _location(path, config.location),
        "attributes": _attributes(path, config.attributes),
    }
    for window in tile_windows(width, height, config.tile.size, config.tile.overlap):
        whole = window == (0, 0, width, height)
        place = dict(zip(("tile_x", "tile_y", "width", "height"), window, strict=True))
        yield {"image_id": parent if whole else tile_id(parent, window), **shared, **place}


def _location(path: str, pattern: str) -> str:
    found = re.search(pattern, path) if pattern else None
    return found.group(0) if found else path


def _attributes(path: str, pattern: str) -> list[tuple[str, str]]:
    found = re.search(pattern, path) if pattern else None
    return [(key, value) for key, value in found.groupdict().items() if value is not None] if found else []


# -- labels ---------------------------------------------------------------------------------------


def collect_ground_truth(
    source: Source, batch: str, images: pa.Table, ontology: Ontology, config: SourceConfig
) -> tuple[pa.Table, pa.Table]:
    """The tables `ground_truth` and `annotated_images` of one batch.

    Boxes are cut to the photo, then to each tile that they reach into. A piece that the tile's edge
    cuts is `truncated`; with less than `tile.min_visible` of the box left it is also `ignore`.

    Args:
        images: the batch's rows of `images`.

    Raises:
        DataError: annotations are malformed or fit neither images nor classes; see `read_labels`.
    """
    photos: dict[str, list[dict[str, Any]]] = {}
    wanted = ["image_id", "file_name", "tile_x", "tile_y", "width", "height", "photo_width", "photo_height"]
    for row in images.select(wanted).to_pylist():
        photos.setdefault(row["file_name"], []).append(row)
    if not photos:
        return schema.table("ground_truth").empty(), schema.table("annotated_images").empty()
    sizes = {name: (rows[0]["photo_width"], rows[0]["photo_height"]) for name, rows in photos.items()}
    folder = Folder(source.files(batch), source.read, sizes, ontology, config.ignored_classes)
    labels = read_labels(folder, config.annotations)
    marked = [
        {"image_id": tile["image_id"], "batch": batch, "source": labels.annotated[name]}
        for name, tiles in photos.items()
        if name in labels.annotated
        for tile in tiles
    ]
    found = _ground_truth(labels, photos, batch, config.tile)
    _report(labels, batch)
    return found, schema.table("annotated_images").from_rows(marked)


def _ground_truth(labels: Labels, photos: dict[str, list[dict[str, Any]]], batch: str, config: TileConfig) -> pa.Table:
    by_file: dict[str, list[Record]] = {}
    for record in labels.records:
        by_file.setdefault(record.file_name, []).append(record)
    whole: list[tuple[str, str]] = []
    pieces: list[dict[str, Any]] = []
    empty = 0
    for name, tiles in photos.items():
        records = by_file.get(name, [])
        whole += [(tile["image_id"], r.class_name) for r in records if r.box is None for tile in tiles]
        drawn = [(r, r.box) for r in records if r.box is not None]
        corners = boxes.clip([box for _, box in drawn], tiles[0]["photo_width"], tiles[0]["photo_height"])
        real = _has_extent(corners)
        empty += int((~real).sum())
        kept = [r for (r, _), keep in zip(drawn, real, strict=True) if keep]
        pieces += _pieces(kept, corners[real], tiles, config.min_visible)
    if empty:
        _log.warning("%s: left out %d empty boxes, or boxes outside their image", batch, empty)
    return pa.concat_tables([_image_level(whole, batch), _boxed(pieces, batch)])


def _has_extent(corners: boxes.Boxes) -> np.ndarray:
    return ((corners[:, 2] - corners[:, 0]) >= _SHORTEST) & ((corners[:, 3] - corners[:, 1]) >= _SHORTEST)


def _pieces(
    records: list[Record], corners: boxes.Boxes, tiles: list[dict[str, Any]], min_visible: float
) -> list[dict[str, Any]]:
    """What each tile of a photo shows of the photo's boxes."""
    found = []
    size = (tiles[0]["photo_height"], tiles[0]["photo_width"])
    decoded: dict[int, np.ndarray] = {}
    for tile in tiles:
        window = (tile["tile_x"], tile["tile_y"], tile["width"], tile["height"])
        inside, share = boxes.in_window(corners, window)
        for i in np.flatnonzero(_has_extent(inside)).tolist():
            record = records[i]
            mask = record.mask
            if mask is not None and len(tiles) > 1:
                if i not in decoded:
                    decoded[i] = masks.decode(mask, *size)
                x, y, width, height = window
                part = decoded[i][y : y + height, x : x + width]
                if not part.any():
                    continue  # only a corner of its box reaches in, and nothing of itself
                mask = masks.encode(part)
            found.append(
                {
                    "image_id": tile["image_id"],
                    "class_name": record.class_name,
                    "box": inside[i],
                    "mask": mask,
                    "truncated": record.truncated or share[i] < 1,
                    "ignore": record.ignore or share[i] < min_visible,
                    "is_crowd": record.is_crowd,
                }
            )
    return found


def _image_level(rows: list[tuple[str, str]], batch: str) -> pa.Table:
    return schema.annotations(
        "ground_truth",
        image_ids=[image for image, _ in rows],
        batch=batch,
        producer="human",
        classes=[name for _, name in rows],
        boxes=None,
    )


def _boxed(rows: list[dict[str, Any]], batch: str) -> pa.Table:
    return schema.annotations(
        "ground_truth",
        image_ids=[row["image_id"] for row in rows],
        batch=batch,
        producer="human",
        classes=[row["class_name"] for row in rows],
        boxes=boxes.as_boxes([row["box"] for row in rows]),
        **{key: [row[key] for row in rows] for key in ("mask", "truncated", "ignore", "is_crowd")},
    )


def _report(labels: Labels, batch: str) -> None:
    for name, count in sorted(labels.unasked.items()):
        _log.warning("%s: left out %d annotations of %r, which the project does not ask for", batch, count, name)
    for name, count in sorted(labels.unmatched.items()):
        _log.warning("%s: %s names %d images that are missing or cannot be used", batch, name, count)
