"""Which boxes overlap, which detection found which object, and which boxes are one: for all images at once.

A group is what may be compared with each other, for example one class in one image. Work goes in
rounds: round r treats the r-th best box of every group together, so the cost in Python is that of
the most crowded group, not of the number of images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.boxes import Boxes, area

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
_PAIRS_AT_ONCE = 2_000_000
# As in pycocotools: boxes that agree exactly must match even at a threshold of 1.
_ALMOST_ONE = 1 - 1e-10


@dataclass(frozen=True)
class Matches:
    """Who found whom, at T overlap thresholds.

    Attributes:
        found_by: (T, n) index of the object that a detection was matched with, -1 for none.
        ignored: (T, n) True where that object is an ignore region: neither right nor wrong.
        found: (T, m) True where an object was matched.
        rank: (n,) place of a detection in its group, 0 for the best score.
    """

    found_by: Ints
    ignored: Flags
    found: Flags
    rank: Ints

    @property
    def right(self) -> Flags:
        """(T, n) true positives."""
        return (self.found_by >= 0) & ~self.ignored


def pairs(
    group_a: Ints, a: Boxes, group_b: Ints, b: Boxes, least: float, covered: Flags | None = None
) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """All pairs of one group that overlap by at least `least` (> 0).

    Args:
        group_a, group_b: (n,) and (m,) group numbers. a, b: (n, 4) and (m, 4) xyxy.
        covered: (m,) True where overlap is the share of `a` inside `b` (COCO's crowd rule) instead
            of intersection over union.

    Returns:
        Indices into `a`, indices into `b`, and overlaps.
    """
    found = [_overlapping(*part, a, b, least, covered) for part in _candidates(group_a, group_b)]
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    left, right, overlap = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return left, right, overlap


def _candidates(group_a: Ints, group_b: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Index pairs of equal groups, in chunks that fit in memory."""
    by = np.argsort(group_b, kind="stable")
    ordered = group_b[by]
    start = np.searchsorted(ordered, group_a, "left")
    counts = np.searchsorted(ordered, group_a, "right") - start
    total = np.cumsum(counts)
    low = 0
    while low < len(group_a):
        before = total[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(total, before + _PAIRS_AT_ONCE, "right")))
        count = counts[low:high]
        i = np.repeat(np.arange(low, high), count)
        within = np.arange(len(i)) - np.repeat(np.cumsum(count) - count, count)
        yield i, by[np.repeat(start[low:high], count) + within]
        low = high


def _overlapping(
    i: Ints, j: Ints, a: Boxes, b: Boxes, least: float, covered: Flags | None
) -> tuple[Ints, Ints, NDArray[np.float64]]:
    first, second = a[i], b[j]
    low = np.maximum(first[:, :2], second[:, :2])
    side = np.clip(np.minimum(first[:, 2:], second[:, 2:]) - low, 0, None)
    common = side[:, 0] * side[:, 1]
    touching = common > 0
    i, j, common = i[touching], j[touching], common[touching]
    own = area(a)[i]
    whole = own + area(b)[j] - common
    if covered is not None:
        whole = np.where(covered[j], own, whole)
    overlap = common / whole
    enough = overlap >= least
    return i[enough], j[enough], overlap[enough]


def ranks(group: Ints, order: Ints) -> Ints:
    """(n,) place of each row within its group when rows are taken in `order`."""
    by_group = order[np.argsort(group[order], kind="stable")]
    ordered = group[by_group]
    first = np.searchsorted(ordered, ordered, "left")
    places = np.empty(len(group), np.int64)
    places[by_group] = np.arange(len(group)) - first
    return places


def match(
    group: Ints,
    boxes: Boxes,
    scores: NDArray[np.floating],
    truth_group: Ints,
    truth_boxes: Boxes,
    truth_ignore: Flags,
    thresholds: NDArray[np.floating],
) -> Matches:
    """Greedy matching by score, as COCO does it (pycocotools.cocoeval.evaluateImg).

    The best-scored detection chooses first: the object with the largest overlap that is still
    free, an ignore region only if no object will do. Ignore regions overlap by the share of the
    detection inside them and may be matched by many (COCO's iscrowd).

    Args:
        group, boxes, scores: (n,), (n, 4) and (n,), the detections; ties in score keep their order.
        truth_group, truth_boxes, truth_ignore: (m,), (m, 4) and (m,), the objects.
        thresholds: (T,) overlaps that count as found.
    """
    n, m, t = len(group), len(truth_group), len(thresholds)
    rank = ranks(group, np.argsort(-np.asarray(scores, np.float64), kind="stable"))
    found = pairs(group, boxes, truth_group, truth_boxes, float(np.min(thresholds)), truth_ignore)
    hits = assign(group, rank, *found, truth_ignore, truth_ignore[None], thresholds)
    found_by, taken, ignored = np.full((t, n), -1, np.int64), np.zeros((t, m), bool), np.zeros((t, n), bool)
    found_by[hits.level, hits.seen] = hits.truth
    taken[hits.level, hits.truth] = True
    ignored[hits.level, hits.seen] = truth_ignore[hits.truth]
    return Matches(found_by, ignored, taken, rank)


@dataclass(frozen=True)
class Hits:
    """Matched pairs, in no order: (h,) level, detection and object."""

    level: Ints
    seen: Ints
    truth: Ints


def assign(
    group: Ints,
    rank: Ints,
    i: Ints,
    j: Ints,
    overlap: NDArray[np.float64],
    crowd: Flags,
    aside: Flags,
    thresholds: NDArray[np.floating],
) -> Hits:
    """COCO's greedy matching of pairs that overlap, whatever the overlap is that of (boxes or masks).

    Args:
        group, rank: (n,) what each detection may be matched within, and its place there by score.
        i, j, overlap: (p,) detection, object and overlap of every pair of equal groups that could match.
        crowd: (m,) objects that may be matched by many.
        aside: (A, m) for each of A rules, objects that count neither way and are taken only if no
            other will do: crowds, and those outside the rule's range of areas.
        thresholds: (T,) overlaps needed.

    Returns:
        Hits at A * T levels, level `a * T + t` being rule a at threshold t.
    """
    needed = np.tile(np.minimum(np.asarray(thresholds, np.float64), _ALMOST_ONE), len(aside))
    rule = np.repeat(np.arange(len(aside)), len(thresholds))
    taken = np.zeros((len(needed), aside.shape[1]), bool)
    found: list[tuple[Ints, Ints, Ints]] = []
    # Within a detection the last pair is the best: the largest overlap, then the later object.
    for part in _rounds(group, rank, i, (j, overlap), len(needed)):
        first, second = i[part], j[part]
        free = crowd[second] | ~taken[:, second]
        free &= overlap[part] >= needed[:, None]
        places = np.arange(len(part), dtype=np.int32)
        liking = places + len(part) * (1 + ~aside[:, second]).astype(np.int32)[rule]
        liking[~free] = -1
        starts = np.flatnonzero(np.r_[True, first[1:] != first[:-1]])
        best = np.maximum.reduceat(liking, starts, axis=1)
        level, which = np.nonzero(best >= 0)
        chosen = best[level, which] % len(part)
        taken[level, second[chosen]] = True
        found.append((level, first[chosen], second[chosen]))
    if not found:
        return Hits(*(np.zeros(0, np.int64) for _ in range(3)))
    return Hits(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _rounds(
    group: Ints, rank: Ints, i: Ints, then_by: tuple[NDArray[np.generic], ...], levels: int = 1
) -> Iterator[Ints]:
    """Indices of pairs, round after round, those of one box together and ordered by `then_by` (last first).

    Many pairs, times `levels`, are done block after block of groups.
    """
    if not len(i):
        return
    has_pair = np.zeros(len(group), bool)
    has_pair[i] = True
    busy = np.flatnonzero(has_pair)
    turn = np.empty(len(group), np.int64)
    turn[busy] = ranks(group[busy], np.argsort(rank[busy], kind="stable"))
    block = _blocks(group[i], max(1, _PAIRS_AT_ONCE // levels))
    order = np.lexsort((*then_by, i, turn[i], block))
    round_ = (block * (turn[i].max() + 1) + turn[i])[order]
    yield from np.split(order, np.flatnonzero(np.diff(round_)) + 1)


def _blocks(group: Ints, size: int) -> Ints:
    """(p,) number of the block that each pair's group belongs to; blocks hold about `size` pairs."""
    if len(group) <= size:
        return np.zeros(len(group), np.int64)
    _, number, counts = np.unique(group, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) // size)[number]


def suppress(group: Ints, boxes: Boxes, order: Ints, threshold: float) -> Ints:
    """Greedy non-maximum suppression in every group at once.

    Args:
        group, boxes: (n,) and (n, 4). order: (n,) indices, the box that wins first.
        threshold: boxes that overlap a winner by more than this (IoU) are one with it.

    Returns:
        (n,) index of the winner that each box belongs to; winners have their own.
    """
    rank = ranks(group, order)
    leader = np.arange(len(group))
    i, j, overlap = pairs(group, boxes, group, boxes, threshold if threshold > 0 else 1e-12)
    better = (rank[i] < rank[j]) & (overlap > threshold)
    i, j = i[better], j[better]
    for part in _rounds(group, rank, i, (j,)):
        winner, loser = i[part], j[part]
        open_ = (leader[winner] == winner) & (leader[loser] == loser)
        leader[loser[open_]] = winner[open_]
    return leader
