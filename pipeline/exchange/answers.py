"""Answers of other tools as decisions: what is confirmed, corrected, refused or added, compared with what was sent.

Importing the same file twice makes no decision twice.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import boxes, decisions, schema
from pipeline.exchange.tasks import Answer, Loss, Reading, Row, Seen, corners, speakable
from pipeline.ids import fingerprint
from pipeline.journal import Corners, Decision
from pipeline.ontology import Ontology

_CLOSE = 0.011  # pixels: CVAT writes hundredths
_SHORTEST = 0.5  # pixels; a box with a shorter side is empty
_SAME = 0.5  # IoU from which a box that a person drew is the one that the same person drew before
_ENOUGH = 16  # digits of an image id, as they stand in the names of pictures
_IN_NAME = re.compile(r"-([0-9a-f]{16})(?:\.[A-Za-z0-9]+)?$")


@dataclass(frozen=True)
class Rules:
    """How answers are understood.

    Attributes:
        source: the tool, as `decisions` names it.
        reviewer: who answered, where the file does not say.
        unchanged_is_yes: a label that was left alone counts as confirmed even where the file does not say
            that somebody has looked at its image.
        now: the time of answers that have none.
    """

    source: str
    reviewer: str
    unchanged_is_yes: bool = False
    now: datetime = field(default_factory=lambda: datetime.now(UTC))


def mentioned(rows: pa.Table, reading: Reading) -> pa.Table:
    """Those of any rows with an image_id that answers are about."""
    names = {_name_of(answer)[:_ENOUGH] for answer in reading.answers}
    starts = pc.utf8_slice_codeunits(rows.column("image_id"), 0, _ENOUGH)
    return rows.filter(pc.is_in(starts, pa.array(sorted(names), pa.string())))


def _name_of(answer: Answer) -> str:
    """The image's id or its first digits, '' if the answer has neither."""
    found = _IN_NAME.search(answer.name)
    return answer.image_id or (found[1] if found else "")


class Project:
    """What a project knows of its images and labels, looked up by id.

    Args:
        images, labels, decided: rows of `images`, `labels` and `decisions`.
    """

    def __init__(self, images: pa.Table, labels: pa.Table, decided: pa.Table, ontology: Ontology) -> None:
        self.ontology = ontology
        self._images: dict[str, list[Row]] = defaultdict(list)
        for row in images.select(["image_id", "batch", "width", "height"]).to_pylist():
            self._images[row["image_id"][:_ENOUGH]].append(row)
        self.labels = {(r["batch"], r["annotation_id"]): r for r in labels.to_pylist()}
        self.latest: dict[tuple[str, str, str, str], Row] = {}
        withdrawn = set(decided.column("withdraws").to_pylist())
        for row in decided.sort_by([("at", "ascending"), ("decision_id", "ascending")]).to_pylist():
            if row["verdict"] != "undo" and row["decision_id"] not in withdrawn:
                self.latest[row["batch"], row["annotation_id"], row["reviewer"], row["source"]] = row
        self.drawn: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
        for row in decisions.standing(decided):
            if row["verdict"] == "add" or _is_addition(row):
                self.drawn[row["batch"], row["image_id"], row["reviewer"], row["source"]].append(row)

    def class_named(self, word: str) -> str | None:
        """The project's class for a word in a file, which may have lost what XML cannot hold."""
        names = self.ontology.names
        if word in names:
            return word
        return self.ontology.resolve(word) or next((name for name in names if speakable(name) == word), None)

    def image(self, answer: Answer) -> Row:
        """The row of `images` that an answer is about. ValueError: none, or several."""
        name = _name_of(answer)
        rows = [r for r in self._images.get(name[:_ENOUGH], []) if r["image_id"].startswith(name)] if name else []
        mine = [r for r in rows if r["batch"] == answer.batch] or rows
        if len(mine) != 1:
            raise ValueError("no such image in the project" if not mine else "the image is in several batches")
        return mine[0]


def _is_addition(row: Row) -> bool:
    return bool(row["verdict"] in ("fix", "no") and row["asked_class"] is None)


def decide(reading: Reading, project: Project, rules: Rules) -> tuple[list[Decision], list[Loss]]:
    """The decisions that answers amount to and that are not in the project yet, and what could not be used.

    A label that was sent and
      - is there, changed, is a `fix`;
      - is there as it was sent, is a `yes`, if its image was handed in (or `unchanged_is_yes`, or it is
        marked yes);
      - is missing, or marked no, is a `no`;
    and one that was not sent is an `add`, or a `fix` of what the same person added before.
    """
    made: list[Decision] = []
    losses = list(reading.losses)
    for answer in reading.answers:
        where = f"image {answer.name or answer.image_id}"
        try:
            image = project.image(answer)
        except ValueError as error:
            losses.append(Loss(where, str(error)))
            continue
        made += _Sheet(answer, image, project, rules, losses, where).decisions()
    return made, losses


class _Sheet:
    """One answer against what was sent."""

    def __init__(
        self, answer: Answer, image: Row, project: Project, rules: Rules, losses: list[Loss], where: str
    ) -> None:
        self._answer, self._image, self._project, self._rules = answer, image, project, rules
        self._losses, self._where = losses, where
        self._reviewer = answer.reviewer or rules.reviewer
        self._key = (image["batch"], image["image_id"], self._reviewer, rules.source)

    def decisions(self) -> list[Decision]:
        """What is new in it."""
        found: dict[str, Decision | None] = {}
        drawn: list[Seen] = []
        for seen in self._answer.seen:
            usable = self._usable(seen)
            if usable is None:
                if seen.annotation_id:
                    found[seen.annotation_id] = None  # it is there, and must not count as deleted
                continue
            sent = self._sent(usable)
            if sent is None or usable.annotation_id is None or usable.annotation_id in found:
                drawn.append(usable)
            else:
                found[usable.annotation_id] = self._compared(usable, sent)
        missing = sorted((self._answer.shown or frozenset()) - set(found))
        made = [d for d in found.values() if d is not None]
        made += [d for name in missing if (d := self._deleted(name)) is not None]
        made += self._additions(drawn, set(found) | set(missing))
        return [d for d in made if not self._known(d)]

    def _usable(self, seen: Seen) -> Seen | None:
        """`seen` with its class by the project's name and its box cut to the image."""
        where = f"{self._where}, {seen.annotation_id or seen.region or seen.class_name}"
        name = self._project.class_named(seen.class_name)
        if name is None:
            self._losses.append(Loss(where, f"{seen.class_name!r:.80} is no class of the project"))
            return None
        if seen.box is None:
            return replace(seen, class_name=name)
        cut = boxes.clip([seen.box], self._image["width"], self._image["height"])[0]
        if cut[2] - cut[0] < _SHORTEST or cut[3] - cut[1] < _SHORTEST:
            self._losses.append(Loss(where, "its box is empty, or outside the image"))
            return None
        # A box that people's files drew a little over the edge stays as it is while nobody moves it.
        outside = float(np.abs(cut - np.array(seen.box)).max())
        box = seen.box if outside < 1 else (float(cut[0]), float(cut[1]), float(cut[2]), float(cut[3]))
        return replace(seen, class_name=name, box=box)

    def _sent(self, seen: Seen) -> tuple[str, Corners | None, str | None] | None:
        """Class, box and mask of a label as it was sent; None where there was no such label."""
        row = self._project.labels.get((self._image["batch"], seen.annotation_id or ""))
        if row is not None and row["image_id"] != self._image["image_id"]:
            return None
        mask = row["mask"] if row is not None else None
        if seen.carried:
            return seen.carried["class_name"], seen.carried["box"], mask
        if row is None:
            return None
        box = corners(row)
        return row["class_name"], None if box is None else (box[0], box[1], box[2], box[3]), mask

    def _compared(self, seen: Seen, sent: tuple[str, Corners | None, str | None]) -> Decision | None:
        class_name, box, mask = sent
        asked = {"asked_class": class_name, "asked_box": box}
        if seen.verdict == "no":
            return self._made(seen.annotation_id, "no", **asked)
        changed = seen.class_name != class_name or not _close(seen.box, box)
        redrawn = seen.mask is not None and seen.mask != mask
        if changed or redrawn:
            left = {"class_name": seen.class_name, "box": seen.box, "mask": seen.mask}
            return self._made(seen.annotation_id, "fix", **left, **asked)
        if seen.verdict == "yes" or self._answer.complete or self._rules.unchanged_is_yes:
            return self._made(seen.annotation_id, "yes", class_name=class_name, box=box, mask=mask, **asked)
        return None

    def _deleted(self, name: str) -> Decision | None:
        row = self._project.labels.get((self._image["batch"], name))
        if row is None or row["image_id"] != self._image["image_id"]:
            self._losses.append(Loss(f"{self._where}, {name}", "deleted, and no longer a label of the project"))
            return None
        box = corners(row)
        asked_box = None if box is None else (box[0], box[1], box[2], box[3])
        return self._made(name, "no", asked_class=row["class_name"], asked_box=asked_box)

    def _additions(self, drawn: Sequence[Seen], settled: set[str]) -> Iterable[Decision]:
        """What the person drew; a box near one that the same person drew before is that one, moved."""
        known = {row["annotation_id"]: row for row in self._project.drawn.get(self._key, [])}
        before = {name: row for name, row in known.items() if row["verdict"] != "no" and name not in settled}
        for seen in drawn:
            name = self._name(seen, before)
            old = before.pop(name, None)
            verdict = "add" if old is None or (old["verdict"] == "add" and _equal(old, seen)) else "fix"
            yield self._made(name, verdict, class_name=seen.class_name, box=seen.box, mask=seen.mask)
        for name in before:
            yield self._made(name, "no")

    def _name(self, seen: Seen, before: dict[str, Row]) -> str:
        """Id of something drawn: by the tool's own id, or by what the same person drew there before."""
        source = (self._rules.source, self._image["image_id"], self._image["batch"])
        if seen.region:
            named = fingerprint("drawn", *source, seen.region)
            if named in before:
                return named
        near = [(_near(row, seen), name) for name, row in before.items()]
        best = max(near, default=(0.0, ""))
        if best[0] >= _SAME:
            return best[1]
        where = None if seen.box is None else [round(v, 1) for v in seen.box]
        return fingerprint("drawn", *source, seen.region or [self._reviewer, seen.class_name, where])

    def _made(self, name: str | None, verdict: str, **more: Any) -> Decision:
        return Decision(
            annotation_id=str(name),
            image_id=self._image["image_id"],
            batch=self._image["batch"],
            reviewer=self._reviewer,
            verdict=verdict,
            at=self._answer.at or self._rules.now,
            source=self._rules.source,
            **more,
        )

    def _known(self, made: Decision) -> bool:
        """Whether this person has said just that, from this tool, and nothing else there since."""
        row = self._project.latest.get((made.batch, made.annotation_id, made.reviewer, made.source))
        if row is None:
            return False
        box = tuple(row[key] for key in schema.CORNERS) if row["x1"] is not None else None
        same = (row["verdict"], row["class_name"], row["mask"]) == (made.verdict, made.class_name, made.mask)
        return same and _close(box, made.box)


def _close(one: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).max() <= _CLOSE)


def _equal(row: Row, seen: Seen) -> bool:
    box = tuple(row[key] for key in schema.CORNERS) if row["x1"] is not None else None
    return row["class_name"] == seen.class_name and row["mask"] == seen.mask and _close(box, seen.box)


def _near(row: Row, seen: Seen) -> float:
    if row["class_name"] != seen.class_name:
        return 0.0
    if row["x1"] is None or seen.box is None:
        return float(row["x1"] is None and seen.box is None)
    return float(boxes.iou([[row[key] for key in schema.CORNERS]], [seen.box])[0, 0])
