"""What people decided, as labels: people win over models, a later word wins over an earlier one, and
people who disagree send a label to a third.

A decision holds the label as it was seen, so it stays in force when a later run, of another model or
threshold, proposes other boxes: what overlaps a confirmed box is that thing, and what overlaps a refused
one is refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import boxes, journal, schema
from pipeline.config import ProjectConfig
from pipeline.store import Store

_CERTIFIED = ("threshold", "precision", "certificate")  # of a machine's label; what a person drew needs none
_GRADES = ("threshold", "precision", "certificate")

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What people together say of one label.

    Attributes:
        said: each reviewer's standing decision, oldest first.
        decided: the decision that holds: the latest of those that most people share. None when no
            answer has more votes than every other.
    """

    annotation_id: str
    said: tuple[Row, ...]
    decided: Row | None

    @property
    def people(self) -> frozenset[str]:
        return frozenset(row["reviewer"] for row in self.said)


def standing(decisions: pa.Table) -> list[Row]:
    """The decision of each person on each label that counts now: the latest that is not withdrawn.

    Args:
        decisions: rows of `decisions`, in any order.

    Returns:
        Rows as dictionaries, ordered by time.
    """
    rows = decisions.sort_by([("at", "ascending"), ("decision_id", "ascending")]).to_pylist()
    withdrawn = {row["withdraws"] for row in rows if row["verdict"] == "undo"}
    latest: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row["verdict"] != "undo" and row["decision_id"] not in withdrawn:
            latest[row["annotation_id"], row["reviewer"]] = row
    return sorted(latest.values(), key=lambda row: (row["at"], row["decision_id"]))


def outcomes(decisions: pa.Table, iou: float) -> list[Outcome]:
    """What people say of every label that somebody decided on, ordered by annotation_id.

    Args:
        iou: two people's boxes of one class are the same answer when they overlap at least this much.
    """
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in standing(decisions):
        by_label[row["annotation_id"]].append(row)
    return [Outcome(name, tuple(said), _majority(said, iou)) for name, said in sorted(by_label.items())]


def undecided(labels: pa.Table, decisions: pa.Table) -> pa.Table:
    """The rows of `labels` about which nobody has said anything that stands."""
    said = pa.array({row["annotation_id"] for row in standing(decisions)}, pa.string())
    return labels.filter(pc.invert(pc.is_in(labels.column("annotation_id"), said)))


def verdicts(decisions: pa.Table, iou: float) -> dict[str, bool]:
    """Whether people found each label right that they decided on; labels that they disagree about are left out.

    A correction finds it right if class and box, by overlap of at least `iou`, were as good as theirs.
    """
    found = {}
    for outcome in outcomes(decisions, iou):
        decided = outcome.decided
        if decided is not None and decided["verdict"] in ("yes", "no"):
            found[outcome.annotation_id] = decided["verdict"] == "yes"
        elif decided is not None and decided["verdict"] == "fix":
            asked = _asked(decided)
            found[outcome.annotation_id] = bool(asked) and bool(_overlaps(asked, [decided])[0, 0] >= iou)
    return found


def apply(labels: pa.Table, decisions: pa.Table, images: pa.Table, config: ProjectConfig) -> pa.Table:
    """Labels with people's decisions in force. Applying them again changes nothing.

    Of each label that people decided on,
      - yes makes its status human; its box, class, score and producer stay as they were;
      - fix also makes box and class the person's (score 1, producer human; a mask is dropped when the box
        moved, since it belonged to the other box);
      - no makes it rejected;
      - add is a row of its own;
      - a tie between people makes it needs_review, and says who said what.
    A label that people decided on and that models no longer propose is kept as people left it. A model's
    label that overlaps a confirmed one of its class by more than `labelling.nms_iou` becomes part of it;
    one that overlaps a refused one is rejected. Of an image as a whole, people's class is the only one.

    Args:
        labels, decisions, images: rows of these tables, of one batch.

    Returns:
        Rows of `labels`. Decisions on images or classes that the project no longer has are passed over.
    """
    here = schema.where_in(decisions, "image_id", images.column("image_id").to_pylist())
    named = pc.is_in(here.column("class_name"), pa.array(config.ontology.names, pa.string()))
    here = here.filter(pc.or_(pc.is_null(here.column("class_name")), named))
    by_image: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes(here, config.trust.iou):
        by_image[outcome.said[0]["image_id"]].append(outcome)
    touched = pc.is_in(labels.column("image_id"), pa.array(sorted(by_image), pa.string()))
    before: dict[str, list[Row]] = defaultdict(list)
    for row in labels.filter(touched).to_pylist():
        before[row["image_id"]].append(row)
    made: list[Row] = []
    for image, decided in sorted(by_image.items()):
        made += _Image(before[image], config.labelling.nms_iou).decide(decided)
    together = pa.concat_tables([labels.filter(pc.invert(touched)), schema.table("labels").from_rows(made)])
    return together.sort_by([("image_id", "ascending"), ("annotation_id", "ascending")])


def current(store: Store, config: ProjectConfig, proposed: pa.Table | None = None) -> pa.Table:
    """All rows of `labels`, with what people have decided since they were made.

    Args:
        proposed: more rows of `labels`, which people may have decided on.

    Raises:
        StoreError: labels have not been made yet, or the journal is damaged.
    """
    parts = []
    for batch in store.batches("labels"):
        labels, images = store.read_or_empty("labels", batch), store.read_or_empty("images", batch)
        if proposed is not None:
            labels = pa.concat_tables([labels, schema.where_in(proposed, "batch", (batch,))])
        parts.append(apply(labels, journal.read(store, batch), images, config))
    return pa.concat_tables(parts) if parts else store.read("labels")


class _Image:
    """The labels of one image, changed by what people decided there."""

    def __init__(self, rows: list[Row], iou: float) -> None:
        self._models = {row["annotation_id"]: row for row in rows}
        self._iou = iou
        self._confirmed: list[Row] = []
        self._settled: list[Row] = []
        self._refused: list[Row] = []
        self._people: dict[str, frozenset[str]] = {}

    def decide(self, decided: list[Outcome]) -> list[Row]:
        """Rows of `labels` with these outcomes in force."""
        orphans: list[tuple[Outcome, Row]] = []
        for outcome in decided:
            row, word = self._models.pop(outcome.annotation_id, None), outcome.decided
            if word is None:
                shown = row or _row(next(d for d in reversed(outcome.said) if d["class_name"]))
                self._settled.append(shown | {"status": "needs_review", "decided_by": _words(outcome)})
            elif word["verdict"] == "no":
                self._refuse(outcome, word, row)
            elif row is not None:
                self._confirm(outcome, word, _decided(row, word))
            else:
                orphans.append((outcome, word))
        self._adopt(orphans)
        self._absorb()
        self._repeat_refusals()
        return [*self._models.values(), *self._confirmed, *self._settled]

    def _confirm(self, outcome: Outcome, decided: Row, label: Row) -> None:
        self._confirmed.append(label | {"status": "human", "decided_by": _words(outcome)})
        self._people[label["annotation_id"]] = outcome.people
        if decided["verdict"] == "fix":
            self._refused += _asked(decided)

    def _refuse(self, outcome: Outcome, decided: Row, row: Row | None) -> None:
        self._refused += _asked(decided)
        if row is not None:
            self._settled.append(row | {"status": "rejected", "decided_by": _words(outcome)})

    def _adopt(self, orphans: list[tuple[Outcome, Row]]) -> None:
        """Labels that no model proposes now. Where several people drew one thing, the last box is kept."""
        merged = []
        for outcome, word in sorted(orphans, key=lambda o: (o[1]["at"], o[1]["decision_id"]), reverse=True):
            label = _row(word)
            if self._drawn_by_others(outcome, label) is None:
                self._confirm(outcome, word, label)
            else:
                merged.append((outcome, label))
        for outcome, label in merged:
            winner = self._drawn_by_others(outcome, label)
            if winner is not None:
                winner["parts"] = list(dict.fromkeys([*winner["parts"], *label["parts"]]))

    def _drawn_by_others(self, outcome: Outcome, label: Row) -> Row | None:
        """The confirmed label that is most likely the same thing, as other people saw it."""
        people = outcome.people
        others = [row for row in self._confirmed if not people & self._people[row["annotation_id"]]]
        if not others:
            return None
        overlap = _overlaps([label], others)[0]
        best = max(range(len(others)), key=lambda i: (overlap[i], others[i]["annotation_id"]))
        return others[best] if overlap[best] > self._iou else None

    def _absorb(self) -> None:
        """Models' labels of a thing that a person confirmed become parts of that label."""
        rows = [row for row in self._models.values() if row["status"] != "human"]
        if not rows or not self._confirmed:
            return
        overlap = _overlaps(rows, self._confirmed)
        whole = np.array([[a["x1"] is None and b["x1"] is None for b in self._confirmed] for a in rows])
        overlap[whole] = np.inf
        for i, best in enumerate(overlap.argmax(axis=1)):
            if overlap[i, best] > self._iou:
                winner = self._confirmed[best]
                winner["parts"] = list(dict.fromkeys([*winner["parts"], *rows[i]["parts"]]))
                del self._models[rows[i]["annotation_id"]]

    def _repeat_refusals(self) -> None:
        """What a person has refused stays refused, whichever model proposes it next."""
        rows = [row for row in self._models.values() if row["status"] != "human"]
        if not rows or not self._refused:
            return
        overlap = _overlaps(rows, self._refused)
        for i, best in enumerate(overlap.argmax(axis=1)):
            if overlap[i, best] > self._iou:
                words = f"{self._refused[best]['reviewer']} has refused this before"
                self._models[rows[i]["annotation_id"]] = rows[i] | {"status": "rejected", "decided_by": words}


def _majority(said: Sequence[Row], iou: float) -> Row | None:
    """The latest decision of the answer that has more votes than any other; None in a tie."""
    groups: list[list[Row]] = []
    for row in said:
        home = next((group for group in groups if _agree(group[0], row, iou)), None)
        if home is None:
            groups.append([row])
        else:
            home.append(row)
    groups.sort(key=len, reverse=True)
    if len(groups) > 1 and len(groups[0]) == len(groups[1]):
        return None
    return groups[0][-1]


def _agree(one: Row, other: Row, iou: float) -> bool:
    if one["class_name"] != other["class_name"]:
        return False
    if one["verdict"] == "no" or other["verdict"] == "no":
        return one["verdict"] == other["verdict"]
    return bool(_overlaps([one], [other])[0, 0] >= iou)


def _words(outcome: Outcome) -> str:
    """Who decided, in words; stored with the label."""
    if outcome.decided is None:
        said = ", ".join(f"{row['reviewer']} says {_answer(row)}" for row in outcome.said)
        return f"{journal.TIED} ({said}): a third look is needed"
    decided = outcome.decided
    verb = {"yes": "confirmed", "no": "refused", "fix": "corrected", "add": "drawn"}[decided["verdict"]]
    if decided["verdict"] == "fix" and decided["asked_class"] not in (None, decided["class_name"]):
        verb = f"corrected from {decided['asked_class']}"
    if len(outcome.said) == 1:
        return f"{verb} by {decided['reviewer']}"
    votes = Counter(_answer(row) for row in outcome.said)
    count = ", ".join(f"{n} {answer}" for answer, n in sorted(votes.items()))
    return f"{verb} by {decided['reviewer']}; {len(outcome.said)} people: {count}"


def _answer(row: Row) -> str:
    return row["verdict"] if row["verdict"] in ("yes", "no") else f"{row['class_name']} elsewhere or instead"


def _decided(row: Row, decided: Row) -> Row:
    """A label as a person left it."""
    moved = not _close(row, decided)
    if decided["verdict"] == "yes" and not moved and row["class_name"] == decided["class_name"]:
        return dict(row)
    mask = decided["mask"] or (None if moved else row["mask"])
    return row | _from_person(decided) | {"mask": mask} | dict.fromkeys(_GRADES)


def _row(decided: Row) -> Row:
    """A label out of a decision alone."""
    return {
        **{key: decided[key] for key in ("annotation_id", "image_id", "batch", "mask")},
        **_from_person(decided),
        **dict.fromkeys(("truncated", "ignore", "is_crowd"), False),
        **dict.fromkeys(_GRADES),
        "parts": [decided["annotation_id"]],
    }


def _from_person(decided: Row) -> Row:
    person = {"producer": "human", "class_name": decided["class_name"], "score": 1.0}
    return person | {key: decided[key] for key in schema.CORNERS}


def _asked(decided: Row) -> list[Row]:
    """The label that was refused or changed, as it was seen; none where nothing was shown."""
    if decided["asked_class"] is None:
        return []
    seen = dict(zip(schema.CORNERS, (decided[f"asked_{key}"] for key in schema.CORNERS), strict=True))
    return [{"class_name": decided["asked_class"], "reviewer": decided["reviewer"], **seen}]


def _close(one: Row, other: Row) -> bool:
    """Whether two labels have the same box, to a hundredth of a pixel."""
    if one["x1"] is None or other["x1"] is None:
        return one["x1"] is other["x1"]
    return all(abs(one[key] - other[key]) <= 0.01 for key in schema.CORNERS)


def _overlaps(rows: Sequence[Row], others: Sequence[Row]) -> NDArray[np.float64]:
    """(n, m) IoU of labels; 0 for those of unlike classes, 1 for a class of the image said twice."""
    a, b = (np.array([[row[key] for key in schema.CORNERS] for row in some], np.float64) for some in (rows, others))
    whole = np.isnan(a[:, None, 0]) & np.isnan(b[None, :, 0])
    alike = np.array([[row["class_name"] == other["class_name"] for other in others] for row in rows])
    return np.where(alike, np.where(whole, 1.0, np.nan_to_num(boxes.iou(a, b))), 0.0)
