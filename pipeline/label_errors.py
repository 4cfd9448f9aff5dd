"""Which labels of people are probably wrong, by what models say that never learnt from them.

Classes of images: confident learning (Northcutt, Jiang & Chuang 2021), by the package cleanlab. Boxes: the three kinds
of ObjectLab (Tkachenko, Thyagarajan & Mueller 2023), but a detection counts by the share of its class that is right at
its score (isotonic regression), so that only the order of scores matters, and each object is judged by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import calibration, schema
from pipeline.boxes import Boxes
from pipeline.matching import match, pairs

LEAST = 0.5  # suspicion from which on a box is listed: the label is wrong more likely than not
_NEAR = 0.1  # overlap from which on a detection may mean an object, as in TIDE

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """Boxes of n rows: (n,) image and class numbers, (n, 4) xyxy, (n,) scores, (n,) crowds and ignore regions."""

    image: Ints
    kind: Ints
    boxes: Boxes
    score: Floats
    ignore: Flags


@dataclass(frozen=True)
class Suspicions:
    """In [0, 1], 0 for none; and the detection that speaks against an object, -1 for none.

    Attributes:
        overlooked: (n,) that a detection is an object that people did not draw.
        located, located_by: (m,) that an object lies elsewhere, and where.
        swapped, swapped_by: (m,) that an object is of another class, and of which.
    """

    overlooked: Floats
    located: Floats
    located_by: Ints
    swapped: Floats
    swapped_by: Ints


def find(
    models: pa.Table,
    tags: pa.Table,
    ground_truth: pa.Table,
    splits: pa.Table,
    trained: Iterable[str],
    classes: Sequence[str],
    task: str,
    iou: float = 0.5,
) -> pa.Table:
    """The table `label_errors`: the labels of images that people labelled which a model contradicts.

    No prediction is used that was learnt from the label it judges. Foundation models learnt from none, so they judge
    all splits; trained models judge val and test. Nothing is trained out of fold for this.

    Args:
        models: annotations; `producer` is the model. For classification only `tags` counts, as confident learning
            needs the probability of every class.
        trained: producers that learnt from the split train.
        iou: overlap from which on a detection is right.
    """
    learnt = set(trained)
    gold = splits.filter(splits.column("gold"))
    held = gold.filter(pc.not_equal(gold.column("split"), "train"))
    said = tags if task == "classification" else models
    parts = [schema.table("label_errors").empty()]
    for model in sorted(said.column("producer").unique().to_pylist()):
        images = (held if model in learnt else gold).column("image_id").unique().to_pylist()
        mine = schema.where_in(said.filter(pc.equal(said.column("producer"), model)), "image_id", images)
        truth = schema.where_in(ground_truth, "image_id", images)
        if task == "classification":
            parts.append(_wrong_classes(model, mine, truth, classes))
        else:
            parts.append(_wrong_boxes(model, mine, truth, classes, iou))
    return pa.concat_tables(parts)


def wrong_classes(actual: Ints, probabilities: Floats) -> Flags:
    """(n,) whether the class of an image is probably wrong: cleanlab's set, pruned by noise rate.

    Args:
        actual: (n,) class numbers that people gave. probabilities: (n, classes), of models that did not learn them.
    """
    from cleanlab.filter import find_label_issues

    present = np.unique(actual)
    if len(present) < 2:
        return np.zeros(len(actual), bool)
    # A class that nobody gave has no noise rate; cleanlab counts from 0 without a gap.
    given = probabilities[:, present]
    given = given / np.maximum(given.sum(axis=1, keepdims=True), 1e-12)
    return np.asarray(find_label_issues(np.searchsorted(present, actual), given, n_jobs=1), bool)


def suspicions(seen: Found, truth: Found, iou: float) -> Suspicions:
    """What detections say against objects.

    A detection counts by `p`, the share of detections of its class with its score that find an object. It speaks for
    the object that it overlaps most. Overlooked: p times the free part of its place. Badly located: p of the detection
    that means the object, times what they do not share. Swapped: p of the best detection of another class at the
    object's place, unless one of its own class is there: times 1 - p of that. An object of which no detection speaks
    is as suspicious as the mean of the others: nothing is known of it, while most others were seen to be right.
    """
    p, matched = _worth(seen, truth, iou)
    i, j, overlap = pairs(seen.image, seen.boxes, truth.image, truth.boxes, _NEAR, truth.ignore)
    same, firm = seen.kind[i] == truth.kind[j], ~truth.ignore[j]

    meant = _best(i, overlap, firm, len(p))  # the pair in which a detection means an object
    means = _among(meant, len(i))
    by = _best(j, p[i] * overlap, means, len(truth.kind))
    located, located_by = _against(by, p[i] * (1 - overlap), i)
    there = means & (overlap >= iou)
    other, swapped_by = _against(_best(j, p[i], there & ~same, len(truth.kind)), p[i], i)
    own, own_by = _against(_best(j, p[i], there & same, len(truth.kind)), p[i], i)
    located = _unknown_as_usual(located, located_by >= 0, truth.ignore)
    swapped = _unknown_as_usual(other * (1 - own), (swapped_by >= 0) | (own_by >= 0), truth.ignore)

    taken = np.zeros(len(p))
    np.maximum.at(taken, i, overlap)
    moved = meant >= 0  # it says where an object is that nothing else found
    moved[moved] = same[meant[moved]] & ~matched[j[meant[moved]]]
    overlooked = np.where((taken >= iou) | moved, 0.0, p * (1 - taken))
    return Suspicions(overlooked, located, located_by, swapped, swapped_by)


def _worth(seen: Found, truth: Found, iou: float) -> tuple[Floats, Flags]:
    """(n,) share of detections that are right at each one's score, class by class, and (m,) objects that were found."""
    classes = int(max(seen.kind.max(initial=0), truth.kind.max(initial=0))) + 1
    groups = (o.image * classes + o.kind for o in (seen, truth))
    group, truth_group = groups
    matches = match(group, seen.boxes, seen.score, truth_group, truth.boxes, truth.ignore, np.array([iou]))
    p = np.zeros(len(seen.score))
    for kind in np.unique(seen.kind):
        mine = seen.kind == kind
        judged = mine & ~matches.ignored[0]
        if judged.any():
            p[mine] = calibration.fit("isotonic", seen.score[judged], matches.right[0][judged])(seen.score[mine])
    return p, matches.found[0]


def _best(group: Ints, value: Floats, allowed: Flags, groups: int) -> Ints:
    """(groups,) row with the largest value in each group, the first of equals; -1 where none is allowed."""
    rows = np.flatnonzero(allowed)
    rows = rows[np.lexsort((-rows, value[rows]))]
    best = np.full(groups, -1, np.int64)
    best[group[rows]] = rows  # the last one written stays
    return best


def _unknown_as_usual(suspicion: Floats, known: Flags, ignore: Flags) -> Floats:
    usual = float(suspicion[known].mean()) if known.any() else 0.0
    return np.where(ignore, 0.0, np.where(known, suspicion, usual))


def _among(rows: Ints, count: int) -> Flags:
    chosen = np.zeros(count, bool)
    chosen[rows[rows >= 0]] = True
    return chosen


def _against(rows: Ints, value: Floats, detection: Ints) -> tuple[Floats, Ints]:
    """Value and detection of each object's pair; 0 and -1 where there is none."""
    some = rows >= 0
    values, by = np.zeros(len(rows)), np.full(len(rows), -1, np.int64)
    values[some], by[some] = value[rows[some]], detection[rows[some]]
    return values, by


def _wrong_boxes(model: str, said: pa.Table, truth: pa.Table, classes: Sequence[str], iou: float) -> pa.Table:
    images = sorted({*said.column("image_id").to_pylist(), *truth.column("image_id").to_pylist()})
    (said, seen), (truth, drawn) = (_read(t, images, classes) for t in (said, truth))
    s = suspicions(seen, drawn, iou)
    everything = np.arange(len(seen.score))
    parts = []
    for error, rows, values, by in (
        ("overlooked", said, s.overlooked, everything),
        ("badly_located", truth, s.located, s.located_by),
        ("swapped", truth, s.swapped, s.swapped_by),
    ):
        listed = np.flatnonzero((values >= LEAST) & (by >= 0))
        about, proof = rows.take(pa.array(listed)), said.take(pa.array(by[listed]))
        columns = {c: about.column(c) for c in ("image_id", "batch", "annotation_id", "class_name")}
        columns |= {c: proof.column(c) for c in ("score", *schema.CORNERS)}
        columns |= {"suggested": proof.column("class_name"), "suspicion": values[listed]}
        columns |= {name: [value] * len(listed) for name, value in (("model", model), ("error", error))}
        parts.append(schema.table("label_errors").from_columns(columns))
    return pa.concat_tables(parts)


def _read(rows: pa.Table, images: Sequence[str], classes: Sequence[str]) -> tuple[pa.Table, Found]:
    """The rows that have a box and a known class, in an order of their own."""
    rows = schema.where_in(rows.filter(pc.is_valid(rows.column("x1"))), "class_name", classes).sort_by("annotation_id")
    image, kind = (
        pc.index_in(rows.column(name), pa.array(known, pa.string())).to_numpy().astype(np.int64)
        for name, known in (("image_id", images), ("class_name", list(classes)))
    )
    ignore = pc.or_(rows.column("ignore"), rows.column("is_crowd")).to_numpy().astype(bool)
    return rows, Found(image, kind, schema.box_array(rows), rows.column("score").to_numpy().astype(np.float64), ignore)


def _wrong_classes(model: str, tags: pa.Table, truth: pa.Table, classes: Sequence[str]) -> pa.Table:
    """Images with exactly one class; those with several are passed over."""
    truth = schema.where_in(truth, "class_name", classes).sort_by("image_id")
    names, first, counts = np.unique(
        np.asarray(truth.column("image_id").to_pylist(), str), return_index=True, return_counts=True
    )
    tags = schema.where_in(tags, "class_name", classes)
    image, kind = (
        pc.index_in(tags.column(name), pa.array(known, pa.string())).to_numpy(zero_copy_only=False)
        for name, known in (("image_id", names.tolist()), ("class_name", list(classes)))
    )
    known = ~np.isnan(np.asarray(image, np.float64))
    probabilities = np.zeros((len(names), len(classes)))
    probabilities[image[known].astype(int), kind[known].astype(int)] = tags.column("probability").to_numpy()[known]
    usable = (counts == 1) & (probabilities.sum(axis=1) > 0)
    truth, probabilities = truth.take(pa.array(first[usable])), probabilities[usable]
    actual = pc.index_in(truth.column("class_name"), pa.array(list(classes))).to_numpy().astype(np.int64)
    listed = np.flatnonzero(wrong_classes(actual, probabilities))
    about, shares = truth.take(pa.array(listed)), probabilities[listed]
    best = shares.argmax(axis=1)
    columns = {c: about.column(c) for c in ("image_id", "batch", "annotation_id", "class_name")}
    columns |= {"model": [model] * len(listed), "error": ["class"] * len(listed)}
    columns |= {"suggested": [classes[k] for k in best], "score": shares[np.arange(len(best)), best]}
    columns |= {"suspicion": 1 - shares[np.arange(len(best)), actual[listed]]}
    return schema.table("label_errors").from_columns(columns)
