"""Images to vectors: one for the whole image, and one for each of its g x g windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.compute import AheadWorker, Compute, in_order, map_shards, without
from pipeline.config import ProjectConfig
from pipeline.images import READ, Pixels, Reader
from pipeline.models.profiles import build_encoder, encoder_producer
from pipeline.store import Staging
from pipeline.vectors import Vectors, vector_schema

NEEDED = ("image_id", "batch", *READ)  # columns of `images`


class EncodeWorker(AheadWorker):
    """Rows of `images` to rows of `vectors.vector_schema`: patch 0, then the windows row by row.

    Images that can no longer be read are left out.
    """

    def __init__(self, config: ProjectConfig) -> None:
        self._encoder = build_encoder(config)
        self._grid = config.curation.patches
        self._reader = Reader(config.source.max_pixels)

    def read(self, rows: pa.Table) -> Iterator[list[Any] | None]:
        """What the model sees of each image and its windows."""
        return self._reader.stream(rows, self._look)

    def answer(self, rows: pa.Table, read: Iterable[list[Any] | None]) -> pa.Table:
        """Unit vectors of a batch of images."""
        names: list[str] = []
        batches: list[str] = []
        patches: list[int] = []

        def prepared() -> Iterator[Any]:
            keys = zip(rows.column("image_id").to_pylist(), rows.column("batch").to_pylist(), strict=True)
            for (image_id, batch), parts in zip(keys, read, strict=True):
                for patch, part in enumerate(parts or []):
                    names.append(image_id)
                    batches.append(batch)
                    patches.append(patch)
                    yield part

        vectors = np.ascontiguousarray(self._encoder.encode_prepared(prepared()))
        columns = {
            "image_id": pa.array(names, pa.string()),
            "batch": pa.array(batches, pa.string()),
            "encoder": pa.array([self._encoder.producer] * len(names), pa.string()),
            "patch": pa.array(patches, pa.int32()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self._encoder.dimensions),
        }
        return pa.table(columns, schema=vector_schema(self._encoder.dimensions, vectors.dtype.name))

    def _look(self, image: Pixels) -> list[Any]:
        """What the model sees of an image and of its windows."""
        return [self._encoder.prepare(part) for part in (image, *windows(image, self._grid))]


def windows(image: Pixels, grid: int) -> Iterator[Pixels]:
    """The grid x grid windows of an image, row by row, each at least a pixel wide; none if grid is 1."""
    if grid == 1:
        return
    height, width = image.shape[:2]
    for row in range(grid):
        for column in range(grid):
            top, left = min(row * height // grid, height - 1), min(column * width // grid, width - 1)
            bottom, right = max(top + 1, (row + 1) * height // grid), max(left + 1, (column + 1) * width // grid)
            yield image[top:bottom, left:right]


def embed(images: pa.Table, config: ProjectConfig, compute: Compute, staging: Staging) -> Iterator[pa.Table]:
    """Vectors (`vectors.vector_schema`) of rows of `images`, in their order, in parts: one is in memory at a time.

    Raises:
        WeightsError: the profile's checkpoints are not there.
    """
    return map_shards(EncodeWorker, {"config": config}, images, compute, staging)


def kept(images: pa.Table, batch: str, vectors: Vectors, config: ProjectConfig, known: pa.Table) -> pa.Table:
    """The rows of those images whose vectors are there and need not be made again.

    Args:
        known: rows of `embeddings` that equal work made for the batch.
    """
    there = vectors.counts(batch, encoder_producer(config)) if known.num_rows else {}
    told = pc.value_counts(known["image_id"]).to_pylist()
    whole = [found["values"] for found in told if there.get(found["values"]) == found["counts"]]
    return images.filter(pc.is_in(images["image_id"], pa.array(whole, pa.string())))


def embed_batch(
    images: pa.Table,
    batch: str,
    vectors: Vectors,
    config: ProjectConfig,
    compute: Compute,
    staging: Staging,
    kept: pa.Table | None = None,
) -> pa.Table:
    """Replace a batch's vectors by those of `images` (columns NEEDED); returns its rows of `embeddings`.

    Args:
        kept: rows of images that keep the vectors they have.

    Raises:
        WeightsError: the profile's checkpoints are not there.
    """
    stored: list[pa.Table] = []
    encoder, old = encoder_producer(config), images.slice(0, 0) if kept is None else kept
    new = without(images, old)

    def noted() -> Iterator[pa.Table]:
        before = vectors.of_batch(batch, encoder, old["image_id"].combine_chunks()) if old.num_rows else ()
        made = embed(new, config, compute, staging) if new.num_rows or not old.num_rows else ()
        for part in chain(before, made):
            stored.append(receipts(part))
            yield part

    vectors.replace_batch(batch, encoder, noted())
    return in_order(pa.concat_tables(stored).sort_by("patch"), images)


def receipts(vectors: pa.Table) -> pa.Table:
    """Rows of the table `embeddings` for rows of `vectors.vector_schema`."""
    dimensions = vectors.schema.field("vector").type.list_size
    kept = vectors.select(["image_id", "batch", "encoder", "patch"])
    sizes = pa.array(np.full(vectors.num_rows, dimensions, np.int32))
    return schema.table("embeddings").conform(kept.append_column("dimensions", sizes))
