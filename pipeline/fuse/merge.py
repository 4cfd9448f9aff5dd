"""Several labellers' answers become one: before grading and before labelling, and by the same rule.

A certificate speaks for what was graded. If labels were fused after grading, the union of what two
labellers were each certified for could hold more mistakes than either was allowed. So answers are fused
first, by a rule that looks at nothing but the answers, and what comes out is graded on gold and labelled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import ProjectConfig
from pipeline.fuse.answers import Skills, dawid_skene, votes
from pipeline.fuse.boxes import weighted_boxes
from pipeline.ids import producer
from pipeline.matching import suppress

COLUMNS = [c.name for c in schema.ANNOTATION]
Ints = NDArray[np.int64]


def merge(candidates: pa.Table, config: ProjectConfig, gold: pa.Table | None = None) -> pa.Table:
    """Annotation rows with a column `parts`: the ids of the answers behind each, its own first if it has one.

    Boxes of one class that overlap by more than `labelling.nms_iou` are one. With `labelling.fusion` nms the
    highest score wins and stays as it is, under its labeller's name; with wbf they become their weighted
    mean, of the producer `wbf`. Of tags, each labeller's best class counts, with its probability as score;
    with several labellers `labelling.agreement` decides: best (the surest answer), vote (score: share of the
    votes), or dawid_skene (score: probability, by labellers' skills learnt from their answers on gold).

    Args:
        candidates: detections, or tags. gold: tags on gold images; only dawid_skene needs them.
    """
    rows = scored(candidates)
    rows = schema.where_in(rows, "class_name", config.ontology.names).sort_by("annotation_id")
    several = len(rows.column("producer").unique()) > 1 or _labellers(config) > 1
    if config.task == "classification":
        rule = config.labelling.agreement
        return _best(rows) if rule == "best" or not several else _agreed(rows, config, gold)
    return _mean(rows, config) if config.labelling.fusion == "wbf" and several else _suppressed(rows, config)


def gradable(candidates: pa.Table, config: ProjectConfig, gold: pa.Table | None = None) -> pa.Table:
    """Annotation rows to grade: what `merge` makes, and where that has a new name, each labeller's own answers, too."""
    merged = merge(candidates, config, gold).select(COLUMNS)
    own = scored(candidates)
    new = set(merged.column("producer").to_pylist()) - set(own.column("producer").to_pylist())
    return pa.concat_tables([merged, own]) if new else merged


def scored(candidates: pa.Table) -> pa.Table:
    """Annotation rows; for tags the best class of each image, with its probability as score."""
    return schema.table("detections").conform(schema.best_classes(candidates).select(COLUMNS))


def places(values: pa.ChunkedArray) -> Ints:
    """(n,) place of each value in sorted order, equal ones alike."""
    return np.asarray(pc.rank(values, sort_keys="ascending", tiebreaker="dense").to_numpy(), np.int64)


def _labellers(config: ProjectConfig) -> int:
    return len(config.labelling.labellers)


def _suppressed(rows: pa.Table, config: ProjectConfig) -> pa.Table:
    order = np.argsort(-_scores(rows), kind="stable")
    leader = suppress(_groups(rows), schema.box_array(rows), order, config.labelling.nms_iou)
    return _winners(rows, leader)


def _best(rows: pa.Table) -> pa.Table:
    """The surest answer of each image."""
    order = np.argsort(-_scores(rows), kind="stable")
    image = places(rows.column("image_id"))
    _, first, group = np.unique(image[order], return_index=True, return_inverse=True)
    leader = np.empty(len(image), np.int64)
    leader[order] = order[first][group] if len(order) else order
    return _winners(rows, leader)


def _winners(rows: pa.Table, leader: Ints) -> pa.Table:
    winners = np.flatnonzero(leader == np.arange(len(leader)))
    kept = rows.take(pa.array(winners))
    return kept.append_column("parts", _parts(rows, leader, winners))


def _parts(rows: pa.Table, leader: Ints, winners: Ints) -> pa.Array:
    """Ids of the rows behind each leader, its own first."""
    follows = leader != np.arange(len(leader))
    order = np.lexsort((np.arange(len(leader)), follows, leader))
    sizes = np.bincount(leader, minlength=len(leader))[winners] if len(leader) else np.zeros(0, np.int64)
    return _lists(rows.column("annotation_id").combine_chunks().take(pa.array(order)), sizes)


def _lists(values: pa.Array, sizes: Ints) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)), values)


def _mean(rows: pa.Table, config: ProjectConfig) -> pa.Table:
    labellers = max(_labellers(config), len(rows.column("producer").unique()))
    score = _scores(rows)
    fused = weighted_boxes(_groups(rows), schema.box_array(rows), score, labellers, config.labelling.nms_iou)
    order = np.lexsort((-score, fused.cluster))
    first = order[np.unique(fused.cluster[order], return_index=True)[1]] if len(order) else order
    best = rows.take(pa.array(first))
    cut = np.bincount(fused.cluster, rows.column("truncated").to_numpy(zero_copy_only=False), len(first)) > 0
    ids = rows.column("annotation_id").combine_chunks().take(pa.array(order))
    return _made(
        best,
        producer("wbf", "1", _names(config), config.labelling.nms_iou),
        fused.score,
        _lists(ids, np.bincount(fused.cluster, minlength=len(first))),
        boxes=fused.boxes,
        truncated=cut,
    )


def _agreed(rows: pa.Table, config: ProjectConfig, gold: pa.Table | None) -> pa.Table:
    rule, classes = config.labelling.agreement, config.ontology.names
    learnt_from = scored(gold) if gold is not None else rows.slice(0, 0)
    known = sorted({*rows.column("producer").to_pylist(), *learnt_from.column("producer").to_pylist()})
    images = sorted(set(rows.column("image_id").to_pylist()))
    item, labeller, answer = _coded(rows, images, known, classes)
    if rule == "vote":
        share = votes(item, answer, len(images), len(classes))
    else:
        share = _skills(learnt_from, known, classes).classes_of(item, labeller, answer, len(images))
    chosen = share.argmax(axis=1) if len(images) else np.zeros(0, np.int64)
    # The answer that said so stands for the others; where none did, the first one of the image.
    order = np.lexsort((np.arange(len(item)), answer != chosen[item], item))
    first = order[np.unique(item[order], return_index=True)[1]] if len(order) else order
    ids = rows.column("annotation_id").combine_chunks().take(pa.array(order))
    return _made(
        rows.take(pa.array(first)),
        producer(rule, "1", known, classes),
        share[np.arange(len(images)), chosen] if len(images) else np.zeros(0),
        _lists(ids, np.bincount(item, minlength=len(images))),
        classes=[classes[c] for c in chosen],
    )


def _skills(gold: pa.Table, labellers: list[str], classes: list[str]) -> Skills:
    gold = schema.where_in(gold, "class_name", classes)
    images = sorted(set(gold.column("image_id").to_pylist()))
    coded = _coded(gold, images, labellers, classes)
    return dawid_skene(*coded, len(images), len(labellers), len(classes))


def _coded(rows: pa.Table, images: list[str], labellers: list[str], classes: list[str]) -> tuple[Ints, Ints, Ints]:
    known = (("image_id", images), ("producer", labellers), ("class_name", classes))
    found = [pc.index_in(rows.column(name), pa.array(values, pa.string())) for name, values in known]
    item, labeller, answer = (f.to_numpy(zero_copy_only=False).astype(np.int64) for f in found)
    return item, labeller, answer


def _made(
    like: pa.Table,
    by: str,
    score: NDArray[np.float64],
    parts: pa.Array,
    boxes: NDArray[np.float64] | None = None,
    classes: list[str] | None = None,
    truncated: NDArray[np.bool_] | None = None,
) -> pa.Table:
    """New annotations, one for each row of `like`, whose image and batch they share."""
    extra: dict[str, Any] = {} if truncated is None else {"truncated": truncated}
    made = schema.annotations(
        "detections",
        image_ids=like.column("image_id").to_pylist(),
        batch=like.column("batch").to_pylist(),
        producer=by,
        classes=like.column("class_name").to_pylist() if classes is None else classes,
        boxes=boxes,
        scores=score,
        **extra,
    )
    return made.append_column("parts", parts)


def _names(config: ProjectConfig) -> list[str]:
    return [labeller.name for labeller in config.labelling.labellers]


def _scores(rows: pa.Table) -> NDArray[np.float64]:
    return np.asarray(rows.column("score").to_numpy(), np.float64)


def _groups(rows: pa.Table) -> Ints:
    """(n,) number of each row's image and class."""
    if not rows.num_rows:
        return np.zeros(0, np.int64)
    image, kind = places(rows.column("image_id")), places(rows.column("class_name"))
    return image * (kind.max() + 1) + kind
