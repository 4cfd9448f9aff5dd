"""One detector on one split, matched once; every metric, slice and resample reads from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import masks, schema, tide
from pipeline.boxes import area
from pipeline.evaluate.coco import IOUS, MAX_DETECTIONS, Ranking, in_areas
from pipeline.matching import assign, pairs, ranks

Thresholds = Mapping[str, float | None]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Pairs = tuple[Ints, Ints, NDArray[np.float64]]


@dataclass(frozen=True)
class Objects:
    """Boxes on some images, as arrays.

    Attributes:
        image, kind: (n,) numbers of image and class. boxes: (n, 4) xyxy. score: (n,).
        ignore: (n,) True for ignore regions: crowds, and pieces too small to count.
        area: (n,) square pixels by which an object is small, medium or large.
        row: (n,) its place in the table that was read.
    """

    image: Ints
    kind: Ints
    boxes: NDArray[np.float64]
    score: NDArray[np.float64]
    ignore: Flags
    area: NDArray[np.float64]
    row: Ints

    @classmethod
    def read(cls, rows: pa.Table, image_ids: Sequence[str], classes: Sequence[str], by_mask: bool = False) -> Objects:
        """The boxes on `image_ids`, those of unknown class or without a box left out.

        Args:
            by_mask: take the area of the mask, where there is one, for that of the object, as COCO's files do.
        """
        image, kind = schema.codes(rows.column("image_id"), image_ids), schema.codes(rows.column("class_name"), classes)
        boxes = schema.box_array(rows)
        ignore = _flags(rows, "ignore") | _flags(rows, "is_crowd")
        score = rows.column("score").to_numpy().astype(np.float64)
        known = (image >= 0) & (kind >= 0) & ~np.isnan(boxes).any(axis=1)
        # In order of image and score, as pycocotools collects them: equal scores are then ranked alike.
        order = np.flatnonzero(known)
        order = order[np.lexsort((-score[order], image[order]))]
        boxes = boxes[order]
        size = area(boxes)
        if by_mask and rows.column("mask").null_count < rows.num_rows:
            drawn = rows.column("mask").take(pa.array(order))
            masked = np.asarray(pc.is_valid(drawn).to_numpy(zero_copy_only=False), bool)
            size[masked] = [masks.area(counts) for counts in drawn.drop_null().to_pylist()]
        return cls(image[order], kind[order], boxes, score[order], ignore[order], size, order)


@dataclass(frozen=True)
class Scene:
    """Detections of one model and people's objects on the same images, matched class by class.

    Ignore regions follow COCO's iscrowd: overlap is the share of the detection inside them, for
    they are pieces of things, and a detection matched with one is neither right nor wrong.

    Attributes:
        rank: (n,) place of a detection by score among those of its class and image.
        pairs: detections and objects of one class and image, with how far they overlap.
        hit: (n,) object that a detection found at `iou`, the project's own overlap, -1 for none.
    """

    images: int
    classes: list[str]
    seen: Objects
    truth: Objects
    rank: Ints
    pairs: Pairs
    hit: Ints
    iou: float

    @classmethod
    def of(cls, seen: Objects, truth: Objects, images: int, classes: list[str], iou: float) -> Scene:
        width = max(1, len(classes))
        group = seen.image * width + seen.kind
        rank = ranks(group, np.argsort(-seen.score, kind="stable"))
        least = min(iou, IOUS[0])
        found = pairs(group, seen.boxes, truth.image * width + truth.kind, truth.boxes, least, truth.ignore)
        hits = assign(group, rank, *found, truth.ignore, truth.ignore[None], np.array([iou]))
        hit = np.full(len(group), -1, np.int64)
        hit[hits.seen] = hits.truth
        return cls(images, classes, seen, truth, rank, found, hit, iou)

    @cached_property
    def ranking(self) -> Ranking:
        """COCO's view: its thresholds and ranges of areas, the best hundred detections of a class and image."""
        return rank(self.seen, self.truth, self.rank, self.pairs, (len(self.classes), self.images))

    @cached_property
    def judged(self) -> tuple[Ints, tide.Judged]:
        """What is wrong with the detections and why, and which detections that is about (the best of each image)."""
        seen, truth = self.seen, self.truth
        best = np.flatnonzero(tide.best_of_image(seen.image, seen.score))
        image, kind, score = seen.image[best], seen.kind[best], seen.score[best]
        near = pairs(image, seen.boxes[best], truth.image, truth.boxes, tide.NEAR, truth.ignore)
        judged = tide.judge(image, kind, score, truth.kind, truth.ignore, near, len(self.classes), self.iou)
        return best, judged

    @property
    def right(self) -> Flags:
        """(n,) true positives at the project's own overlap."""
        return (self.hit >= 0) & ~self.excused

    @property
    def excused(self) -> Flags:
        """(n,) detections that found an ignore region: neither right nor wrong."""
        hit = self.hit >= 0
        excused = np.zeros(len(hit), bool)
        excused[hit] = self.truth.ignore[self.hit[hit]]
        return excused

    def objects(self, kind: int) -> Ints:
        """(images,) how many objects of a class each image has."""
        counted = (self.truth.kind == kind) & ~self.truth.ignore
        return np.bincount(self.truth.image[counted], minlength=self.images)

    def best_threshold(self, kind: int) -> float | None:
        """Score at which F1 is best for a class (the highest such score); None without objects or hits."""
        objects = int(self.objects(kind).sum())
        mine = np.flatnonzero((self.seen.kind == kind) & ~self.excused)
        mine = mine[np.argsort(-self.seen.score[mine], kind="stable")]
        score = self.seen.score[mine]
        found = np.cumsum(self.right[mine])
        if not objects or not len(mine) or not found[-1]:
            return None
        f1 = 2 * found / (np.arange(1, len(mine) + 1) + objects)
        last_of_ties = np.append(score[1:] != score[:-1], True)
        return float(score[np.argmax(np.where(last_of_ties, f1, -1))])

    def above(self, thresholds: Thresholds) -> Flags:
        """(n,) detections at or above the threshold of their class; none where there is no threshold."""
        limits = [thresholds.get(name) for name in self.classes]
        least = np.array([np.inf if t is None else t for t in limits], np.float64)
        return self.seen.score >= least[self.seen.kind]

    def counts(self, thresholds: Thresholds) -> tuple[Ints, Ints, Ints]:
        """(classes, images) true positives, false positives and objects at the operating thresholds."""
        accepted = self.above(thresholds)
        counted = ~self.truth.ignore
        return (
            self._per_image(self.seen, accepted & self.right),
            self._per_image(self.seen, accepted & (self.hit < 0)),
            self._per_image(self.truth, counted),
        )

    def _per_image(self, objects: Objects, which: Flags) -> Ints:
        cells = objects.kind[which] * self.images + objects.image[which]
        size = len(self.classes) * self.images
        return np.bincount(cells, minlength=size).reshape(len(self.classes), self.images)


def rank(seen: Objects, truth: Objects, place: Ints, near: Pairs, shape: tuple[int, int]) -> Ranking:
    """COCO's view of detections and objects, whatever their overlap is that of: boxes or masks.

    Args:
        place: (n,) of each detection by score among those of its class and image.
        near: pairs of one class and image that could match. shape: numbers of classes and of images.
    """
    group = seen.image * max(1, shape[0]) + seen.kind
    i, j, overlap = near
    close = (place[i] < MAX_DETECTIONS[-1]) & (overlap >= IOUS[0])
    aside = truth.ignore | ~in_areas(truth.area)
    hits = assign(group, place, i[close], j[close], overlap[close], truth.ignore, aside, IOUS)
    within = in_areas(seen.area) & (place < MAX_DETECTIONS[-1])
    return Ranking.of(seen.image, seen.kind, seen.score, place, within, hits, truth.image, truth.kind, ~aside, shape)


def _flags(rows: pa.Table, name: str) -> Flags:
    return np.asarray(rows.column(name).to_numpy(zero_copy_only=False), bool)
