"""Every miss and false alarm on held-out images: what it costs, what it is near to, what may have caused it.

The kinds of error are those of TIDE (Bolya et al. 2020), each detection having one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import masks as rle
from pipeline import schema, tide
from pipeline.boxes import area
from pipeline.config import ProjectConfig
from pipeline.matching import pairs

SMALL = 32.0**2  # COCO's small: square pixels
CROWDED = 0.1  # overlap with another object from which on a place is crowded
UNLIKE = 0.95  # quantile of distances among training images beyond which an image is unlike them
NEAREST = 5  # training images that are named
ABOUT_BOXES = ("overlooked", "badly_located", "swapped")  # label errors
_EDGE = 1.0  # pixels
_SAMPLE = 2000  # training images whose distances among each other are measured
_ROWS, _COLUMNS = 512, 32_768  # of a block of similarities

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
Columns = dict[str, Any]


def find(
    models: pa.Table,
    ground_truth: pa.Table,
    images: pa.Table,
    quality: pa.Table,
    splits: pa.Table,
    evaluation: pa.Table,
    label_errors: pa.Table,
    masks: pa.Table,
    ids: Sequence[str],
    vectors: NDArray[np.floating],
    config: ProjectConfig,
    producers: Iterable[str] = (),
) -> pa.Table:
    """The table `failures` for the labelled images of val and test.

    Args:
        models: annotations; `producer` is the model.
        evaluation: that table; its metric 'threshold' is where detectors are judged. A class
            without one has no detections, so all its objects are missed.
        label_errors: that table. A failure has the cause `label_error` where it would be none were the label as is
            suggested there: a wrong answer that says just that, or an object whose box, class or mask is doubted.
        masks: that table; those drawn in detections count.
        ids, vectors: n image ids and (n, d) unit vectors, those of training images included.
        producers: models that are judged even if they said nothing.

    Returns:
        For detection: objects that nothing found (`missed`), and TIDE's kinds of wrong detection:
        `localisation` (overlap 0.1 up to the project's), `classification`, `both` (beside an object of
        another class), `duplicate`, `background`. What a row costs is how much AP at the project's
        overlap would rise, within its split and among the detections at the operating threshold, were
        it alone mended. Where people and a segmenter drew masks, `outline`: an object was found, but the masks
        overlap by less than the project's overlap, which costs no AP of boxes. For classification: wrong
        classes, and images about which the model said nothing (`missed`); there the cost is in accuracy.
    """
    held = {split: _held_out(splits, split) for split in ("val", "test")}
    everything = sorted({*held["val"], *held["test"]})
    facts = _facts(images, quality, splits, ids, vectors, everything)
    order = [("suspicion", "descending"), ("model", "ascending"), ("annotation_id", "ascending")]
    doubts = schema.where_in(label_errors, "image_id", everything).sort_by(order)  # the first of several counts
    parts = [schema.table("failures").empty()]
    for model in sorted({*models.column("producer").unique().to_pylist(), *producers}):
        mine = models.filter(pc.equal(models.column("producer"), model))
        for names in held.values():
            if not names:
                continue
            said, truth = (schema.where_in(t, "image_id", names) for t in (mine, ground_truth))
            if config.task == "classification":
                parts.append(_wrong_classes(model, said, truth, facts, doubts))
            else:
                parts += _wrong_boxes(model, _accepted(said, evaluation, model), truth, masks, facts, doubts, config)
    return pa.concat_tables(parts)


def _held_out(splits: pa.Table, split: str) -> list[str]:
    wanted = pc.and_(pc.equal(splits.column("split"), split), splits.column("gold"))
    return sorted(splits.filter(wanted).column("image_id").unique().to_pylist())


def _accepted(said: pa.Table, evaluation: pa.Table, model: str) -> pa.Table:
    """Detections at or above their class's operating threshold."""
    mine = evaluation.filter(
        pc.and_(pc.equal(evaluation.column("model"), model), pc.equal(evaluation.column("metric"), "threshold"))
    )
    least = dict(zip(mine.column("class_name").to_pylist(), mine.column("value").to_pylist(), strict=True))
    names = said.column("class_name").to_pylist()
    needed = np.array([np.inf if least.get(n) is None else least[n] for n in names], np.float64)
    return said.filter(pa.array(said.column("score").to_numpy() >= needed))


# -- boxes ------------------------------------------------------------------------------------------


def _wrong_boxes(
    model: str,
    seen: pa.Table,
    truth: pa.Table,
    masks: pa.Table,
    facts: pa.Table,
    doubts: pa.Table,
    config: ProjectConfig,
) -> list[pa.Table]:
    classes = config.ontology.names
    seen, truth = (_boxed(t, classes) for t in (seen, truth))
    names = facts.column("image_id").to_pylist()
    image_s, image_t = _codes(seen, "image_id", names), _codes(truth, "image_id", names)
    kind_s, kind_t = _codes(seen, "class_name", classes), _codes(truth, "class_name", classes)
    boxes_s, boxes_t = schema.box_array(seen), schema.box_array(truth)
    score = seen.column("score").to_numpy().astype(np.float64)
    ignore = pc.or_(truth.column("ignore"), truth.column("is_crowd")).to_numpy(zero_copy_only=False).astype(bool)
    near = pairs(image_s, boxes_s, image_t, boxes_t, tide.NEAR, ignore)
    judged = tide.judge(image_s, kind_s, score, kind_t, ignore, near, len(classes), config.trust.iou)
    cost_s, cost_t = tide.single_costs(judged)
    wrong = np.flatnonzero((judged.error != tide.RIGHT) & ~judged.excused)
    missed = np.flatnonzero(~judged.found & ~ignore)
    taken_for = _named(judged.error == tide.CLASSIFICATION, near, ignore, kind_s, kind_t, config.trust.iou)
    real = np.flatnonzero(~ignore)
    objects = image_t[real], boxes_t[real]
    nearest = np.zeros(len(kind_t))
    alike = (kind_s[near[0]] == kind_t[near[1]]) & ~ignore[near[1]]
    np.maximum.at(nearest, near[1][alike], near[2][alike])
    outlined = schema.where_in(doubts, "error", ["badly_outlined"])
    doubts = schema.where_in(schema.where_in(doubts, "suggested", classes), "error", ABOUT_BOXES)
    suggested = _codes(doubts, "image_id", names) * len(classes) + _codes(doubts, "suggested", classes)
    at = _first_there(image_s * len(classes) + kind_s, boxes_s, suggested, schema.box_array(doubts), config.trust.iou)
    labels = doubts["annotation_id"].to_pylist()
    names_of = np.array([*classes, None], object)
    kinds = np.array(tide.KINDS, object)
    false_alarms: Columns = {
        "error": kinds[judged.error[wrong]],
        "score": score[wrong],
        "iou": np.maximum(judged.own, judged.other)[wrong],
        "cost": cost_s[wrong],
        "confused_with": names_of[taken_for[0][wrong]],
        "neighbours": _neighbours(image_s, boxes_s, *objects)[wrong],
        **_doubted(doubts, at[wrong]),
    }
    misses: Columns = {
        "error": np.full(len(missed), "missed", object),
        "score": None,
        "iou": nearest[missed],
        "cost": cost_t[missed],
        "confused_with": names_of[taken_for[1][missed]],
        "neighbours": _neighbours(image_t, boxes_t, *objects)[missed],
        **_doubted(doubts, _codes(truth, "annotation_id", labels)[missed]),
    }
    badly, overlap = _badly_drawn(seen, truth, judged.hit, masks, facts.take(pa.array(image_s)), config.trust.iou)
    object_of = truth.take(pa.array(judged.hit[badly]))
    outlines: Columns = {
        "error": np.full(len(badly), "outline", object),
        "score": score[badly],
        "iou": overlap,
        "confused_with": names_of[np.full(len(badly), -1)],
        "neighbours": _neighbours(image_s, boxes_s, *objects)[badly],
        **_doubted(outlined, _codes(object_of, "annotation_id", outlined["annotation_id"].to_pylist())),
    }
    return [
        _box_rows(model, seen.take(pa.array(wrong)), image_s[wrong], false_alarms, facts),
        _box_rows(model, truth.take(pa.array(missed)), image_t[missed], misses, facts),
        _box_rows(model, seen.take(pa.array(badly)), image_s[badly], outlines, facts),
    ]


def _badly_drawn(
    seen: pa.Table, truth: pa.Table, hit: Ints, masks: pa.Table, about: pa.Table, iou: float
) -> tuple[Ints, Floats]:
    """Detections that found an object, but whose mask overlaps people's by less than `iou`, and by how much."""
    drawn = schema.with_masks(seen, masks)
    at = _codes(drawn, "annotation_id", seen["annotation_id"].to_pylist())
    drawn, at = drawn.filter(pa.array(hit[at] >= 0)), at[hit[at] >= 0]
    theirs = truth["mask"].take(pa.array(hit[at])).to_pylist()
    sizes = zip(*(about[c].take(pa.array(at)).to_pylist() for c in ("height", "width")), strict=True)
    overlap = np.array(
        [
            1.0 if b is None else rle.iou([a], [b], *size)[0, 0]  # where people drew none, nothing is known
            for a, b, size in zip(drawn["mask"].to_pylist(), theirs, sizes, strict=True)
        ],
        np.float64,
    )
    return at[overlap < iou], overlap[overlap < iou]


def _boxed(rows: pa.Table, classes: list[str]) -> pa.Table:
    """Rows of known class that have a box, in a stable order."""
    known = schema.where_in(rows, "class_name", classes)
    return known.filter(pc.is_valid(known.column("x1")))


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


def _first_there(group: Ints, boxes: Floats, others: Ints, their_boxes: Floats, iou: float) -> Ints:
    """(n,) first of other boxes in the same group that overlaps each by `iou`, -1 for none."""
    i, j, _ = pairs(group, boxes, others, their_boxes, iou)
    none = len(others)
    first = np.full(len(group), none, np.int64)
    np.minimum.at(first, i, j)
    return np.where(first < none, first, -1)


def _doubted(doubts: pa.Table, at: Ints) -> Columns:
    """How strong the doubts at (n,) rows are, and whose; null where there is none, -1."""
    rows = doubts.select(["suspicion", "model"]).take(pa.array(at, mask=at < 0))
    return {"suspicion": rows["suspicion"].to_pylist(), "doubted_by": rows["model"].to_pylist()}


def _neighbours(image: Ints, boxes: Floats, others: Ints, their_boxes: Floats) -> Ints:
    """(n,) how many objects besides the one in question overlap each box."""
    i, _, _ = pairs(image, boxes, others, their_boxes, CROWDED)
    return np.maximum(np.bincount(i, minlength=len(image)) - 1, 0)


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
    return _table(model, rows, {**columns, "area": size}, evidence, about)


def _table(model: str, rows: pa.Table, columns: Columns, evidence: Mapping[str, Flags], about: pa.Table) -> pa.Table:
    """Rows of `failures`: annotations, what is said of each, and the facts `about` its image."""
    flags = {
        **evidence,
        "confused": np.array([name is not None for name in columns["confused_with"]], bool),
        "label_error": np.array([name is not None for name in columns["doubted_by"]], bool),
        **{name: _flags(about, name) for name in ("dark", "blurry", "unlike_training")},
    }
    given = {k: pa.array(v, from_pandas=True) for k, v in columns.items() if v is not None}
    kept = ("image_id", "batch", "annotation_id", "class_name", *schema.CORNERS)
    facts = ("brightness", "sharpness", "distance", "nearest")
    return schema.table("failures").from_columns(
        {
            "model": pa.array([model] * rows.num_rows, pa.string()),
            **{k: rows.column(k) for k in kept},
            **{k: about.column(k) for k in facts},
            **given,
            "causes": _lists(flags),
        }
    )


def _flags(rows: pa.Table, name: str) -> Flags:
    return np.asarray(rows.column(name).to_numpy(zero_copy_only=False), bool)


def _lists(flags: Mapping[str, Flags]) -> pa.Array:
    """(n,) lists of the names that hold."""
    table = np.stack(list(flags.values()), axis=1)
    _, which = np.nonzero(table)
    offsets = np.concatenate([[0], np.cumsum(table.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.array(list(flags), object)[which], pa.string()))


# -- classes ----------------------------------------------------------------------------------------


def _wrong_classes(model: str, said: pa.Table, truth: pa.Table, facts: pa.Table, doubts: pa.Table) -> pa.Table:
    best: dict[str, dict[str, Any]] = {}
    for row in said.sort_by([("score", "descending"), ("annotation_id", "ascending")]).to_pylist():
        best.setdefault(row["image_id"], row)
    actual = {row["image_id"]: row for row in reversed(truth.to_pylist())}
    wrong = [
        (person, best.get(image))
        for image, person in sorted(actual.items())
        if image not in best or best[image]["class_name"] != person["class_name"]
    ]
    rows = [{**person, "annotation_id": (answer or person)["annotation_id"]} for person, answer in wrong]
    table = pa.Table.from_pylist(rows, schema=truth.schema)
    labels, suggested = (doubts[c].to_pylist() for c in ("annotation_id", "suggested"))
    first = {pair: k for k, pair in reversed([*enumerate(zip(labels, suggested, strict=True))])}
    doubted = [
        first.get((person["annotation_id"], answer["class_name"]), -1) if answer else -1 for person, answer in wrong
    ]
    columns: Columns = {
        "error": np.array(["classification" if answer else "missed" for _, answer in wrong], object),
        "score": np.array([answer["score"] if answer else np.nan for _, answer in wrong], np.float64),
        "confused_with": np.array([answer["class_name"] if answer else None for _, answer in wrong], object),
        "cost": np.full(len(wrong), 1 / max(1, len(actual))),
        **_doubted(doubts, np.array(doubted, np.int64)),
    }
    places = _codes(table, "image_id", facts.column("image_id").to_pylist())
    return _table(model, table, columns, {}, facts.take(pa.array(places)))


# -- evidence about images --------------------------------------------------------------------------


def _facts(
    images: pa.Table,
    quality: pa.Table,
    splits: pa.Table,
    ids: Sequence[str],
    vectors: NDArray[np.floating],
    held: list[str],
) -> pa.Table:
    """A row for each held-out image: its size, brightness and sharpness, and the training images most like it."""
    place = {
        name: pc.index_in(pa.array(held, pa.string()), t["image_id"].combine_chunks())
        for name, t in (("images", images), ("quality", quality))
    }
    measured = quality.take(place["quality"])
    issues = [found or [] for found in measured.column("issues").to_pylist()]
    sizes = images.take(place["images"])
    return pa.table(
        {
            "image_id": pa.array(held, pa.string()),
            "width": sizes.column("width"),
            "height": sizes.column("height"),
            "brightness": measured.column("brightness"),
            "sharpness": measured.column("sharpness"),
            "dark": pa.array(["dark" in found for found in issues], pa.bool_()),
            "blurry": pa.array(["blurry" in found for found in issues], pa.bool_()),
            **_training_like(splits, ids, vectors, held),
        }
    )


def _training_like(
    splits: pa.Table, ids: Sequence[str], vectors: NDArray[np.floating], held: list[str]
) -> dict[str, pa.Array]:
    """The nearest training images of each held-out one, the cosine distance of the first, and whether that is unusual.

    Unusual: farther than 95 % of the training images (a sample of them) are from their own nearest.
    """
    train = set(splits.filter(pc.equal(splits.column("split"), "train")).column("image_id").to_pylist())
    known = [i for i, name in enumerate(ids) if name in train]
    place = {name: i for i, name in enumerate(ids)}
    asked = [k for k, name in enumerate(held) if name in place]
    nearest: list[list[str] | None] = [None] * len(held)
    distance, unlike = np.full(len(held), np.nan), np.zeros(len(held), bool)
    if len(known) >= 2 and asked:
        points = np.asarray(vectors, np.float32)
        reference = points[known]
        which, similarity = _most_similar(points[[place[held[k]] for k in asked]], reference, NEAREST)
        sample = np.linspace(0, len(known) - 1, min(len(known), _SAMPLE)).astype(np.int64)
        _, among = _most_similar(reference[sample], reference, 2)  # the first is itself
        distance[asked] = 1 - similarity[:, 0]
        unlike[asked] = distance[asked] > np.quantile(1 - among[:, 1], UNLIKE)
        for k, row in zip(asked, which, strict=True):
            nearest[k] = [ids[known[r]] for r in row]
    return {
        "distance": pa.array(distance, from_pandas=True),
        "unlike_training": pa.array(unlike),
        "nearest": pa.array(nearest, pa.list_(pa.string())),
    }


def _most_similar(
    points: NDArray[np.float32], reference: NDArray[np.float32], count: int
) -> tuple[Ints, NDArray[np.float32]]:
    """(n, count) rows of `reference` most similar to each of (n, d) unit vectors, best first, and the cosines."""
    count = min(count, len(reference))
    rows, cosines = [], []
    for low in range(0, len(points), _ROWS):
        block = points[low : low + _ROWS]
        best, which = np.full((len(block), 0), 0, np.float32), np.zeros((len(block), 0), np.int64)
        for start in range(0, len(reference), _COLUMNS):
            found = block @ reference[start : start + _COLUMNS].T
            numbers = np.broadcast_to(np.arange(start, start + found.shape[1]), found.shape)
            found, numbers = np.concatenate([best, found], axis=1), np.concatenate([which, numbers], axis=1)
            if count < found.shape[1]:
                top = np.argpartition(-found, count - 1, axis=1)[:, :count]
                found, numbers = np.take_along_axis(found, top, 1), np.take_along_axis(numbers, top, 1)
            order = np.argsort(-found, axis=1, kind="stable")
            best, which = np.take_along_axis(found, order, 1), np.take_along_axis(numbers, order, 1)
        rows.append(which)
        cosines.append(best)
    return np.concatenate(rows), np.concatenate(cosines)


def _codes(rows: pa.Table, column: str, known: Sequence[str]) -> Ints:
    found = pc.index_in(rows.column(column), pa.array(known, pa.string()))
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)
