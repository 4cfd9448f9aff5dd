"""What a person should look at next: audits, then people's labels that are probably wrong, then what gains most.

Suspected errors come early, as a wrong label of a person spoils what is trained, whatever else is labelled.

The gain of a look is the expected growth of the sum over classes of the square root of their labels: one
more label is worth less the more there are. A look at a proposed box ends in a yes with the calibrated
probability that the labeller is right; a no costs as much and gains nothing. Of an image's class the look
always ends in a label, but choosing another class costs more than a yes.

A verifier goes first where its word is certified and what it costs is less than what it is expected to save: the
chance that it settles the label, times the price of a person's look. Such labels are asked about by producer and
class as a whole, in random order of images, because that is what its certificate was graded on; of these groups,
those come first that gain most per unit of cost.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema
from pipeline.calibration import RAW, Map
from pipeline.config import PriceConfig
from pipeline.ids import fingerprint, producer_name
from pipeline.journal import TIED
from pipeline.matching import suppress

LIMIT = 500
AUDIT = "audit: accepted, drawn at random"
PERSON, VERIFIER = "person", "verifier"
_TRUSTED = ("accepted", "verified", "human")
_ALL = "all"
_DOUBTS = {
    "class": "people's label: {model} is {score:.0%} sure that this is {suggested}, not {class_name}",
    "swapped": "people's label: {model} sees {suggested} here, not {class_name}",
    "badly_located": "people's label: box probably badly placed, {model} sees it elsewhere",
    "badly_outlined": "people's label: mask probably wrong, {model} draws it otherwise",
    "overlooked": "box probably overlooked by people, found by {model}",
}
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Doubts:
    """Suspected errors in people's labels, the worst first: each row of `errors` speaks against that of `labels`.

    Attributes:
        labels: rows of `labels`; of an overlooked object, the proposed one. errors: rows of `label_errors`.
    """

    labels: pa.Table
    errors: pa.Table

    @classmethod
    def worst(cls, errors: pa.Table, suspects: pa.Table, most: int) -> Doubts:
        """The `most` suspicious of `suspects` (rows of `labels`), each by what speaks most against it."""
        ids = suspects.column("annotation_id").combine_chunks()
        order = [("suspicion", "descending"), *((c, "ascending") for c in ("annotation_id", "model", "error"))]
        about = errors.filter(pc.is_in(errors.column("annotation_id"), ids)).sort_by(order)
        _, first = np.unique(np.asarray(about.column("annotation_id").to_pylist(), str), return_index=True)
        chosen = about.take(pa.array(np.sort(first)[:most]))
        return cls(suspects.take(pc.index_in(chosen.column("annotation_id"), ids)), chosen)

    @property
    def overlooked(self) -> NDArray[np.bool_]:
        """(n,) whether a box is proposed, instead of a label doubted."""
        return np.asarray(self.errors.column("error").to_numpy() == "overlooked", bool)

    @property
    def right(self) -> Floats:
        """(n,) that the label, or the proposed one, is right."""
        suspicion = self.errors.column("suspicion").to_numpy()
        return np.where(self.overlooked, suspicion, 1 - suspicion)

    @property
    def reasons(self) -> list[str]:
        """What is suspected of each, in words."""
        rows = self.errors.to_pylist()
        return [_DOUBTS[r["error"]].format(**r | {"model": producer_name(r["model"])}) for r in rows]


def overlooked(errors: pa.Table, iou: float) -> pa.Table:
    """Rows of `labels`, waiting: the boxes of `label_errors` that people overlooked, once where several models say so.

    Args:
        iou: boxes of one class that overlap by more are one.
    """
    found = errors.filter(pc.equal(errors.column("error"), "overlooked"))
    found = found.sort_by([("suspicion", "descending"), ("annotation_id", "ascending")])
    things = list(zip(found.column("image_id").to_pylist(), found.column("class_name").to_pylist(), strict=True))
    numbers = {thing: k for k, thing in enumerate(dict.fromkeys(things))}
    order = np.arange(len(things))
    leader = suppress(np.array([numbers[t] for t in things], np.int64), schema.box_array(found), order, iou)
    found = found.filter(pa.array(leader == order))
    return _waiting(found, found.column("model"), pa.array(["overlooked by people?"] * found.num_rows, pa.string()))


def proposals(queue: pa.Table, labels: pa.Table) -> pa.Table:
    """Rows of `labels`, waiting: the boxes of `review_queue` that are not among `labels`.

    Args:
        labels: of rows of `labels`, at least annotation_id and batch.
    """
    found = queue.filter(pc.is_valid(queue.column("x1")))
    there = schema.where_in(labels, "annotation_id", found.column("annotation_id").to_pylist())
    known = set(zip(*(there.column(c).to_pylist() for c in ("batch", "annotation_id")), strict=True))
    places = zip(*(found.column(c).to_pylist() for c in ("batch", "annotation_id")), strict=True)
    found = found.filter(pa.array([place not in known for place in places], pa.bool_()))
    return _waiting(found, found.column("producer"), found.column("reason"))


def _waiting(boxes: pa.Table, producer: pa.ChunkedArray, why: pa.Array | pa.ChunkedArray) -> pa.Table:
    names = ("annotation_id", "image_id", "batch", "class_name", "score", *schema.CORNERS)
    columns: dict[str, Any] = {name: boxes.column(name) for name in names}
    columns |= dict.fromkeys(("truncated", "ignore", "is_crowd"), np.zeros(boxes.num_rows, bool))
    columns |= {"producer": producer, "status": ["needs_review"] * boxes.num_rows, "decided_by": why}
    columns["parts"] = pa.array([[i] for i in boxes.column("annotation_id").to_pylist()], schema.STRINGS)
    return schema.table("labels").from_columns(columns)


def queue(
    labels: pa.Table,
    audits: pa.Table,
    calibration: pa.Table,
    prices: PriceConfig,
    limit: int = LIMIT,
    verifications: pa.Table | None = None,
    verifier_trust: pa.Table | None = None,
    unasked: Collection[str] = (),
    doubts: Doubts | None = None,
) -> pa.Table:
    """Rows of `review_queue`: open audits, doubts, then the `limit` waiting labels with the most gain per cost.

    Labels that people disagree about come first among these: what they cost already is lost without a third look.

    Args:
        labels, audits: rows of one batch. calibration: what scores are worth; raw scores count where a
            labeller is not in it.
        verifications, verifier_trust: what a verifier said that did not settle the matter, and how often it is right.
        unasked: ids of labels that would be the verifier's, had its budget not been spent.
        doubts: suspected errors in people's labels.
    """
    waiting = schema.where_in(labels, "status", ("needs_review",)).sort_by("annotation_id")
    right = probability_right(waiting, calibration)
    if verifications is not None and verifier_trust is not None:
        right = after_word(waiting, right, verifications, verifier_trust)
    gain, cost = gains(waiting, labels, right), look_cost(waiting, right, prices)
    tied = np.asarray(pc.starts_with(waiting.column("decided_by"), TIED).to_numpy(zero_copy_only=False), bool)
    first = np.lexsort((-gain / cost, ~tied))[:limit]
    chosen = waiting.take(pa.array(first))
    words = [
        f"{TIED}: a third look" if tie else f"{p:.0%} likely right, {c:.3f} {prices.currency} a look"
        for p, c, tie in zip(right[first], cost[first], tied[first], strict=True)
    ]
    open_ = audits.filter(pc.is_null(audits.column("right")))
    asked = labels.filter(pc.is_in(labels.column("annotation_id"), open_.column("annotation_id").combine_chunks()))
    # A tie about an audit leaves it open and makes it wait, too.
    asked = asked.filter(pc.not_equal(asked.column("status"), "needs_review")).sort_by("annotation_id")
    sure = probability_right(asked, calibration)
    tables = [
        _rows(asked, sure, np.zeros(asked.num_rows), look_cost(asked, sure, prices), [AUDIT] * asked.num_rows),
        *([_doubted(doubts, prices)] if doubts else []),
        _rows(chosen, right[first], gain[first], cost[first], words),
    ]
    rows = pa.concat_tables(tables)
    ranked = rows.append_column("rank", pa.array(np.arange(1, rows.num_rows + 1)))
    later = set(unasked)
    route = [VERIFIER if i in later else PERSON for i in ranked["annotation_id"].to_pylist()]
    ranked = ranked.append_column("route", pa.array(route, pa.string()))
    return schema.table("review_queue").conform(ranked)


def _rows(labels: pa.Table, right: Floats, gain: Floats, cost: Floats, reasons: list[str]) -> pa.Table:
    columns: dict[str, Any] = {
        name: labels.column(name) for name in ("annotation_id", "image_id", "batch", "class_name", "score")
    }
    columns |= {"right": right, "gain": gain, "cost": cost, "reason": pa.array(reasons, pa.string())}
    brought = ("producer", *schema.CORNERS, "mask")
    columns |= {name: pa.nulls(labels.num_rows, labels.column(name).type) for name in brought}
    return pa.table(columns)


def _doubted(doubts: Doubts, prices: PriceConfig) -> pa.Table:
    """Rows for doubts; those about boxes that are no labels yet bring the box, those about masks another mask."""
    labels, right = doubts.labels, doubts.right
    rows = _rows(labels, right, np.zeros(labels.num_rows), look_cost(labels, right, prices), doubts.reasons)
    proposed = pa.array(doubts.overlooked)
    for name in ("producer", *schema.CORNERS):
        place = rows.column_names.index(name)
        rows = rows.set_column(place, name, pc.if_else(proposed, labels.column(name), rows.column(name)))
    return rows.set_column(rows.column_names.index("mask"), "mask", doubts.errors.column("mask"))


def probability_right(labels: pa.Table, calibration: pa.Table) -> Floats:
    """(n,) that each label is right, by the map of its labeller and class, or of its labeller."""
    maps = {
        (r["producer"], r["class_name"]): Map(r["method"], np.array(r["x"]), np.array(r["y"]))
        for r in calibration.to_pylist()
    }
    score = labels.column("score").to_numpy().astype(np.float64)
    right = np.zeros(len(score))
    pairs = list(zip(*(labels.column(c).to_pylist() for c in ("producer", "class_name")), strict=True))
    for producer, name in set(pairs):
        which = np.array([pair == (producer, name) for pair in pairs], bool)
        right[which] = maps.get((producer, name), maps.get((producer, _ALL), RAW))(score[which])
    return right


def after_word(labels: pa.Table, right: Floats, verifications: pa.Table, verifier_trust: pa.Table) -> Floats:
    """(n,) probability that each label is right once the verifier's answer is known, by its errors on gold (Bayes)."""
    asked = verifications.filter(pc.equal(verifications["question"], "label"))
    place = pc.fill_null(pc.index_in(labels["annotation_id"], asked["annotation_id"].combine_chunks()), -1).to_numpy()
    answers = asked["answer"].to_pylist()
    errors = {(r["producer"], r["class_name"]): Errors.of(r) for r in verifier_trust.to_pylist() if r["slice"] == _ALL}
    found = right.copy()
    for i, key in enumerate(zip(labels["producer"].to_pylist(), labels["class_name"].to_pylist(), strict=True)):
        answer = answers[place[i]] if place[i] >= 0 else None
        if key in errors and answer in ("yes", "no"):
            found[i] = errors[key].after(answer, float(right[i]))
    return found


@dataclass(frozen=True)
class Errors:
    """How often a verifier says yes, and no, of right and of wrong labels."""

    right_yes: float
    right_no: float
    wrong_yes: float
    wrong_no: float

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Errors:
        """From the counts of a row of `verifier_trust`; half an answer is added to each, so that none is impossible."""
        found: dict[str, float] = {}
        for truth in ("right", "wrong"):
            total = sum(row[f"{truth}_{answer}"] for answer in ("yes", "no", "open")) + 1.5
            found |= {f"{truth}_{answer}": (row[f"{truth}_{answer}"] + 0.5) / total for answer in ("yes", "no")}
        return cls(**found)

    def after(self, answer: str, right: float) -> float:
        """Probability that a label is right, after an answer; `right` before it."""
        yes, no = (self.right_yes, self.wrong_yes) if answer == "yes" else (self.right_no, self.wrong_no)
        return right * yes / (right * yes + (1 - right) * no)


def for_verifier(
    open_: pa.Table,
    labels: pa.Table,
    calibration: pa.Table,
    certificates: Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]],
    prices: PriceConfig,
    images: pa.Table,
) -> pa.Table:
    """The labels to ask the verifier about, in the order to ask.

    Args:
        open_: rows of `labels` of which its word may count. labels: all of the batch, for what each class has.
        certificates: (producer, class) -> answer -> row of `verifier_trust`.
        images: rows of `images`, for the locations of the batch.
    """
    keys = list(zip(open_["producer"].to_pylist(), open_["class_name"].to_pylist(), strict=True))
    right = probability_right(open_, calibration)
    cost, growth = look_cost(open_, right, prices), _growth(open_, labels)
    location = dict(zip(images["image_id"].to_pylist(), images["location"].to_pylist(), strict=True))
    groups = []
    for key in sorted(set(keys)):
        mine, rows = np.flatnonzero([k == key for k in keys]), certificates.get(key, {})
        if not rows:
            continue
        any_row = next(iter(rows.values()))
        errors = Errors.of(any_row)
        yes = right[mine] * errors.right_yes, (1 - right[mine]) * errors.wrong_yes
        no = right[mine] * errors.right_no, (1 - right[mine]) * errors.wrong_no
        settled = ("yes" in rows) * sum(yes) + ("no" in rows) * sum(no)
        price = max(float(prices.tokens(any_row["tokens_sent"], any_row["tokens_written"])), 1e-9)
        if (settled * cost[mine]).mean() > price:
            gain = right[mine] * errors.right_yes * growth[mine] * ("yes" in rows)
            units = [location[i] if any_row["unit"] == "location" else i for i in open_["image_id"].to_pylist()]
            groups.append((-gain.mean() / price, key, _by_unit(mine, units)))
    order = [i for _, _, mine in sorted(groups, key=lambda g: g[:2]) for i in mine]
    return open_.take(pa.array(order, pa.int64()))


def _by_unit(rows: NDArray[np.int64], units: list[str]) -> list[int]:
    """Places of labels, unit by unit, in an order that depends on nothing but the units' names."""
    return sorted(rows.tolist(), key=lambda i: (fingerprint("verify", units[i]), i))


def gains(waiting: pa.Table, labels: pa.Table, right: Floats) -> Floats:
    """(n,) expected growth of the square roots of the classes' trusted labels by a look at each waiting one."""
    yes = np.where(_whole(waiting), 1.0, right)
    return np.asarray(yes * _growth(waiting, labels), np.float64)


def _growth(waiting: pa.Table, labels: pa.Table) -> Floats:
    """(n,) growth of the square root of its class's trusted labels by one more."""
    trusted = schema.where_in(labels, "status", _TRUSTED).column("class_name").value_counts()
    counts = {c["values"]: c["counts"] for c in trusted.to_pylist()}
    have = np.array([counts.get(c, 0) for c in waiting.column("class_name").to_pylist()], np.float64)
    return np.sqrt(have + 1) - np.sqrt(have)


def look_cost(waiting: pa.Table, right: Floats, prices: PriceConfig) -> Floats:
    """(n,) price of a look: a yes or no, and a share in opening the image, or the choice of another class for it."""
    _, image, sizes = np.unique(
        np.asarray(waiting.column("image_id").to_pylist(), str), return_inverse=True, return_counts=True
    )
    opening = np.where(_whole(waiting), (1 - right) * prices.human_image, prices.human_image / sizes[image])
    return np.maximum(prices.human_look + opening, 1e-9)


def _whole(labels: pa.Table) -> NDArray[np.bool_]:
    """(n,) whether a label is of the image as a whole."""
    return np.asarray(pc.is_null(labels.column("x1")).to_numpy(zero_copy_only=False), bool)
