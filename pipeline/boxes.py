"""Boxes: (n, 4) float arrays of x1, y1, x2, y2 in absolute pixels, x2 and y2 exclusive.

Other conventions are converted here and nowhere else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Boxes = NDArray[np.floating]


def as_boxes(boxes: ArrayLike) -> Boxes:
    """Any (n, 4) sequence, an empty one included, as a float64 array of shape (n, 4)."""
    return np.asarray(boxes, np.float64).reshape(-1, 4)


def from_xywh(boxes: ArrayLike) -> Boxes:
    """COCO x, y, width, height -> xyxy."""
    b = as_boxes(boxes)
    return np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1)


def to_xywh(boxes: ArrayLike) -> Boxes:
    """xyxy -> COCO x, y, width, height."""
    b = as_boxes(boxes)
    return np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1)


def from_cxcywhn(boxes: ArrayLike, width: float, height: float) -> Boxes:
    """YOLO and Grounding DINO normalised centre x, y, width, height -> xyxy pixels."""
    b = as_boxes(boxes) * np.array([width, height, width, height])
    half = b[:, 2:] / 2
    return np.concatenate([b[:, :2] - half, b[:, :2] + half], axis=1)


def to_cxcywhn(boxes: ArrayLike, width: float, height: float) -> Boxes:
    """xyxy pixels -> YOLO normalised centre x, y, width, height."""
    b = as_boxes(boxes)
    centre, size = (b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]
    return np.concatenate([centre, size], axis=1) / np.array([width, height, width, height])


def from_voc(boxes: ArrayLike) -> Boxes:
    """Pascal VOC's 1-based inclusive xmin, ymin, xmax, ymax -> xyxy with exclusive ends."""
    b = as_boxes(boxes).copy()
    b[:, :2] -= 1
    return b


def to_voc(boxes: ArrayLike) -> Boxes:
    """xyxy -> Pascal VOC's 1-based inclusive corners."""
    b = as_boxes(boxes).copy()
    b[:, :2] += 1
    return b


def area(boxes: ArrayLike) -> NDArray[np.float64]:
    """(n,) areas in square pixels; an inverted box has area 0."""
    b = as_boxes(boxes)
    return np.clip(b[:, 2] - b[:, 0], 0, None) * np.clip(b[:, 3] - b[:, 1], 0, None)


def clip(boxes: ArrayLike, width: float, height: float) -> Boxes:
    """Boxes cut to the image."""
    return np.clip(as_boxes(boxes), 0, np.array([width, height, width, height], np.float64))


def intersection(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """(n, m) intersection areas of `a` (n, 4) and `b` (m, 4)."""
    a, b = as_boxes(a), as_boxes(b)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    side = np.clip(high - low, 0, None)
    return side[..., 0] * side[..., 1]


def iou(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """(n, m) intersection over union; 0 where both boxes are empty."""
    common = intersection(a, b)
    union = area(a)[:, None] + area(b)[None, :] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def coverage(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """(n, m) share of each box of `a` that lies inside each box of `b` (COCO's crowd IoU)."""
    common = intersection(a, b)
    whole = np.broadcast_to(area(a)[:, None], common.shape)
    return np.divide(common, whole, out=np.zeros_like(common), where=whole > 0)


def nms(boxes: ArrayLike, scores: ArrayLike, threshold: float) -> NDArray[np.int64]:
    """Indices kept by greedy non-maximum suppression, best score first.

    Ties are broken by position, so the result does not depend on the platform's sort.
    """
    b = as_boxes(boxes)
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    kept = []
    while order.size:
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[iou(b[best], b[order])[0] <= threshold]
    return np.asarray(kept, np.int64)


def in_window(boxes: ArrayLike, window: tuple[int, int, int, int]) -> tuple[Boxes, NDArray[np.float64]]:
    """Boxes of a photo as seen in a tile.

    Args:
        boxes: (n, 4) xyxy in the photo.
        window: the tile's (x, y, width, height) in the photo.

    Returns:
        (n, 4) boxes cut to the tile and in its coordinates, and (n,) visible shares in [0, 1].
    """
    b = as_boxes(boxes)
    x, y, width, height = window
    inside = clip(b - np.array([x, y, x, y], np.float64), width, height)
    whole = area(b)
    share = np.divide(area(inside), whole, out=np.zeros_like(whole), where=whole > 0)
    return inside, share
