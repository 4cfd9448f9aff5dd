"""What detectors do wrong: boxes, what they missed, and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import masks as rle
from pipeline import schema, tide
from pipeline.boxes import area
from pipeline.config import ProjectConfig
from pipeline.failures.rows import Columns, Flags, Floats, Ints, doubted, table
from pipeline.matching import pairs

SMALL = 32.0**2  # COCO's small: square pixels
CROWDED = 0.1  # overlap with another object from which on a place is crowded
ABOUT_BOXES = ("overlooked", "badly_located", "swapped")  # label errors
_EDGE = 1.0  # pixels


@dataclass(frozen=True)
class _Boxes:
    """Annotation rows of known class that have a box: (n,) numbers of image and class, and (n, 4) xyxy."""

    rows: pa.Table
    image: Ints
    kind: Ints
    boxes: Floats

    @classmethod
    def of(cls, rows: pa.Table, images: Sequence[str], classes: Sequence[str]) -> _Boxes:
        known = schema.where_in(rows, "class_name", classes)
        known = known.filter(pc.is_valid(known["x1"]))
        image, kind = schema.codes(known["image_id"], images), schema.codes(known["class_name"], classes)
        return cls(known, image, kind, schema.box_array(known))


@dataclass(frozen=True)
class _Case:
    """One detector on one split, judged.

    Attributes:
        ignore: (m,) objects that do not count. near: pairs of detections and objects, and how far they overlap.
        facts: a row for each image, in the order of its number. doubts: rows of `label_errors`, strongest first.
    """

    model: str
    config: ProjectConfig
    seen: _Boxes
    truth: _Boxes
    ignore: Flags
    near: tuple[Ints, Ints, Floats]
    judged: tide.Judged
    facts: pa.Table
    doubts: pa.Table

    @property
    def iou(self) -> float:
        return self.config.trust.iou

    def neighbours(self, of: _Boxes) -> Ints:
        """(n,) how many objects besides the one in question overlap each box."""
        real = ~self.ignore
        i, _, _ = pairs(of.image, of.boxes, self.truth.image[real], self.truth.boxes[real], CROWDED)
        return np.maximum(np.bincount(i, minlength=len(of.image)) - 1, 0)

    def taken_for(self) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
        """(n,) class of the object behind a confused detection, (m,) class that an object was taken for, or None."""
        confused = self.judged.error == tide.CLASSIFICATION
        found = _named(confused, self.near, self.ignore, self.seen.kind, self.truth.kind, self.iou)
        names = np.array([*self.config.ontology.names, None], object)
        return names[found[0]], names[found[1]]

    def rows(self, of: _Boxes, at: Ints, columns: Columns) -> pa.Table:
        """Rows of `failures` about some boxes."""
        about = _Boxes(of.rows.take(pa.array(at)), of.image[at], of.kind[at], of.boxes[at])
        columns = {**columns, "neighbours": self.neighbours(about)}
        return _box_rows(self.model, about.rows, about.image, columns, self.facts)


def wrong_boxes(
    model: str,
    seen: pa.Table,
    truth: pa.Table,
    masks: pa.Table,
    facts: pa.Table,
    doubts: pa.Table,
    config: ProjectConfig,
) -> list[pa.Table]:
    """Rows of `failures` of a detector on some images: false alarms, misses, and masks that fit badly.

    Args:
        seen: what it said at its operating thresholds. facts: as of `facts_of`. doubts: rows of `label_errors`,
            strongest first.
    """
    classes, images = config.ontology.names, facts["image_id"].to_pylist()
    found, objects = (_Boxes.of(rows, images, classes) for rows in (seen, truth))
    ignore = np.asarray(pc.or_(objects.rows["ignore"], objects.rows["is_crowd"]).to_numpy(), bool)
    near = pairs(found.image, found.boxes, objects.image, objects.boxes, tide.NEAR, ignore)
    score = found.rows["score"].to_numpy().astype(np.float64)
    judged = tide.judge(found.image, found.kind, score, objects.kind, ignore, near, len(classes), config.trust.iou)
    case = _Case(model, config, found, objects, ignore, near, judged, facts, doubts)
    cost_s, cost_t = tide.single_costs(judged)
    return [_false_alarms(case, score, cost_s), _misses(case, cost_t), _outlines(case, score, masks)]


def _false_alarms(case: _Case, score: Floats, cost: Floats) -> pa.Table:
    seen, judged, classes = case.seen, case.judged, case.config.ontology.names
    wrong = np.flatnonzero((judged.error != tide.RIGHT) & ~judged.excused)
    doubts = schema.where_in(schema.where_in(case.doubts, "suggested", classes), "error", ABOUT_BOXES)
    suggested = schema.codes(doubts["image_id"], case.facts["image_id"].to_pylist()) * len(classes)
    suggested += schema.codes(doubts["suggested"], classes)
    # An object that was found is there whatever its label: a duplicate of it is one.
    says = wrong[judged.error[wrong] != tide.DUPLICATE]
    says = says[np.argsort(-score[says], kind="stable")]
    group = seen.image[says] * len(classes) + seen.kind[says]
    said = np.full(len(seen.kind), -1, np.int64)
    said[says] = _first_of_own(group, seen.boxes[says], suggested, schema.box_array(doubts), case.iou)
    columns: Columns = {
        "error": np.array(tide.KINDS, object)[judged.error[wrong]],
        "score": score[wrong],
        "iou": np.maximum(judged.own, judged.other)[wrong],
        "cost": cost[wrong],
        "confused_with": case.taken_for()[0][wrong],
        **doubted(doubts, said[wrong]),
    }
    return case.rows(seen, wrong, columns)


def _misses(case: _Case, cost: Floats) -> pa.Table:
    truth, (i, j, overlap) = case.truth, case.near
    missed = np.flatnonzero(~case.judged.found & ~case.ignore)
    nearest = np.zeros(len(truth.kind))
    alike = (case.seen.kind[i] == truth.kind[j]) & ~case.ignore[j]
    np.maximum.at(nearest, j[alike], overlap[alike])
    doubts = schema.where_in(case.doubts, "error", ABOUT_BOXES)
    labels = truth.rows["annotation_id"].take(pa.array(missed))
    columns: Columns = {
        "error": np.full(len(missed), "missed", object),
        "iou": nearest[missed],
        "cost": cost[missed],
        "confused_with": case.taken_for()[1][missed],
        **doubted(doubts, schema.codes(labels, doubts["annotation_id"])),
    }
    return case.rows(truth, missed, columns)


def _outlines(case: _Case, score: Floats, masks: pa.Table) -> pa.Table:
    """Detections that found an object, but whose mask overlaps people's by less than the project's overlap."""
    at, overlap = _overlaps(case, masks)
    badly, overlap = at[overlap < case.iou], overlap[overlap < case.iou]
    doubts = schema.where_in(case.doubts, "error", ["badly_outlined"])
    labels = case.truth.rows["annotation_id"].take(pa.array(case.judged.hit[badly]))
    columns: Columns = {
        "error": np.full(len(badly), "outline", object),
        "score": score[badly],
        "iou": overlap,
        "confused_with": np.full(len(badly), None),
        **doubted(doubts, schema.codes(labels, doubts["annotation_id"])),
    }
    return case.rows(case.seen, badly, columns)


def _overlaps(case: _Case, masks: pa.Table) -> tuple[Ints, Floats]:
    """Right detections with a mask of objects with a mask, and how far the two masks overlap."""
    drawn = schema.with_masks(case.seen.rows, masks)
    at = schema.codes(drawn["annotation_id"], case.seen.rows["annotation_id"])
    theirs = case.truth.rows["mask"].take(pa.array(case.judged.hit[at], mask=case.judged.hit[at] < 0))
    both = np.asarray(pc.is_valid(theirs).to_numpy(zero_copy_only=False), bool)
    at, ours = at[both], drawn["mask"].filter(pa.array(both))
    about = case.facts.take(pa.array(case.seen.image[at]))
    columns = (ours, theirs.drop_null(), about["height"], about["width"])
    overlap = [rle.iou([a], [b], *size)[0, 0] for a, b, *size in zip(*(c.to_pylist() for c in columns), strict=True)]
    return at, np.array(overlap, np.float64)


def _named(
    confused: Flags, near: tuple[Ints, Ints, Floats], ignore: Flags, kind_s: Ints, kind_t: Ints, iou: float
) -> tuple[Ints, Ints]:
    """(n,) class of the object behind a confused detection, (m,) class that an object was taken for; -1 for none."""
    i, j, overlap = near
    sure = confused[i] & (kind_s[i] != kind_t[j]) & ~ignore[j] & (overlap >= iou)
    i, j, overlap = i[sure], j[sure], overlap[sure]
    order = np.argsort(overlap, kind="stable")  # the largest overlap is written last
    of_seen, of_truth = np.full(len(kind_s), -1, np.int64), np.full(len(kind_t), -1, np.int64)
    of_seen[i[order]], of_truth[j[order]] = kind_t[j[order]], kind_s[i[order]]
    return of_seen, of_truth


def _first_of_own(group: Ints, boxes: Floats, others: Ints, their_boxes: Floats, iou: float) -> Ints:
    """(n,) first of other boxes that each has for its own, as the first in the group to overlap it by `iou`; or -1."""
    i, j, _ = pairs(group, boxes, others, their_boxes, iou)
    n, none = len(group), len(others)
    owner = np.full(none, n, np.int64)
    np.minimum.at(owner, j, i)
    first = np.full(n + 1, none, np.int64)
    np.minimum.at(first, owner, np.arange(none))
    return np.where(first < none, first, -1)[:n]


def _box_rows(model: str, rows: pa.Table, image: Ints, columns: Columns, facts: pa.Table) -> pa.Table:
    n, about = rows.num_rows, facts.take(pa.array(image))
    boxes = schema.box_array(rows)
    size = area(boxes) if n else np.zeros(0)
    width, height = (about.column(c).to_numpy(zero_copy_only=False).astype(np.float64) for c in ("width", "height"))
    # An unknown width is NaN, and nothing is at its edge.
    edge = (boxes[:, :2].min(axis=1, initial=np.inf) < _EDGE) & ~np.isnan(width)
    edge |= (boxes[:, 2] > width - _EDGE) | (boxes[:, 3] > height - _EDGE)
    evidence = {
        "small": size < SMALL,
        "crowded": columns["neighbours"] > 0,
        "truncated": edge | np.asarray(rows.column("truncated").to_numpy(zero_copy_only=False), bool),
    }
    return table(model, rows, {**columns, "area": size}, evidence, about)
