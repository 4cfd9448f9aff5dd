"""COCO's twelve numbers and its precision array, exact to the last digit, for any subset of the images.

All classes are one array of detections, class after class, best score first. What matters of it are the
detections that hit something: between two of them precision can only fall, and recall stays. So an
evaluation, once matched, costs as much as there are hits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipeline.curves import counts_to_reach, interpolated
from pipeline.matching import Hits

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = (1, 10, 100)
# Square pixels, both ends included. COCO calls them all, small, medium and large.
AREAS = np.array([[0, 1e10], [0, 32.0**2], [32.0**2, 96.0**2], [96.0**2, 1e10]])
# Metric -> (precision or recall, place of the IoU or None for the mean of all, area, detections an image).
METRICS: dict[str, tuple[str, int | None, int, int]] = {
    "AP": ("precision", None, 0, 100),
    "AP50": ("precision", 0, 0, 100),
    "AP75": ("precision", 5, 0, 100),
    "AP_small": ("precision", None, 1, 100),
    "AP_medium": ("precision", None, 2, 100),
    "AP_large": ("precision", None, 3, 100),
    "AR1": ("recall", None, 0, 1),
    "AR10": ("recall", None, 0, 10),
    "AR100": ("recall", None, 0, 100),
    "AR_small": ("recall", None, 1, 100),
    "AR_medium": ("recall", None, 2, 100),
    "AR_large": ("recall", None, 3, 100),
}


def in_areas(area: Floats) -> Flags:
    """(4, n) whether each area is in COCO's range."""
    return (area >= AREAS[:, :1]) & (area <= AREAS[:, 1:])


@dataclass(frozen=True)
class Ranking:
    """Detections of K classes on some images, class after class, best score first.

    Attributes:
        image, kind, rank: (n,) image, class, and place by score among those of its class and image.
        within: (A, n) whether a detection that hits nothing counts as wrong under each rule.
        level: (h,) of each hit, rule * T + threshold, ascending. place: (h,) the detection that hit,
            ascending within a level. right: (h,) whether it hit an object that counts.
        objects: one (K, images) sparse matrix a rule: how many objects there are.
    """

    image: Ints
    kind: Ints
    rank: Ints
    within: Flags
    level: Ints
    place: Ints
    right: Flags
    objects: tuple[csr_matrix, ...]

    @classmethod
    def of(
        cls,
        image: Ints,
        kind: Ints,
        score: Floats,
        rank: Ints,
        within: Flags,
        hits: Hits,
        truth_image: Ints,
        truth_kind: Ints,
        counted: Flags,
        shape: tuple[int, int],
    ) -> Ranking:
        """From (n,) detections in order of image, their hits, and (m,) objects, `counted` (A, m) of them.

        Args:
            shape: numbers of classes and of images.
        """
        order = np.lexsort((-score, kind))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        right = counted[hits.level // len(IOUS), hits.truth]
        hit = np.sort((hits.level * len(order) + place[hits.seen]) * 2 + right)  # sorting values is far quicker
        objects = tuple(
            csr_matrix((np.ones(c.sum(), np.int64), (truth_kind[c], truth_image[c])), shape=shape) for c in counted
        )
        return cls(
            image[order],
            kind[order],
            rank[order],
            within[:, order],
            *np.divmod(hit // 2, max(1, len(order))),
            (hit & 1).astype(bool),
            objects,
        )

    @property
    def images(self) -> int:
        return int(self.objects[0].shape[1])

    @property
    def classes(self) -> int:
        return int(self.objects[0].shape[0])

    def on(self, members: Ints) -> Ranking:
        """The same for the images `members`, renumbered in that order, as if there were no others."""
        number = np.full(self.images, -1, np.int64)
        number[members] = np.arange(len(members))
        image = number[self.image]
        inside = image >= 0
        place = np.cumsum(inside) - 1
        kept = inside[self.place]
        return Ranking(
            image[inside],
            self.kind[inside],
            self.rank[inside],
            self.within[:, inside],
            self.level[kept],
            place[self.place[kept]],
            self.right[kept],
            tuple(m[:, members] for m in self.objects),
        )

    def totals(self, rule: int) -> Ints:
        """(K,) objects of each class that count under a rule."""
        return np.asarray(self.objects[rule].sum(axis=1), np.int64).ravel()

    def at(self, rule: int, threshold: int) -> tuple[Ints, Flags]:
        """Places of the hits at one level, and whether each is right."""
        low, high = np.searchsorted(self.level, rule * len(IOUS) + threshold + np.array([0, 1]))
        return self.place[low:high], self.right[low:high]


@dataclass(frozen=True)
class Curves:
    """COCO's arrays for one rule and one limit of detections an image; -1 where a class has no object.

    Attributes:
        precision: (T, 101, K) interpolated precision at each recall. recall: (T, K) recall reached.
    """

    precision: Floats
    recall: Floats

    def values(self, what: str, threshold: int | None) -> Floats:
        """(K,) average precision or recall of each class, NaN where it has no object."""
        part = np.moveaxis(getattr(self, what), -1, 0)  # class first, then threshold, then recall
        part = part if threshold is None else part[:, threshold : threshold + 1]
        flat = np.ascontiguousarray(part).reshape(len(part), -1)
        return np.where(flat[:, 0] < 0, np.nan, flat.mean(axis=1))

    def mean(self, what: str, threshold: int | None) -> float:
        """Over all classes that have objects, summed in pycocotools' order; NaN if there are none."""
        part = getattr(self, what)
        part = part if threshold is None else part[threshold : threshold + 1]
        defined = part[part > -1]
        return float(defined.mean()) if len(defined) else float("nan")


def curves(ranking: Ranking, rule: int = 0, most: int = 100) -> Curves:
    """Precision and recall under one rule (a range of areas), the best `most` detections an image counted."""
    totals = ranking.totals(rule)
    known = totals > 0
    needed = counts_to_reach(totals, RECALLS)
    kept = ranking.rank < most
    counted = np.concatenate([[0], np.cumsum(ranking.within[rule] & kept)])
    start = np.searchsorted(ranking.kind, np.arange(len(totals) + 1))
    precision = np.zeros((len(IOUS), len(totals), len(RECALLS)))
    recall = np.zeros((len(IOUS), len(totals)))
    for threshold in range(len(IOUS)):
        place, right = ranking.at(rule, threshold)
        if most < MAX_DETECTIONS[-1]:
            place, right = place[kept[place]], right[kept[place]]
        # A right detection counts whatever its area; one that hit what is set aside does not count.
        step = right.astype(np.int64) - ranking.within[rule, place]
        extra = np.concatenate([[0], np.cumsum(step)])
        before = counted[start] + extra[np.searchsorted(place, start)]
        seen = (counted[place + 1] + extra[1:])[right]
        place = place[right]
        kind = ranking.kind[place]
        first = np.searchsorted(kind, np.arange(len(totals) + 1))
        count = np.diff(first)
        found = np.arange(1, len(place) + 1) - first[kind]
        curve = found / ((seen - before[kind]) + np.spacing(1))
        precision[threshold] = interpolated(curve, first, needed)
        recall[threshold] = np.divide(count, totals, out=np.zeros(len(totals)), where=known)
    precision[:, ~known], recall[:, ~known] = -1, -1
    return Curves(np.ascontiguousarray(precision.transpose(0, 2, 1)), recall)


def measure(ranking: Ranking) -> dict[str, tuple[float, Floats]]:
    """COCO's twelve numbers: metric -> the mean over classes, and (K,) by class; NaN where undefined."""
    drawn: dict[tuple[int, int], Curves] = {}
    for _, _, rule, most in METRICS.values():
        if (rule, most) not in drawn:
            drawn[rule, most] = curves(ranking, rule, most)
    return {
        name: (drawn[rule, most].mean(what, threshold), drawn[rule, most].values(what, threshold))
        for name, (what, threshold, rule, most) in METRICS.items()
    }
