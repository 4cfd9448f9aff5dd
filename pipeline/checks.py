"""Facts about tables that checks state, as counts of the rows that break them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.schema import box_array

_SLACK = 0.51  # pixels: people's boxes are rounded, and float32 keeps hundredths


def boxes_outside(annotations: pa.Table, images: pa.Table) -> int:
    """How many boxes are empty, inverted, or reach out of their image.

    Args:
        annotations: any table with the annotation columns; rows without a box are passed over.
        images: rows of `images` that cover every annotated image.
    """
    boxes = box_array(annotations)
    boxed = ~np.isnan(boxes).any(axis=1)
    position = {image: i for i, image in enumerate(images.column("image_id").to_pylist())}
    rows = np.array([position.get(i, -1) for i in annotations.column("image_id").to_pylist()], np.int64)
    boxes, rows = boxes[boxed], rows[boxed]
    if not len(rows):
        return 0
    width = images.column("width").to_numpy()[rows]
    height = images.column("height").to_numpy()[rows]
    wrong = (boxes[:, :2] < -_SLACK).any(axis=1) | (boxes[:, 2] > width + _SLACK) | (boxes[:, 3] > height + _SLACK)
    wrong |= (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
    return int((wrong | (rows < 0)).sum())


def scores_out_of_range(annotations: pa.Table) -> int:
    """How many scores are not in [0, 1]."""
    scores = annotations.column("score").to_numpy()
    return int((~((scores >= 0) & (scores <= 1))).sum())


def unknown_classes(annotations: pa.Table, names: list[str]) -> set[str]:
    """Classes that the ontology does not have."""
    return set(annotations.column("class_name").unique().to_pylist()) - set(names)
