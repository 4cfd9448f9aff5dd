"""Audits: accepted labels that people look at again, drawn at random, to keep a certificate honest over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.ids import fingerprint
from pipeline.trust.evidence import log_capital


def draw(
    labels: pa.Table, said: Mapping[str, bool], count: int, verifiers: Mapping[str, str] | None = None
) -> pa.Table:
    """Rows of `audits`: `count` labels of a batch that hold a certificate, drawn by the hash of their ids.

    Args:
        labels: rows of `labels` before people's decisions are applied, so that those audited stay among them.
        said: annotation_id -> whether people found the label right.
        verifiers: certificate -> the verifier whose it is; others are their labeller's.
    """
    accepted = schema.where_in(labels, "status", ("accepted", "verified"))
    ids = accepted.column("annotation_id").to_pylist()
    drawn = sorted(range(len(ids)), key=lambda i: fingerprint("audit", ids[i]))[:count]
    rows = accepted.take(pa.array(drawn, pa.int64()))
    columns: dict[str, Any] = {
        c: rows.column(c) for c in ("annotation_id", "image_id", "batch", "class_name", "certificate")
    }
    signed = zip(rows["certificate"].to_pylist(), rows["producer"].to_pylist(), strict=True)
    columns["producer"] = [(verifiers or {}).get(certificate, labeller) for certificate, labeller in signed]
    right = [said.get(i) for i in rows.column("annotation_id").to_pylist()]
    return schema.table("audits").from_columns({**columns, "right": pa.array(right, pa.bool_())})


def contradicted(audits: pa.Table, target: float, delta: float) -> dict[tuple[str, str], str]:
    """Producers and classes whose audits speak against a precision of `target`, in words.

    Looking after every answer does not wear the test out: it bets that labels are wrong more often than
    1 - `target` allows, image by image, and its capital exceeds 1 / delta with probability delta at most,
    whenever one looks (Ville's inequality; Waudby-Smith & Ramdas 2023).

    Args:
        audits: rows of `audits` of any batches; those without an answer are passed over.
    """
    answered = audits.filter(pc.is_valid(audits.column("right")))
    found = {}
    keys = answered.group_by(["producer", "class_name"], use_threads=False).aggregate([]).to_pylist()
    for key in keys:
        same = pc.and_(*(pc.equal(answered.column(k), key[k]) for k in ("producer", "class_name")))
        mine = answered.filter(same)
        _, image = np.unique(np.asarray(mine.column("image_id").to_pylist(), str), return_inverse=True)
        right = mine.column("right").to_numpy(zero_copy_only=False).astype(bool)
        looks, wrong = np.bincount(image), np.bincount(image, ~right).astype(np.int64)
        if log_capital(looks, wrong, int(looks.max()), 1 - target) >= -np.log(delta):
            words = f"{int(right.sum())} of {len(right)} right, {target:.0%} was promised"
            found[key["producer"], key["class_name"]] = words
    return found
