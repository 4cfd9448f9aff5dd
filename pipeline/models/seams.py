"""Large images in overlapping windows, and one box again for what several windows saw.

Slicing in the manner of SAHI (Akyon et al., ICIP 2022); unlike there, two halves of an object that a
seam cuts are joined, and not only weighed against each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.boxes import Boxes, area, as_boxes
from pipeline.matching import Ints, pairs

SAME_IOU = 0.5
SAME_COVERAGE = 0.8  # of a cut box, by a whole one
_TOUCHES = 0.01  # of a window's edge, and two pixels: so near its border does a cut object's box end
_LEAST_TOUCH = 2.0


@dataclass(frozen=True)
class Merged:
    """What is left of n boxes.

    Attributes:
        boxes: (m, 4) xyxy, the halves of cut objects joined.
        source: (m,) which of the n each one's scores come from.
    """

    boxes: Boxes
    source: Ints


def windows(width: int, height: int, size: int, overlap: int) -> Ints:
    """(m, 4) x, y, width, height of windows that cover an image: the whole first, then its tiles row by row.

    Args:
        size: a tile's edge, pixels; 0, or an image that fits, gives the whole image only.
        overlap: pixels that neighbours share, at least.
    """
    whole = [(0, 0, width, height)]
    if not size or max(width, height) <= size:
        return np.array(whole, np.int64)
    tiles = [
        (x, y, min(size, width), min(size, height))
        for y in _starts(height, size, overlap)
        for x in _starts(width, size, overlap)
    ]
    return np.array(whole + tiles, np.int64)


def _starts(length: int, size: int, overlap: int) -> list[int]:
    if length <= size:
        return [0]
    count = -(-(length - overlap) // (size - overlap))
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def merge(group: Ints, boxes: Boxes, scores: NDArray[np.floating], owner: Ints, tiles: Ints) -> Merged:
    """One box an object, of boxes that several windows of one image gave.

    Halves of an object that face each other across a seam are joined. Then, those first that end at the
    fewest seams, of whole ones the best and of others the largest, a box gives way to one of other windows
    that is the same, or that covers it where it is cut. Boxes of one window are left to each other: it knows
    best whether they are two.

    Args:
        group: (n,) what may be one object, for example boxes of one prompt.
        boxes: (n, 4) xyxy in the image. scores: (n,). owner: (n,) each one's window.
        tiles: (m, 4) windows, as `windows` gives them.
    """
    boxes, scores = as_boxes(boxes), np.asarray(scores)
    if len(tiles) == 1 or not len(boxes):
        return Merged(boxes, np.arange(len(boxes)))
    boxes, source, cut, owners = _joined(group, boxes, scores, owner, tiles)
    worth = np.where(cut > 0, area(boxes), scores[source])  # of cut ones, more is closer to the whole
    order = np.lexsort((np.arange(len(source)), -area(boxes), -worth, cut))
    kept = _undisturbed(order, *_same(group[source], boxes, cut > 0, owners))
    return Merged(boxes[kept], source[kept])


def _same(group: Ints, boxes: Boxes, cut: NDArray[np.bool_], owners: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Pairs (i, j) of boxes of different windows where i, if it is alive, makes j superfluous."""
    a, b, _ = pairs(group, boxes, group, boxes, SAME_IOU)
    some = np.flatnonzero(cut)
    inside, outside, _ = pairs(group[some], boxes[some], group, boxes, SAME_COVERAGE, covered=np.ones(len(boxes), bool))
    winner, loser = np.concatenate([a, outside]), np.concatenate([b, some[inside]])
    apart = ~(owners[winner] & owners[loser]).any(axis=1)
    return winner[apart], loser[apart]


def _undisturbed(order: Ints, winner: Ints, loser: Ints) -> Ints:
    """Who is left when each box, in `order`, removes those that it makes superfluous."""
    by = np.argsort(winner, kind="stable")
    loser, first = loser[by], np.searchsorted(winner[by], np.arange(len(order) + 1))
    alive = np.ones(len(order), bool)
    for i in order:
        if alive[i]:
            alive[loser[first[i] : first[i + 1]]] = False
            alive[i] = True
    return np.flatnonzero(alive)


def _joined(
    group: Ints, boxes: Boxes, scores: NDArray[np.floating], owner: Ints, tiles: Ints
) -> tuple[Boxes, Ints, Ints, NDArray[np.bool_]]:
    """Boxes with halves joined; whose scores each has; how many of its sides are still cut; (n, m) its windows."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    slack = np.maximum(_LEAST_TOUCH, _TOUCHES * tiles[owner, 2:])
    cut = _cut(boxes, owner, tiles, slack)
    halves = [_facing(axis, group, boxes, scores, owner, tiles, cut, slack) for axis in (0, 1)]
    first, second = (np.concatenate(part) for part in zip(*halves, strict=True))
    graph = coo_array((np.ones(len(first), bool), (first, second)), (len(boxes),) * 2)
    count, part = connected_components(graph, directed=False)
    low, high = np.full((count, 2), np.inf), np.full((count, 2), -np.inf)
    np.minimum.at(low, part, boxes[:, :2])
    np.maximum.at(high, part, boxes[:, 2:])
    union = np.concatenate([low, high], axis=1)
    order = np.lexsort((-scores, part))
    best = order[np.flatnonzero(np.r_[True, np.diff(part[order]) > 0])]
    still = np.ones((count, 4), bool)  # unless a window shows that the object ends there
    np.logical_and.at(still, part, cut | (np.abs(boxes - union[part]) > np.hstack([slack, slack])))
    owners = np.zeros((count, len(tiles)), bool)
    owners[part, owner] = True
    return union, best, still.sum(axis=1), owners


def _cut(boxes: Boxes, owner: Ints, tiles: Ints, slack: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n, 4) whether a box ends at its window's left, top, right and bottom border inside the image."""
    corners = np.concatenate([tiles[:, :2], tiles[:, :2] + tiles[:, 2:]], axis=1)
    inner = corners != [*corners[:, :2].min(axis=0), *corners[:, 2:].max(axis=0)]
    result: NDArray[np.bool_] = (np.abs(boxes - corners[owner]) <= np.hstack([slack, slack])) & inner[owner]
    return result


def _facing(
    axis: int,
    group: Ints,
    boxes: Boxes,
    scores: NDArray[np.floating],
    owner: Ints,
    tiles: Ints,
    cut: NDArray[np.bool_],
    slack: NDArray[np.float64],
) -> tuple[Ints, Ints]:
    """Pairs of halves along an axis: the first is cut at its far end, the second at its near one.

    Of several that would fit, each takes the one that is most level with it, and only if that one takes it too.
    """
    far, near = np.flatnonzero(cut[:, axis + 2]), np.flatnonzero(cut[:, axis])
    grow = np.hstack([-slack, slack])  # so that windows may as well only touch
    i, j, _ = pairs(group[far], (boxes + grow)[far], group[near], (boxes + grow)[near], 1e-12)
    i, j = far[i], near[j]
    start, end = tiles[owner, axis], tiles[owner, axis] + tiles[owner, axis + 2]
    strip = end[i] - start[j]  # what both windows see; each half fills it, or they are two objects
    shared = np.minimum(boxes[i, axis + 2], boxes[j, axis + 2]) - np.maximum(boxes[i, axis], boxes[j, axis])
    fits = (start[i] < start[j]) & (end[i] < end[j]) & (strip >= 0) & (shared >= strip - 2 * slack[i, axis])
    level = _level(boxes[i], boxes[j], 1 - axis)
    fits &= level >= SAME_IOU
    i, j, level = i[fits], j[fits], level[fits]
    rank = np.lexsort((j, i, -(scores[i] + scores[j]), -level))
    return _mutual(i[rank], j[rank], len(boxes))


def _level(a: Boxes, b: Boxes, axis: int) -> NDArray[np.float64]:
    """(n,) intersection over union of paired boxes' extents along one axis."""
    common = np.minimum(a[:, axis + 2], b[:, axis + 2]) - np.maximum(a[:, axis], b[:, axis])
    span = np.maximum(a[:, axis + 2], b[:, axis + 2]) - np.minimum(a[:, axis], b[:, axis])
    return np.divide(common.clip(min=0), span, out=np.zeros_like(span), where=span > 0)


def _mutual(i: Ints, j: Ints, n: int) -> tuple[Ints, Ints]:
    """Of pairs in order of preference, those that are the first of both their members."""
    best_of_i, best_of_j = np.full(n, len(i)), np.full(n, len(i))
    places = np.arange(len(i))
    np.minimum.at(best_of_i, i, places)
    np.minimum.at(best_of_j, j, places)
    kept = (best_of_i[i] == places) & (best_of_j[j] == places)
    return i[kept], j[kept]
