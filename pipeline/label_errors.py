"""Which labels of people are probably wrong, by what models say that never learnt from them.

Classes of images: confident learning (Northcutt, Jiang & Chuang 2021), by the package cleanlab. Boxes: the three kinds
of ObjectLab (Tkachenko, Thyagarajan & Mueller 2023), but a detection counts by the share of its class that is right at
its score (isotonic regression), so that only the order of scores matters, and each object is judged by itself. Masks:
those that differ from a model's by more than its masks of that score usually do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import calibration, ids, schema
from pipeline import masks as rle
from pipeline.boxes import Boxes
from pipeline.matching import match, pairs
from pipeline.models.probe import Embeddings
from pipeline.train import probe

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


def find_boxes(
    models: pa.Table,
    masks: pa.Table,
    ground_truth: pa.Table,
    images: pa.Table,
    splits: pa.Table,
    trained: Iterable[str],
    classes: Sequence[str],
    iou: float = 0.5,
) -> pa.Table:
    """The table `label_errors`: boxes and masks of people, and places without any, which a model contradicts.

    No prediction is used that was learnt from the label it judges. Foundation models learnt from none, so they judge
    all splits; trained models judge val and test.

    Args:
        models: annotations; `producer` is the model.
        masks: those that segmenters drew in people's own boxes count, by annotation_id.
        images: rows of `images`, for the masks' sizes.
        trained: producers that learnt from the split train.
        iou: overlap from which on a detection is right.
    """
    learnt = set(trained)
    parts = [_wrong_boxes(*said, classes, iou) for said in _judged(models, ground_truth, splits, learnt)]
    found = pa.concat_tables([schema.table("label_errors").empty(), *parts])
    # A mask in a box that is wrong itself is not doubted a second time.
    misplaced = found.filter(pc.equal(found["error"], "badly_located"))["annotation_id"].combine_chunks()
    placed = ground_truth.filter(pc.invert(pc.is_in(ground_truth["annotation_id"], misplaced)))
    parts = [_wrong_masks(*said, images, classes) for said in _judged(masks, placed, splits, learnt)]
    return pa.concat_tables([found, *parts])


def find_classes(
    tags: pa.Table,
    ground_truth: pa.Table,
    splits: pa.Table,
    classes: Sequence[str],
    embeddings: Embeddings,
    groups: Mapping[str, str],
) -> pa.Table:
    """The table `label_errors`: classes that people gave to images which probably are others.

    Judges are zero-shot tags, which learnt from no label, and a linear probe on stored vectors, out of fold. The one
    that agrees with people on more of the images judges alone, for confident learning supposes a good judge: one that
    knows little of the subject doubts right labels.

    Args:
        embeddings: vectors of labelled images. groups: of each image, those that may be of one thing: a probe does
            not learn from the image it judges, nor from another of its group.
    """
    gold = splits.filter(splits["gold"])["image_id"].unique().to_pylist()
    truth = _with_one_class(schema.where_in(ground_truth, "image_id", gold), classes)
    judges = [_zero_shot(model, tags, truth, classes) for model in sorted(tags["producer"].unique().to_pylist())]
    judges.append(_out_of_fold(truth, classes, embeddings, groups))
    best = max(judges, key=_Judge.agreements)
    return _doubted_classes(best, classes)


def _judged(
    said: pa.Table, ground_truth: pa.Table, splits: pa.Table, learnt: Collection[str]
) -> Iterator[tuple[str, pa.Table, pa.Table]]:
    """Each producer of `said`, what it said, and people's labels, of the images that it may judge."""
    gold = splits.filter(splits.column("gold"))
    held = gold.filter(pc.not_equal(gold.column("split"), "train"))
    for model in sorted(said.column("producer").unique().to_pylist()):
        names = (held if model in learnt else gold).column("image_id").unique().to_pylist()
        mine = said.filter(pc.equal(said.column("producer"), model))
        yield model, schema.where_in(mine, "image_id", names), schema.where_in(ground_truth, "image_id", names)


def wrong_classes(actual: Ints, probabilities: Floats) -> Flags:
    """(n,) whether the class of an image is probably wrong: cleanlab's set, pruned by noise rate.

    Args:
        actual: (n,) class numbers that people gave. probabilities: (n, classes), of models that did not learn them.
    """
    from cleanlab.filter import find_label_issues

    present = np.unique(actual)
    if len(present) < 2:
        return np.zeros(len(actual), bool)
    if len(present) == probabilities.shape[1]:
        return np.asarray(find_label_issues(actual, probabilities, n_jobs=1), bool)
    # A class that nobody gave has no noise rate; cleanlab counts from 0 without a gap.
    given = probabilities[:, present]
    given /= np.maximum(given.sum(axis=1, keepdims=True), 1e-12)
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


def badly_outlined(beyond: Floats, short: Floats, score: Floats) -> Floats:
    """(n,) suspicion that people's masks are wrong, by a model's masks of the same objects.

    Of people's right masks at most the share `usual / apart` differs from the model's by `apart` or more, if they
    differ by `usual` on average (Markov's inequality); the rest of 1 speaks against a mask. What is usual is learnt for
    each score (isotonic regression), and for what people have beyond the model's mask and fall short of it apart: a
    model that often leaves out a part doubts nobody who has it, but who lacks even more. It counts by the mean overlap
    of masks of its score; as far as it counts for nothing, a mask is as suspicious as the others are on average.

    Args:
        beyond, short: (n,) what only people's mask has, and only the model's, as shares of what either has.
        score: (n,) the model's own estimates of its masks; only their order matters.
    """
    if not len(score):
        return np.zeros(0)
    worth = calibration.isotonic(score, 1 - beyond - short)(score)
    against = np.maximum(_unusual(beyond, score), _unusual(short, score))
    mean = (worth * against).sum() / max(worth.sum(), 1e-12)
    return np.asarray(worth * against + (1 - worth) * mean, np.float64)


def _unusual(apart: Floats, score: Floats) -> Floats:
    usual = 1 - calibration.isotonic(score, 1 - apart)(score)
    return 1 - np.divide(usual, apart, out=np.ones_like(apart), where=apart > usual)


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


def _wrong_masks(model: str, said: pa.Table, truth: pa.Table, images: pa.Table, classes: Sequence[str]) -> pa.Table:
    """Masks of people against those that a segmenter drew in the same boxes; crowds and ignore regions are left out."""
    aside = pc.or_(truth["ignore"], truth["is_crowd"])
    truth = schema.where_in(truth.filter(pc.and_(pc.is_valid(truth["mask"]), pc.invert(aside))), "class_name", classes)
    place = pc.index_in(truth["annotation_id"], said["annotation_id"].combine_chunks())
    truth, said = truth.filter(pc.is_valid(place)), said.take(place.drop_null())
    sizes = images.take(pc.index_in(truth["image_id"], images["image_id"].combine_chunks()))
    shapes = list(zip(sizes["height"].to_pylist(), sizes["width"].to_pylist(), strict=True))
    drawn, seen = truth["mask"].to_pylist(), said["mask"].to_pylist()
    beyond, short = _apart(drawn, seen, shapes)
    suspicion = badly_outlined(beyond, short, said["score"].to_numpy().astype(np.float64))
    listed = np.flatnonzero(suspicion >= LEAST)
    about, proof = truth.take(pa.array(listed)), said.take(pa.array(listed))
    corners = np.array([rle.box(seen[i], *shapes[i]) for i in listed]).reshape(-1, 4)
    columns = {c: about.column(c) for c in ("image_id", "batch", "annotation_id", "class_name")}
    columns |= {"score": proof["score"], "mask": proof["mask"], "suggested": about["class_name"]}
    columns |= dict(zip(schema.CORNERS, corners.T, strict=True))
    columns |= {"model": [model] * len(listed), "error": ["badly_outlined"] * len(listed)}
    columns |= {"suspicion": suspicion[listed]}
    return schema.table("label_errors").from_columns(columns)


def _apart(drawn: Sequence[str], seen: Sequence[str], shapes: Sequence[tuple[int, int]]) -> tuple[Floats, Floats]:
    """(n,) what only the first of two masks has, and only the second, as shares of their union."""
    overlap = np.array([rle.iou([a], [b], *s)[0, 0] for a, b, s in zip(drawn, seen, shapes, strict=True)], np.float64)
    area = np.array([[rle.area(c) for c in counts] for counts in (drawn, seen)], np.float64)
    common = overlap * area.sum(axis=0) / (1 + overlap)
    first, second = (area - common) / np.maximum(area.sum(axis=0) - common, 1)
    return first, second


def _read(rows: pa.Table, images: Sequence[str], classes: Sequence[str]) -> tuple[pa.Table, Found]:
    """The rows that have a box and a known class, in an order of their own."""
    rows = schema.where_in(rows.filter(pc.is_valid(rows.column("x1"))), "class_name", classes).sort_by("annotation_id")
    image, kind = (
        pc.index_in(rows.column(name), pa.array(known, pa.string())).to_numpy().astype(np.int64)
        for name, known in (("image_id", images), ("class_name", list(classes)))
    )
    ignore = pc.or_(rows.column("ignore"), rows.column("is_crowd")).to_numpy().astype(bool)
    return rows, Found(image, kind, schema.box_array(rows), rows.column("score").to_numpy().astype(np.float64), ignore)


@dataclass(frozen=True)
class _Judge:
    """Labels of n images with one class each, (n,) numbers of the classes, and a model's (n, classes) probabilities."""

    model: str
    truth: pa.Table
    actual: Ints
    probabilities: Floats

    @classmethod
    def of(cls, model: str, truth: pa.Table, probabilities: Floats, classes: Sequence[str]) -> _Judge:
        """Images without a probability are left out."""
        known = probabilities.sum(axis=1) > 0
        truth = truth.filter(pa.array(known))
        return cls(model, truth, schema.codes(truth["class_name"], classes), probabilities[known])

    def agreements(self) -> int:
        """Images of which the model names people's class first; those that it does not speak of are none."""
        return int((self.probabilities.argmax(axis=1) == self.actual).sum())


def _with_one_class(truth: pa.Table, classes: Sequence[str]) -> pa.Table:
    """Labels of images with exactly one; those with several are passed over."""
    truth = schema.where_in(truth, "class_name", classes).sort_by("image_id")
    names = np.asarray(truth["image_id"].to_pylist(), str)
    _, first, counts = np.unique(names, return_index=True, return_counts=True)
    return truth.take(pa.array(first[counts == 1]))


def _zero_shot(model: str, tags: pa.Table, truth: pa.Table, classes: Sequence[str]) -> _Judge:
    mine = schema.where_in(tags.filter(pc.equal(tags["producer"], model)), "class_name", classes)
    mine = schema.where_in(mine, "image_id", truth["image_id"].to_pylist())
    image, kind = schema.codes(mine["image_id"], truth["image_id"]), schema.codes(mine["class_name"], classes)
    probabilities = np.zeros((truth.num_rows, len(classes)))
    probabilities[image, kind] = mine["probability"].to_numpy()
    return _Judge.of(model, truth, probabilities, classes)


def _out_of_fold(truth: pa.Table, classes: Sequence[str], embeddings: Embeddings, groups: Mapping[str, str]) -> _Judge:
    found, vectors = embeddings.of(truth["image_id"].to_pylist())
    truth = schema.where_in(truth, "image_id", found)
    labels = np.asarray(truth["class_name"].to_pylist(), str)
    draw = ids.seed("out of fold")
    said = probe.out_of_fold(
        probe.Labelled(vectors, labels), [groups[image] for image in found], embeddings.encoder, draw
    )
    probabilities = np.zeros((len(found), len(classes)))
    probabilities[:, [list(classes).index(name) for name in np.unique(labels)]] = np.nan_to_num(said)
    return _Judge.of(ids.producer("out_of_fold_probe", "1", embeddings.encoder), truth, probabilities, classes)


def _doubted_classes(judge: _Judge, classes: Sequence[str]) -> pa.Table:
    listed = np.flatnonzero(wrong_classes(judge.actual, judge.probabilities))
    about, shares = judge.truth.take(pa.array(listed)), judge.probabilities[listed]
    best = shares.argmax(axis=1)
    columns = {c: about.column(c) for c in ("image_id", "batch", "annotation_id", "class_name")}
    columns |= {"model": [judge.model] * len(listed), "error": ["class"] * len(listed)}
    columns |= {"suggested": [classes[k] for k in best], "score": shares[np.arange(len(best)), best]}
    columns |= {"suspicion": 1 - shares[np.arange(len(best)), judge.actual[listed]]}
    return schema.table("label_errors").from_columns(columns)
