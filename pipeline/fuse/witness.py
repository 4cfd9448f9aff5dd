"""The verifier's word on labels that are open: where it is certified on gold, yes verifies and no rejects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.fuse.merge import places
from pipeline.fuse.terms import Standing, batch_slice
from pipeline.ids import producer_name
from pipeline.matching import ranks

Flags = NDArray[np.bool_]
Key = tuple[str, str]  # producer, class
OPEN = "needs_review"


@dataclass(frozen=True)
class Witness:
    """Which rows of `verifier_trust` speak for the open labels of one batch.

    Attributes:
        rows: (producer, class) -> answer -> row; certified ones only.
    """

    rows: Mapping[Key, Mapping[str, dict[str, Any]]]

    @classmethod
    def of(cls, trust: pa.Table, verifier_trust: pa.Table, standing: Standing) -> Witness:
        """Certificates of the verifier that go with the certificates of labellers in force for the batch.

        What a verifier was graded on is what a certain certificate of the labeller, or none, leaves open; so it
        says nothing of what another one leaves, as that of a declared slice would.
        """
        allowed = standing.usable(trust)
        if not allowed:
            return cls({})
        scope = allowed[0] if not standing.revoked else batch_slice(standing.batch)
        in_force = {(r["producer"], r["class_name"]): r for r in _certified(trust, scope)}
        others = [row for name in allowed if name != scope for row in _certified(trust, name)]
        by_slice = {(row["producer"], row["class_name"]) for row in others}
        found: dict[Key, dict[str, dict[str, Any]]] = {}
        for row in _certified(verifier_trust, scope):
            key = (row["producer"], row["class_name"])
            beside = in_force[key]["certificate"] if key in in_force else None
            if row["beside"] == beside and (key in in_force or key not in by_slice):
                found.setdefault(key, {})[row["answer"]] = row
        return cls(found)

    def floor(self, key: Key) -> float:
        """The score from which labels of this producer and class are asked about; infinite where none are."""
        mine = self.rows.get(key, {})
        if "no" in mine:
            return float(mine["no"]["floor"])
        return float(mine["yes"]["threshold"]) if "yes" in mine else float("inf")


def _certified(rows: pa.Table, scope: str) -> list[dict[str, Any]]:
    chosen = rows.filter(pc.and_(rows["certified"], pc.equal(rows["slice"], scope)))
    return list(chosen.to_pylist())


def open_to_verifier(labels: pa.Table, witness: Witness) -> pa.Table:
    """The labels that wait for a look and of which the verifier's word may count."""
    waiting = labels.filter(pc.equal(labels["status"], OPEN))
    keys = zip(waiting["producer"].to_pylist(), waiting["class_name"].to_pylist(), strict=True)
    floors = np.array([witness.floor(key) for key in keys], np.float64)
    return waiting.filter(pa.array(waiting["score"].to_numpy().astype(np.float64) >= floors, pa.bool_()))


@dataclass(frozen=True)
class Words:
    """What the verifier said of each of (n,) labels, and what that makes of them.

    Attributes:
        status: (n,) verified, rejected, or '' where its word changes nothing.
        row: (n,) the row of `verifier_trust` that it rests on, or None. said: (n,) its words, for people; ''.
    """

    status: NDArray[np.str_]
    row: NDArray[np.object_]
    said: NDArray[np.str_]


def heard(labels: pa.Table, images: pa.Table, verifications: pa.Table, witness: Witness) -> Words:
    """What the verifier's answers make of labels.

    Args:
        labels: rows that have a `status`. verifications: rows of one batch.
    """
    n = labels.num_rows
    words = Words(np.full(n, "", "U12"), np.full(n, None, object), np.full(n, "", "U300"))
    asked = verifications.filter(pc.equal(verifications["question"], "label"))
    if not n or not asked.num_rows:
        return words
    place = pc.fill_null(pc.index_in(labels["annotation_id"], asked["annotation_id"].combine_chunks()), -1)
    found = place.to_numpy().astype(np.int64)
    answers = asked.select(["verifier", "answer", "agreement", "attempts"]).to_pylist()
    for i in np.flatnonzero(found >= 0):
        words.said[i] = _said(answers[found[i]])
    score = labels["score"].to_numpy().astype(np.float64)
    waits = np.asarray(pc.equal(labels["status"], OPEN).to_numpy(zero_copy_only=False), bool)
    producer, name = (np.array(labels[c].to_pylist(), object) for c in ("producer", "class_name"))
    unit = _units(labels, images, witness)
    for key, rows in witness.rows.items():
        mine = waits & (producer == key[0]) & (name == key[1]) & (score >= witness.floor(key))
        # A unit of which only a part could be asked is not what was graded.
        missing = np.unique(unit[mine & (found < 0)])
        mine &= (found >= 0) & ~np.isin(unit, missing)
        for answer, row in rows.items():
            agrees = np.array(
                [
                    mine[i] and answers[k]["answer"] == answer and answers[k]["agreement"] >= row["agreement"] - 1e-9
                    for i, k in enumerate(found)
                ],
                bool,
            )
            chosen = np.flatnonzero(agrees & (score >= row["threshold"]))
            if row["most"] is not None:
                order = np.argsort(-score[chosen], kind="stable")
                chosen = chosen[ranks(unit[chosen], order) < row["most"]]
            words.status[chosen] = "verified" if answer == "yes" else "rejected"
            words.row[chosen] = row
    return words


def _said(answer: Mapping[str, Any]) -> str:
    who, attempts = producer_name(answer["verifier"]), answer["attempts"]
    if not attempts:
        return ""
    if answer["answer"] is None:
        return f"{who} gives no clear answer"
    return f"{who} says {answer['answer']} ({round(answer['agreement'] * attempts)} of {attempts})"


def _units(labels: pa.Table, images: pa.Table, witness: Witness) -> NDArray[np.int64]:
    """(n,) number of each label's image, or location where that is the unit."""
    where = labels["image_id"]
    units = {row["unit"] for rows in witness.rows.values() for row in rows.values()}
    if units == {"location"}:
        found = pc.index_in(where, images["image_id"].combine_chunks())
        where = pc.coalesce(images["location"].take(found), where)
    return places(where)
