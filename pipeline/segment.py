"""Boxes to masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.compute import AheadWorker
from pipeline.config import ProjectConfig
from pipeline.images import Pixels, Reader, UnusableImage
from pipeline.models.profiles import build_segmenter
from pipeline.models.roles import Segments

_IDS, _BOXES = "annotation_ids", "boxes"


class SegmentWorker(AheadWorker):
    """Rows of `images` with their boxes (see `with_boxes`) to rows of `masks`.

    Images that can no longer be read have no rows.
    """

    def __init__(self, config: ProjectConfig) -> None:
        self._segmenter = build_segmenter(config)
        self._reader = Reader(config.source.max_pixels)

    def read(self, rows: pa.Table) -> Iterator[Pixels | UnusableImage]:
        """Pixels of each image."""
        return self._reader.whole(rows)

    def answer(self, rows: pa.Table, read: Iterable[Pixels | UnusableImage]) -> pa.Table:
        """One mask a box, in the order of the boxes."""
        keys = rows.select(["image_id", "batch", _IDS, _BOXES]).to_pylist()
        seen = [(k, image) for k, image in zip(keys, read, strict=True) if not isinstance(image, UnusableImage)]
        boxes = [np.asarray(key[_BOXES], np.float64).reshape(-1, 4) for key, _ in seen]
        drawn = self._segmenter.segment([image for _, image in seen], boxes)
        return mask_rows([key for key, _ in seen], [key[_IDS] for key, _ in seen], drawn, self._segmenter.producer)


def mask_rows(
    images: Sequence[Mapping[str, Any]], annotations: Sequence[Sequence[str]], drawn: Sequence[Segments], producer: str
) -> pa.Table:
    """Rows of `masks`.

    Args:
        images: `image_id` and `batch` of each. annotations: the ids that its masks belong to.
    """
    owner = np.repeat(np.arange(len(drawn)), [len(d.masks) for d in drawn]).tolist()
    unknown = [np.full(len(d.masks), np.nan, np.float32) if d.stability is None else d.stability for d in drawn]
    return schema.table("masks").from_columns(
        {
            "annotation_id": pa.array([name for names in annotations for name in names], pa.string()),
            "image_id": pa.array([images[i]["image_id"] for i in owner], pa.string()),
            "batch": pa.array([images[i]["batch"] for i in owner], pa.string()),
            "producer": pa.array([producer] * len(owner), pa.string()),
            "mask": pa.array([mask for d in drawn for mask in d.masks], pa.string()),
            "area": pa.array(np.concatenate([np.zeros(0, np.int64), *(d.area for d in drawn)])),
            "score": pa.array(np.concatenate([np.zeros(0, np.float32), *(d.scores for d in drawn)])),
            "stability": pa.array(np.concatenate([np.zeros(0, np.float32), *unknown]), from_pandas=True),
        }
    )


def with_boxes(images: pa.Table, annotations: pa.Table) -> pa.Table:
    """The rows of `images` that have boxes, with two more columns: `annotation_ids` (list of strings)
    and `boxes` (flat list of x1, y1, x2, y2), in the order of `annotations`.
    """
    boxed = annotations.filter(pc.is_valid(annotations.column("x1")))
    rows, columns = _group(boxed, images)
    wanted = images.take(pa.array(rows, pa.int64()))
    for name, values in columns.items():
        wanted = wanted.append_column(name, values)
    return wanted


def drawn_before(masks: pa.Table, wanted: pa.Table) -> pa.Table:
    """Rows of `masks` of those images of which every box has one, in the order of the boxes.

    An image with a new box is drawn once more with all of its boxes, as from scratch.

    Args:
        masks: of the same segmenter. wanted: images `with_boxes`.
    """
    there = set(masks.column("annotation_id").to_pylist())
    boxes = [ids for ids in wanted.column(_IDS).to_pylist() if there.issuperset(ids)]
    order = pa.array([i for ids in boxes for i in ids], pa.string())
    return masks.take(pc.index_in(order, masks.column("annotation_id").combine_chunks()))


def _group(boxed: pa.Table, images: pa.Table) -> tuple[np.ndarray, dict[str, pa.Array]]:
    """Indices of the images that have boxes, and their ids and boxes as list arrays."""
    owner = pc.index_in(_key(boxed), _key(images)).fill_null(-1).to_numpy()
    order = np.argsort(owner, kind="stable")
    order = order[owner[order] >= 0]
    rows, counts = np.unique(owner[order], return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    names = boxed.column("annotation_id").combine_chunks().take(pa.array(order, pa.int64()))
    corners = schema.box_array(boxed)[order].astype(np.float32)
    return rows, {
        _IDS: pa.ListArray.from_arrays(pa.array(offsets), names),
        _BOXES: pa.ListArray.from_arrays(pa.array(offsets * 4), pa.array(corners.ravel())),
    }


def _key(rows: pa.Table) -> pa.Array:
    """An image's key in its table: its id and batch, joined."""
    joined = pc.binary_join_element_wise(rows.column("image_id"), rows.column("batch"), "\x1f")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined
