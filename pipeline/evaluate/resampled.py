"""COCO's twelve numbers under bootstrap weights: how often each image is in each sample.

A sample weighs the images, which leaves the order of the detections as it is. So precision and recall of
all samples are cumulative sums over one sorted list, of which only the detections that hit count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipeline.evaluate.coco import IOUS, METRICS, RECALLS, Ranking
from pipeline.evaluate.rows import divided

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_CELLS_AT_ONCE = 1_000_000
# Points of pycocotools' recall grid that lie a rounding error above k / 100, so that this recall does not reach them.
_ABOVE = np.arange(len(RECALLS)) / (len(RECALLS) - 1) < RECALLS


def resampled(ranking: Ranking, weights: NDArray[np.integer], metrics: Iterable[str] = METRICS) -> dict[str, Floats]:
    """Each metric of each class in each sample.

    Args:
        weights: (D, images) how often each image counts.

    Returns:
        (K, D) values, NaN where a sample holds no object of a class. They differ from those of
        `measure` on the repeated images only in how equal scores are ordered, and by rounding.
    """
    wanted = {name: METRICS[name] for name in metrics}
    out = {name: np.full((ranking.classes, len(weights)), np.nan) for name in wanted}
    plans: dict[tuple[str, int, int], _Recalls | _Precisions] = {}
    for what, threshold, rule, most in wanted.values():
        levels = range(len(IOUS)) if threshold is None else [threshold]
        if what == "recall":
            plans[what, rule, most] = _Recalls.of(ranking, rule, most)
        else:
            before = plans.get((what, rule, most))
            known = before.levels if isinstance(before, _Precisions) else ()
            plans[what, rule, most] = _Precisions.of(ranking, rule, {*known, *levels})
    hits = np.bincount(ranking.level, minlength=1).max()
    step = max(1, _CELLS_AT_ONCE // max(1, int(hits)))
    for low in range(0, len(weights), step):
        weight = np.ascontiguousarray(weights[low : low + step].T, np.float64)
        found = {key: plan.values(weight, ranking.objects[key[1]] @ weight) for key, plan in plans.items()}
        for name, (what, threshold, rule, most) in wanted.items():
            values = found[what, rule, most]
            value = values.mean(axis=0) if threshold is None else values[threshold]
            out[name][:, low : low + step] = value
    return out


@dataclass(frozen=True)
class _Recalls:
    """Hits as a sparse matrix: row threshold * K + class, column image."""

    hits: csr_matrix

    @classmethod
    def of(cls, ranking: Ranking, rule: int, most: int) -> _Recalls:
        low, high = np.searchsorted(ranking.level, [rule * len(IOUS), (rule + 1) * len(IOUS)])
        place = ranking.place[low:high]
        kept = ranking.right[low:high] & (ranking.rank[place] < most)
        place, threshold = place[kept], ranking.level[low:high][kept] - rule * len(IOUS)
        row = threshold * ranking.classes + ranking.kind[place]
        shape = (len(IOUS) * ranking.classes, ranking.images)
        return cls(csr_matrix((np.ones(len(row)), (row, ranking.image[place])), shape=shape))

    def values(self, weight: Floats, objects: Floats) -> Floats:
        """(T, K, D) share of the (K, D) objects that is found."""
        hits = self.hits @ weight
        return divided(hits.reshape(len(IOUS), *objects.shape), objects)


@dataclass(frozen=True)
class _Level:
    """Right detections at one threshold: (p,) row among the stops, image, class; first row of each class.

    `between` has a row each: what the hits since the one before add to, or take from, the detections
    that would count had they hit nothing; None where that is nothing.
    """

    stop: Ints
    image: Ints
    kind: Ints
    first: Ints
    between: csr_matrix | None


@dataclass(frozen=True)
class _Precisions:
    """What average precision under one rule needs of a ranking, in order of class and score.

    Attributes:
        kind: (s,) class of each detection that hits at any threshold: the stops.
        between: a row each, the images of detections that count if they hit nothing, since the stop before.
        levels: by threshold.
    """

    kind: Ints
    between: csr_matrix
    levels: dict[int, _Level]

    @classmethod
    def of(cls, ranking: Ranking, rule: int, thresholds: Iterable[int]) -> _Precisions:
        hits = {t: ranking.at(rule, t) for t in sorted(thresholds)}
        is_stop = np.zeros(len(ranking.image), bool)
        for place, right in hits.values():
            is_stop[place[right]] = True
        stops = np.flatnonzero(is_stop)
        counted = np.flatnonzero(ranking.within[rule])
        between = _increments(ranking, stops, counted, np.ones(len(counted)))
        levels = {}
        for threshold, (place, right) in hits.items():
            step = right.astype(np.float64) - ranking.within[rule, place]
            place, changed, step = place[right], place[step != 0], step[step != 0]
            kind = ranking.kind[place]
            more = _increments(ranking, place, changed, step) if len(changed) else None
            first = np.flatnonzero(np.r_[True, kind[1:] != kind[:-1]][: len(kind)])
            levels[threshold] = _Level(np.searchsorted(stops, place), ranking.image[place], kind, first, more)
        return cls(ranking.kind[stops], between, levels)

    def values(self, weight: Floats, objects: Floats) -> Floats:
        """(T, K, D) average precision under `weight` (images, D) at the thresholds planned for, 0 at others."""
        values = np.zeros((len(IOUS), *objects.shape))
        values[:, objects == 0] = np.nan
        counted = _running(self.between @ weight, self.kind)
        for threshold, level in self.levels.items():
            if not len(level.kind):
                continue
            seen = counted.take(level.stop, axis=0)
            if level.between is not None:
                seen += _running(level.between @ weight, level.kind)
            found = _running(weight.take(level.image, axis=0), level.kind)
            points = _grid_points(found, objects.take(level.kind, axis=0), level.kind)
            precision = np.divide(found, seen, out=found, where=seen > 0)
            points *= _envelope(precision, level.kind)
            values[threshold, level.kind[level.first]] += np.add.reduceat(points, level.first, axis=0) / len(RECALLS)
        return values


def _increments(ranking: Ranking, stops: Ints, place: Ints, value: Floats) -> csr_matrix:
    """(s, images) sums of (p,) `value` of the detections at `place` since the stop before, within its class."""
    row = np.searchsorted(stops, place)
    inside = row < len(stops)
    inside[inside] = ranking.kind[stops[row[inside]]] == ranking.kind[place[inside]]
    row, place, value = row[inside], place[inside], value[inside]
    starts = np.searchsorted(row, np.arange(len(stops) + 1))
    return csr_matrix((value, ranking.image[place], starts), shape=(len(stops), ranking.images))


def _running(values: Floats, kind: Ints) -> Floats:
    """(n, D) sums down the rows, begun anew with each class; in place."""
    _accumulate(np.add, values)
    first = np.flatnonzero(np.diff(kind)) + 1
    if len(first):
        last = np.append(first[1:], len(kind))
        before = values[first - 1]
        for low, high, sums in zip(first, last, before, strict=True):
            values[low:high] -= sums
    return values


def _envelope(precision: Floats, kind: Ints) -> Floats:
    """(n, D) best precision at a row or below it, within its class; in place."""
    # Later classes lie lower by more than any precision, so that none of theirs is taken.
    shift = -2.0 * kind[:, None]
    precision += shift
    _accumulate(np.maximum, precision[::-1])
    precision -= shift
    return precision


def _grid_points(found: Floats, objects: Floats, kind: Ints) -> Floats:
    """(n, D) how many points of the recall grid are first reached at each row of its class."""
    recall = found * (len(RECALLS) - 1)
    np.divide(recall, objects, out=recall, where=objects > 0)
    reached = np.floor(recall)
    tie = np.nonzero(recall == reached)
    reached[tie] -= _ABOVE[reached[tie].astype(np.int64)]
    points = reached + 1
    more = np.flatnonzero(kind[1:] == kind[:-1]) + 1
    points[more] -= reached[more - 1] + 1
    return points


def _accumulate(operation: np.ufunc, values: Floats) -> None:
    """`operation.accumulate(values, axis=0)` in place: in blocks side by side, which is some five times quicker."""
    rows = len(values)
    size = int(np.sqrt(rows))
    if size < 16:
        operation.accumulate(values, axis=0, out=values)
        return
    whole = rows - rows % size
    blocks = values[:whole].reshape(-1, size, values.shape[1], copy=False)
    for k in range(1, size):
        operation(blocks[:, k], blocks[:, k - 1], out=blocks[:, k])
    for b in range(1, len(blocks)):
        operation(blocks[b], blocks[b - 1, -1], out=blocks[b])
    for row in range(whole, rows):
        operation(values[row], values[row - 1], out=values[row])
