"""The labels of a batch: people win, then what a certificate covers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import ProjectConfig
from pipeline.fuse.merge import COLUMNS, merge, places
from pipeline.fuse.terms import Standing, Terms
from pipeline.fuse.witness import Witness, Words, heard


def label_batch(
    candidates: pa.Table,
    masks: pa.Table,
    trust: pa.Table,
    ground_truth: pa.Table,
    annotated: Iterable[str],
    images: pa.Table,
    config: ProjectConfig,
    standing: Standing | None = None,
    gold_tags: pa.Table | None = None,
    verifier_trust: pa.Table | None = None,
    verifications: pa.Table | None = None,
) -> pa.Table:
    """The labels of one batch.

    Args:
        candidates: the batch's detections, or its tags for classification.
        masks: the batch's masks of those detections; may be empty.
        trust: certificates of each producer, class and slice. Without one, nothing is accepted.
        ground_truth: the batch's boxes or classes from people.
        annotated: images that people labelled completely. What people drew there is the label, and
            what models say of them is not used.
        images: rows of `images`, for the locations of the batch.
        standing: whether gold speaks for this batch, and the slices it may be split into.
        gold_tags: as in `merge`.
        verifier_trust, verifications: what the verifier said, and where its word counts; None: nobody was asked.

    Returns:
        Rows of `labels`: answers as `merge` leaves them, each with its parts, in order of image and id.
    """
    done = pa.array(sorted(set(annotated)), pa.string())
    open_ = candidates.filter(pc.invert(pc.is_in(candidates.column("image_id"), done)))
    rows = merge(open_, config, gold_tags)
    terms = Terms.of(rows, trust, images, standing or Standing())
    status = np.where(terms.accepted, "accepted", "needs_review")
    score = rows.column("score").to_numpy().astype(np.float64)
    status[~terms.accepted & terms.covered & (score < config.trust.review_floor)] = "rejected"
    drawn = _with_masks(rows, masks)
    columns: dict[str, Any] = {name: drawn.column(name) for name in COLUMNS}
    columns |= {
        "status": pa.array(status.tolist(), pa.string()),
        "threshold": pa.array(terms.threshold, pa.float32(), from_pandas=True),
        "precision": pa.array(terms.precision, pa.float32(), from_pandas=True),
        "certificate": pa.array([c if a else None for c, a in zip(terms.certificate, terms.accepted, strict=True)]),
        "parts": rows.column("parts"),
        "decided_by": _reasons(rows, _voters(rows, open_), status, terms, config.trust.review_floor),
    }
    human = _from_people(schema.where_in(ground_truth, "image_id", done.to_pylist()))
    machine = schema.table("labels").from_columns(columns)
    if verifier_trust is not None and verifications is not None:
        witness = Witness.of(trust, verifier_trust, standing or Standing())
        machine = _settled(machine, heard(machine, images, verifications, witness))
    fused = pa.concat_tables([human, machine])
    return fused.sort_by([("image_id", "ascending"), ("annotation_id", "ascending")])


def _settled(labels: pa.Table, words: Words) -> pa.Table:
    """Labels with the verifier's word in force, where it counts, and told where it does not."""
    changed = ("status", "threshold", "precision", "certificate", "decided_by")
    columns = {name: labels[name].to_pylist() for name in changed}
    for i in np.flatnonzero(words.said != ""):
        row, said = words.row[i], str(words.said[i])
        if row is None:
            columns["decided_by"][i] += f"; {said}, which does not count here"
            continue
        for name in ("threshold", "precision", "certificate"):
            columns[name][i] = row[name]
        columns["status"][i] = str(words.status[i])
        share = "right" if row["answer"] == "yes" else "wrong"
        columns["decided_by"][i] = f"{said}, and on gold that is {share} above {row['target']:.0%} of the time"
    for name, values in columns.items():
        place = labels.column_names.index(name)
        labels = labels.set_column(place, labels.schema.field(place), pa.array(values, labels.schema.field(place).type))
    return labels


def _with_masks(rows: pa.Table, masks: pa.Table) -> pa.Table:
    """The mask of each row's first part, which is the row itself unless several boxes were averaged."""
    if not masks.num_rows or not rows.num_rows:
        return rows
    first = pc.list_element(rows.column("parts"), 0)
    found = pc.index_in(first, masks.column("annotation_id").combine_chunks())
    drawn = pc.coalesce(masks.column("mask").take(found), rows.column("mask"))
    return rows.set_column(rows.column_names.index("mask"), "mask", drawn)


def _voters(rows: pa.Table, candidates: pa.Table) -> NDArray[np.int64]:
    """(n,) how many labellers are behind each row."""
    parts = rows.column("parts").combine_chunks()
    if not len(parts):
        return np.zeros(0, np.int64)
    owner = pc.list_parent_indices(parts).to_numpy().astype(np.int64)
    found = pc.index_in(pc.list_flatten(parts), candidates.column("annotation_id").combine_chunks())
    by = places(candidates.column("producer"))[found.to_numpy().astype(np.int64)]
    width = int(by.max(initial=0)) + 1
    return np.bincount(np.unique(owner * width + by) // width, minlength=rows.num_rows)


def _reasons(
    rows: pa.Table, voters: NDArray[np.int64], status: NDArray[np.str_], terms: Terms, floor: float
) -> pa.Array:
    """The rule that decided, in words, with the number of labellers that agree."""
    words = []
    for i in range(rows.num_rows):
        least = terms.threshold[i]
        if status[i] == "accepted":
            reason = f"certified: score at or above {least:.3f}"
        elif status[i] == "rejected":
            reason = f"score below the review floor of {floor:g}"
        elif not terms.covered[i]:
            reason = f"certified for the best {terms.most[i]:.0f} of one {terms.unit}, and this is none of them"
        elif np.isnan(least):
            reason = terms.why_none
        else:
            reason = f"score below {least:.3f}"
        words.append(reason if voters[i] < 2 else f"{reason}; {voters[i]} labellers agree")
    return pa.array(words, pa.string())


def _from_people(rows: pa.Table) -> pa.Table:
    n = rows.num_rows
    columns: dict[str, Any] = {name: rows.column(name) for name in COLUMNS}
    columns |= {
        "status": pa.array(["human"] * n, pa.string()),
        "parts": pa.array([[i] for i in rows.column("annotation_id").to_pylist()], schema.STRINGS),
        "decided_by": pa.array(["people"] * n, pa.string()),
    }
    return schema.table("labels").from_columns(columns)
