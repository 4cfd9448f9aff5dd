"""Which answers of a labeller are right, by what people said: of boxes, masks, tags and counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import masks, schema
from pipeline.matching import match

Kind = Literal["detection", "classification", "masks", "counts"]


@dataclass(frozen=True)
class Answers:
    """One labeller's answers for one class on gold images.

    Attributes:
        image: (n,) place of each answer's image in the list of gold images. score: (n,).
        right: (n,) whether people agree. objects: (m,) how many there were to find on each gold image.
        row: (n,) place of each answer among the labeller's rows.
    """

    image: NDArray[np.int64]
    score: NDArray[np.float64]
    right: NDArray[np.bool_]
    objects: NDArray[np.int64]
    row: NDArray[np.int64]


def judge(
    kind: Kind,
    found: pa.Table,
    truth: pa.Table,
    gold: Sequence[str],
    classes: Sequence[str],
    iou: float,
    images: pa.Table | None = None,
) -> Iterator[tuple[str, Answers]]:
    """(class, answers) in the order of `classes`, of one labeller's rows on gold images.

    A box is right when it is matched, by score, with an object of its class at `iou`; one that falls
    into an ignore region is no answer. A mask likewise, by mask IoU, where people drew masks. A tag is
    right when it is the image's class; images without one say nothing. A count is right when it equals
    the number of objects.

    Args:
        found: annotation rows; for counts also a column `count`, one row an image and class.
        images: for masks: rows of `images`, which know the masks' sizes.
    """
    if kind == "classification":
        yield from _tags(found, truth, list(gold), list(classes))
    elif kind == "counts":
        yield from _counts(found, truth, list(gold), list(classes))
    elif kind == "masks":
        sizes = {} if images is None else _sizes(images)
        yield from _masks(found, truth, list(gold), list(classes), iou, sizes)
    else:
        yield from _boxes(found, truth, list(gold), list(classes), iou)


def scores_of(rows: pa.Table) -> NDArray[np.float64]:
    return np.asarray(rows.column("score").to_numpy(), np.float64)


def _boxes(
    found: pa.Table, truth: pa.Table, gold: list[str], classes: list[str], iou: float
) -> Iterator[tuple[str, Answers]]:
    kind, there = schema.codes(found.column("class_name"), classes), schema.codes(truth.column("class_name"), classes)
    image, place = schema.codes(found.column("image_id"), gold), schema.codes(truth.column("image_id"), gold)
    ignore = _ignored(truth)
    score = scores_of(found)
    matches = match(
        image * (len(classes) + 1) + kind,
        schema.box_array(found),
        score,
        place * (len(classes) + 1) + there,
        schema.box_array(truth),
        ignore,
        np.array([iou]),
    )
    for number, name in enumerate(classes):
        mine = np.flatnonzero((kind == number) & ~matches.ignored[0])
        objects = np.bincount(place[(there == number) & ~ignore], minlength=len(gold))
        yield name, Answers(image[mine], score[mine], matches.right[0, mine], objects, mine)


def _tags(found: pa.Table, truth: pa.Table, gold: list[str], classes: list[str]) -> Iterator[tuple[str, Answers]]:
    actual = np.full(len(gold), -1, np.int64)
    actual[schema.codes(truth.column("image_id"), gold)] = schema.codes(truth.column("class_name"), classes)
    image, kind = schema.codes(found.column("image_id"), gold), schema.codes(found.column("class_name"), classes)
    score = scores_of(found)
    labelled = actual[image] >= 0
    for number, name in enumerate(classes):
        mine = np.flatnonzero((kind == number) & labelled)
        yield (
            name,
            Answers(image[mine], score[mine], actual[image[mine]] == number, (actual == number).astype(np.int64), mine),
        )


def _counts(found: pa.Table, truth: pa.Table, gold: list[str], classes: list[str]) -> Iterator[tuple[str, Answers]]:
    truth = truth.filter(pa.array(~_ignored(truth)))
    image, kind = schema.codes(found.column("image_id"), gold), schema.codes(found.column("class_name"), classes)
    place, there = schema.codes(truth.column("image_id"), gold), schema.codes(truth.column("class_name"), classes)
    said, score = found.column("count").to_numpy(), scores_of(found)
    for number, name in enumerate(classes):
        objects = np.bincount(place[there == number], minlength=len(gold))
        mine = np.flatnonzero(kind == number)
        right, asked = said[mine] == objects[image[mine]], np.ones(len(gold), np.int64)
        yield name, Answers(image[mine], score[mine], right, asked, mine)


def _masks(
    found: pa.Table,
    truth: pa.Table,
    gold: list[str],
    classes: list[str],
    iou: float,
    sizes: dict[str, tuple[int, int]],
) -> Iterator[tuple[str, Answers]]:
    found = found.filter(pc.is_valid(found.column("mask")))
    truth = truth.filter(pc.is_valid(truth.column("mask")))
    kind, there = schema.codes(found.column("class_name"), classes), schema.codes(truth.column("class_name"), classes)
    image, place = schema.codes(found.column("image_id"), gold), schema.codes(truth.column("image_id"), gold)
    drawn, people = found.column("mask").to_pylist(), truth.column("mask").to_pylist()
    score, ignore = scores_of(found), _ignored(truth)
    for number, name in enumerate(classes):
        mine, objects = np.flatnonzero(kind == number), np.flatnonzero(there == number)
        right, counts = np.zeros(len(mine), bool), np.ones(len(mine), bool)
        for where in np.unique(image[mine]):
            here = np.flatnonzero(image[mine] == where)
            here = here[np.argsort(-score[mine[here]], kind="stable")]
            theirs = objects[place[objects] == where]
            overlap = masks.iou([drawn[i] for i in mine[here]], [people[j] for j in theirs], *sizes[gold[where]])
            right[here], ignored = _greedy(overlap, ignore[theirs], iou)
            counts[here] = ~ignored
        real = objects[~ignore[objects]]
        of_image = np.bincount(place[real], minlength=len(gold))
        mine, right = mine[counts], right[counts]
        yield name, Answers(image[mine], score[mine], right, of_image, mine)


def _greedy(overlap: NDArray[np.float64], ignore: NDArray[np.bool_], least: float) -> tuple[Any, Any]:
    """Which of n answers, best first, are right, and which fall into an ignore region; of (n, k) overlaps."""
    right, ignored = np.zeros(len(overlap), bool), np.zeros(len(overlap), bool)
    free = ~ignore
    for i, row in enumerate(overlap):
        best = int(np.argmax(np.where(free, row, -1.0))) if free.any() else -1
        if best >= 0 and row[best] >= least:
            right[i], free[best] = True, False
        else:
            ignored[i] = bool((row[ignore] >= least).any())
    return right, ignored


def _ignored(truth: pa.Table) -> NDArray[np.bool_]:
    either = pc.or_(truth.column("ignore"), truth.column("is_crowd"))
    return np.asarray(either.to_numpy(zero_copy_only=False), bool)


def _sizes(images: pa.Table) -> dict[str, tuple[int, int]]:
    columns = (images.column(c).to_pylist() for c in ("image_id", "height", "width"))
    return {image: (height, width) for image, height, width in zip(*columns, strict=True)}
