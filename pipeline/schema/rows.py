"""Rows of annotations, splits and evaluation: made, and read."""

# No `from __future__ import annotations` here: the function of that name would redefine it.
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.schema.form import CORNERS
from pipeline.schema.tables import table


def annotations(
    name: str,
    *,
    image_ids: Sequence[str],
    batch: str | Sequence[str],
    producer: str | Sequence[str],
    classes: Sequence[str],
    boxes: Any,
    scores: Any = None,
    **extra: Any,
) -> pa.Table:
    """A table of annotations, ids and flags filled in.

    Args:
        name: detections, labels, ground_truth, predictions, tags, …
        boxes: (n, 4) xyxy pixels, or None for image-level labels.
        scores: (n,) in [0, 1]; 1 when left out.
        extra: further columns of that table, by name.
    """
    from pipeline.ids import annotation_ids

    n = len(image_ids)
    corners = None if boxes is None else np.asarray(boxes, np.float32).reshape(n, 4)
    columns: dict[str, Any] = {
        "annotation_id": annotation_ids(image_ids, producer, classes, corners),
        "image_id": list(image_ids),
        "batch": [batch] * n if isinstance(batch, str) else list(batch),
        "producer": [producer] * n if isinstance(producer, str) else list(producer),
        "class_name": list(classes),
        "score": np.ones(n, np.float32) if scores is None else np.asarray(scores, np.float32),
        "truncated": np.zeros(n, bool),
        "ignore": np.zeros(n, bool),
        "is_crowd": np.zeros(n, bool),
    }
    if corners is not None:
        columns |= {key: corners[:, i] for i, key in enumerate(CORNERS)}
    typed = {c.name: c.type for c in table(name).columns}
    columns |= extra
    return table(name).from_columns(
        {k: pa.array(v, typed[k]) if not isinstance(v, pa.ChunkedArray) else v for k, v in columns.items()}
    )


def best_classes(rows: pa.Table) -> pa.Table:
    """Annotation rows; of the ranked classes of an image only the best, and of tags the probability as score."""
    if "rank" not in rows.column_names:
        return rows
    best = rows.filter(pc.equal(pc.fill_null(rows["rank"], 1), 1))
    if "probability" not in rows.column_names:
        return best
    return best.set_column(best.column_names.index("score"), "score", best["probability"])


def with_masks(rows: pa.Table, masks: pa.Table) -> pa.Table:
    """The annotation rows that `masks` has a mask for, with it; of several segmenters there the last named."""
    last = masks.filter(pc.equal(masks["producer"], pc.max(masks["producer"])))
    at = pc.index_in(rows["annotation_id"], last["annotation_id"].combine_chunks())
    found = rows.filter(pc.is_valid(at))
    return found.set_column(found.column_names.index("mask"), "mask", last["mask"].take(at.drop_null()))


def box_array(rows: pa.Table) -> Any:
    """(n, 4) float64 xyxy of annotation rows; NaN where a label has no box."""
    columns = [rows.column(k).to_numpy(zero_copy_only=False) for k in CORNERS]
    return np.stack(columns, axis=1).astype(np.float64) if columns else np.zeros((0, 4))


def where_in(rows: pa.Table, column: str, values: Iterable[str]) -> pa.Table:
    """The rows whose `column` is one of `values`."""
    return rows.filter(pc.is_in(rows.column(column), pa.array(list(values), pa.string())))


def codes(values: pa.ChunkedArray, known: Sequence[str] | pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """(n,) place of each value in `known`, the first of equal ones; -1 for those that are not in it."""
    whole = known.combine_chunks() if isinstance(known, pa.ChunkedArray) else known
    among = whole if isinstance(whole, pa.Array) else pa.array(list(whole), pa.string())
    return np.asarray(pc.fill_null(pc.index_in(values, among), -1).to_numpy(), np.int64)


def held_out(splits: pa.Table, split: str) -> list[str]:
    """Sorted ids of the images of `split` that people labelled."""
    rows = splits.filter(pc.and_(pc.equal(splits.column("split"), split), splits.column("gold")))
    return sorted(rows.column("image_id").unique().to_pylist())


def thresholds_of(evaluation: pa.Table, model: str) -> dict[str, float | None]:
    """A detector's operating threshold of each class, from rows of `evaluation`."""
    mine = pc.and_(pc.equal(evaluation.column("model"), model), pc.equal(evaluation.column("metric"), "threshold"))
    rows = evaluation.filter(mine)
    return dict(zip(rows.column("class_name").to_pylist(), rows.column("value").to_pylist(), strict=True))
