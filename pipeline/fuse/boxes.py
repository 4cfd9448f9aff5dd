"""Weighted box fusion: the boxes that several labellers drew around one thing become their mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.matching import ranks

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Fused:
    """Clusters of boxes.

    Attributes:
        cluster: (n,) number of each box's cluster, from 0. boxes: (k, 4) xyxy. score: (k,) in [0, 1].
        group: (k,) the group that each cluster lies in.
    """

    cluster: Ints
    boxes: Floats
    score: Floats
    group: Ints


def weighted_boxes(group: Ints, boxes: Floats, score: Floats, labellers: int, iou: float) -> Fused:
    """Weighted box fusion (Solovyev, Wang & Gabruseva 2021), equal weights, in all groups at once.

    Box by box, best score first, each joins the cluster whose mean it overlaps most, if by more than `iou`,
    or founds one. A cluster's box is the mean of its boxes weighted by score; its score is their mean score
    times min(boxes, labellers) / labellers, so that what few labellers see counts less. Results agree with
    those of the package ensemble-boxes to the last digit: as there, means are kept in float32.

    Work goes in rounds: round r places the r-th best box of every group.

    Args:
        group: (n,) numbers; boxes are fused within a group (an image and class). boxes: (n, 4) xyxy.
        score: (n,). Of equal scores the earlier box comes first. labellers: how many there are.
    """
    n = len(group)
    if not n:
        return Fused(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    _, group_of = np.unique(group, return_inverse=True)
    rank = ranks(group_of, np.argsort(-score, kind="stable"))
    sizes = np.bincount(group_of)
    slot_of = np.empty(n, np.int64)  # place of each box's cluster within its group
    table = _Clusters(np.flatnonzero(sizes)[np.argsort(-sizes, kind="stable")], int(sizes.max()))
    by_round = np.argsort(rank, kind="stable")
    for mine in np.split(by_round, np.cumsum(np.bincount(rank))[:-1]):
        # Groups are rows, the largest first, so that those still at work are the first ones.
        mine = mine[np.argsort(table.row[group_of[mine]])]
        slot_of[mine] = table.place(boxes[mine], score[mine], iou)
    return table.fused(group_of, slot_of, group, labellers)


class _Clusters:
    """The clusters of every group, padded to the largest number any group has."""

    def __init__(self, groups: Ints, largest: int) -> None:
        self.row = np.empty(len(groups), np.int64)
        self.row[groups] = np.arange(len(groups))
        self.count = np.zeros(len(groups), np.int64)
        self.width = 0
        self.boxes = np.zeros((4, len(groups), largest))
        self.area = np.zeros((len(groups), largest))
        self.sums = np.zeros((4, len(groups), largest), np.float32)
        self.weight = np.zeros((len(groups), largest))
        self.members = np.zeros((len(groups), largest), np.int64)

    def place(self, boxes: Floats, score: Floats, iou: float) -> Ints:
        """Put one box into each of the first rows; returns its slot there."""
        k = len(boxes)
        rows = np.arange(k)
        slot, overlap = self._nearest(boxes)
        joins = overlap > iou
        slot = np.where(joins, slot, self.count[:k])
        self.count[:k] += ~joins
        self.width = max(self.width, int(self.count[:k].max()))
        self.sums[:, rows, slot] = self.sums[:, rows, slot] + score * boxes.T
        self.weight[rows, slot] += score
        self.members[rows, slot] += 1
        # A mean of one is the box itself; of several, float32 as in ensemble-boxes.
        mean = (self.sums[:, rows, slot] / self.weight[rows, slot]).astype(np.float32)
        self.boxes[:, rows, slot] = np.where(joins, mean, boxes.T)
        x1, y1, x2, y2 = self.boxes[:, rows, slot]
        self.area[rows, slot] = (x2 - x1) * (y2 - y1)
        return slot

    def _nearest(self, boxes: Floats) -> tuple[Ints, Floats]:
        k, w = len(boxes), self.width
        if not w:
            return np.zeros(k, np.int64), np.full(k, -1.0)
        x1, y1, x2, y2 = boxes.T[:, :, None]
        c1, d1, c2, d2 = self.boxes[:, :k, :w]
        common = np.minimum(c2, x2)
        common -= np.maximum(c1, x1)
        np.maximum(common, 0, out=common)
        height = np.minimum(d2, y2)
        height -= np.maximum(d1, y1)
        np.maximum(height, 0, out=height)
        common *= height
        union = self.area[:k, :w] + (x2 - x1) * (y2 - y1)
        union -= common
        np.divide(common, union, out=common, where=union > 0)
        best = np.argmax(common, axis=1)
        return best, common[np.arange(k), best]

    def fused(self, group_of: Ints, slot_of: Ints, group: Ints, labellers: int) -> Fused:
        first = np.cumsum(self.count) - self.count
        cluster = first[self.row[group_of]] + slot_of
        row, slot = np.nonzero(np.arange(self.boxes.shape[2]) < self.count[:, None])
        members, boxes = self.members[row, slot], self.boxes[:, row, slot].T
        score = self.weight[row, slot] / members
        score = np.where(members > 1, score.astype(np.float32), score) * np.minimum(labellers, members) / labellers
        owner = np.empty(len(row), np.int64)
        owner[cluster] = group
        return Fused(cluster, boxes, score, owner)
