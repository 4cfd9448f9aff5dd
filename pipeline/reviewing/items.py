"""What one person is asked, in order, and what has been said already."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import boxes, decisions, journal, review, schema
from pipeline.config import Project
from pipeline.errors import DataError, StoreError
from pipeline.ids import fingerprint, producer_name
from pipeline.journal import Corners, Decision, Journal
from pipeline.store import Store

SOURCE = "page"
_SHORTEST = 1.0  # pixel
_MOST_OTHERS = 200
_SHOWN = ("annotation_id", "class_name", "status", *schema.CORNERS)

Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One question: a label on its image.

    Attributes:
        key: names it in URLs.
        image, label: rows of `images` and `labels`.
        other_mask: what a model draws where people's mask is in doubt.
    """

    key: str
    image: Row
    label: Row
    reason: str
    other_mask: str | None = None

    @property
    def box(self) -> Corners | None:
        x1, y1, x2, y2 = (self.label[key] for key in schema.CORNERS)
        return None if x1 is None else (x1, y1, x2, y2)


class Desk:
    """One person's place at the queue. Safe to use from several threads.

    Asked are labels of the queue that nobody has decided on; a share of `overlap` of all of them, the same
    for everybody, that others have decided on, too; and first of all those on which others disagree.

    Args:
        overlap: share of the queue that everybody is asked.
    """

    def __init__(self, project: Project, store: Store, reviewer: str, overlap: float) -> None:
        self.project = project
        self.reviewer = reviewer
        self._store = store
        self._overlap = overlap
        self._lock = threading.RLock()
        self._journal = Journal(store)
        self._state: dict[str, Any] = {}
        self._said: dict[str, Row] = {}
        self._items: list[Item] = []
        self._by_key: dict[str, int] = {}
        self._others: pa.Table = schema.table("labels").empty()
        self.refresh()

    # -- what is asked ---------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take in what runs and other people have changed.

        Raises:
            StoreError: there is no queue yet.
        """
        batches = self._store.batches("review_queue")
        if not batches:
            raise StoreError(
                f"{self.project.name!r} has no review queue yet", f"run: cvp run {self.project.name}, then review"
            )
        state = {b: [str(self._store.receipt("review_queue", b)), journal.state(self._store, b)] for b in batches}
        with self._lock:
            if state != self._state:
                self._load(batches)
                self._state = state

    def _load(self, batches: list[str]) -> None:
        queue = self._store.read("review_queue", batches)
        labels = schema.where_in(
            self._store.read("labels", batches), "image_id", queue.column("image_id").unique().to_pylist()
        )
        labels = pa.concat_tables([labels, review.proposals(queue, labels)])
        images = schema.where_in(
            self._store.read("images", batches), "image_id", queue.column("image_id").unique().to_pylist()
        )
        frames = {(row["batch"], row["image_id"]): row for row in images.to_pylist()}
        asked = labels.filter(pc.is_in(labels.column("annotation_id"), queue.column("annotation_id").unique()))
        known = {(row["batch"], row["annotation_id"]): row for row in asked.to_pylist()}
        standing = [d for b in batches for d in decisions.standing(journal.read(self._store, b))]
        said: dict[tuple[str, str], list[Row]] = {}
        for row in standing:
            said.setdefault((row["batch"], row["annotation_id"]), []).append(row)
        first: list[Item] = []
        then: list[Item] = []
        for row in queue.sort_by([("rank", "ascending"), ("batch", "ascending")]).to_pylist():
            place = row["batch"], row["annotation_id"]
            label, image = known.get(place), frames.get((row["batch"], row["image_id"]))
            if label is None or image is None:
                continue
            others = [d for d in said.get(place, []) if d["reviewer"] != self.reviewer]
            disagree = self._disagree(others)
            if others and not disagree and not self._is_shared(row["annotation_id"]):
                continue
            reason = "two people disagree" if disagree else row["reason"]
            (first if disagree else then).append(Item(_key(*place), image, label, reason, row["mask"]))
        self._items = first + then
        self._by_key = {item.key: i for i, item in enumerate(self._items)}
        self._said = {_key(d["batch"], d["annotation_id"]): d for d in standing if d["reviewer"] == self.reviewer}
        self._others = labels.select([*_SHOWN, "image_id", "batch"]).sort_by([("image_id", "ascending")])

    def _disagree(self, others: list[Row]) -> bool:
        if len(others) < 2:
            return False
        table = schema.table("decisions").from_rows(others)
        return any(o.decided is None for o in decisions.outcomes(table, self.project.config.trust.iou))

    def _is_shared(self, annotation: str) -> bool:
        return int(fingerprint("overlap", annotation)[:8], 16) < self._overlap * 2**32

    def item(self, key: str) -> Item:
        """The item named `key`.

        Raises:
            DataError: there is none.
        """
        with self._lock:
            if key not in self._by_key:
                raise DataError("no such item in the queue", "load the page again")
            return self._items[self._by_key[key]]

    def items(self, start: int, count: int) -> list[tuple[int, Item, Row | None]]:
        """Items from `start` on: place, item, and what this person has said of it."""
        with self._lock:
            chosen = self._items[max(start, 0) : max(start, 0) + count]
            return [(max(start, 0) + i, item, self._said.get(item.key)) for i, item in enumerate(chosen)]

    def others(self, item: Item) -> pa.Table:
        """Boxes of other labels on an item's image, at most 200: annotation_id, class_name, status, x1 … y2."""
        with self._lock:
            rows = self._others
        ids = rows.column("image_id")
        mine = rows.filter(
            pc.and_(pc.equal(ids, item.image["image_id"]), pc.equal(rows.column("batch"), item.image["batch"]))
        )
        keep = pc.and_(
            pc.not_equal(mine.column("annotation_id"), item.label["annotation_id"]),
            pc.and_(pc.is_valid(mine.column("x1")), pc.not_equal(mine.column("status"), "rejected")),
        )
        return mine.filter(keep).select(_SHOWN).slice(0, _MOST_OTHERS)

    def progress(self) -> dict[str, Any]:
        """How many items there are, how many this person has decided, and the first that is open."""
        with self._lock:
            mine = [self._said.get(item.key) for item in self._items]
            counts = Counter(row["verdict"] for row in mine if row is not None)
            first = next((i for i, row in enumerate(mine) if row is None), len(mine))
            return {
                "total": len(mine),
                "done": sum(counts.values()),
                "first": first,
                **{v: counts[v] for v in ("yes", "no", "fix")},
            }

    # -- what is said ----------------------------------------------------------------------------

    def decide(self, key: str, verdict: str, class_name: str | None, box: list[float] | None) -> Row:
        """Write a decision; it is durable when this returns.

        Args:
            verdict: yes, no or fix. A fix that changes nothing is a yes.
            class_name, box: for fix; left out where they stay.

        Raises:
            DataError: no such item, verdict or class, or a box that is empty or outside its image.
            StoreError: it could not be written.
        """
        item = self.item(key)
        if verdict not in ("yes", "no", "fix"):
            raise DataError(f"{verdict!r:.40} is no verdict", "say yes, no or fix")
        label, seen = item.label, item.box
        made = Decision(
            annotation_id=label["annotation_id"],
            image_id=label["image_id"],
            batch=label["batch"],
            reviewer=self.reviewer,
            verdict=verdict,
            at=datetime.now(UTC),
            source=SOURCE,
            asked_class=label["class_name"],
            asked_box=seen,
        )
        if verdict != "no":
            name = label["class_name"] if class_name is None else self._class(class_name)
            corners = seen if box is None or seen is None else _checked(box, item.image)
            moved = corners != seen
            mask = None if moved else label["mask"]
            same = not moved and name == label["class_name"]
            made = replace(made, verdict="yes" if same else "fix", class_name=name, box=corners, mask=mask)
        return self._write(key, made)

    def undo(self) -> tuple[str, Row] | None:
        """Withdraw this person's latest decision on the queue; the key of its item, or None."""
        with self._lock:
            mine = [(key, self._said[key]) for key in self._by_key if key in self._said]
            if not mine:
                return None
            key, last = max(mine, key=lambda pair: (pair[1]["at"], pair[1]["decision_id"]))
            item = self.item(key)
            undone = Decision(
                annotation_id=last["annotation_id"],
                image_id=item.label["image_id"],
                batch=last["batch"],
                reviewer=self.reviewer,
                verdict="undo",
                at=datetime.now(UTC),
                source=SOURCE,
                withdraws=last["decision_id"],
            )
            return key, self._write(key, undone)

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _write(self, key: str, made: Decision) -> Row:
        with self._lock:
            (stamped,) = self._journal.append([made])
            rows = decisions.standing(journal.read(self._store, made.batch)) if made.verdict == "undo" else []
            before = [d for d in rows if d["reviewer"] == self.reviewer and d["annotation_id"] == made.annotation_id]
            if made.verdict != "undo":
                self._said[key] = stamped.row()
            elif before:
                self._said[key] = before[-1]
            else:
                self._said.pop(key, None)
            return stamped.row()

    def _class(self, name: str) -> str:
        if name not in self.project.ontology.names:
            raise DataError(f"{name!r:.80} is no class of the project", "choose one that is shown")
        return name


def _key(batch: str, annotation: str) -> str:
    return f"{annotation}-{fingerprint(batch)[:8]}"


def _checked(box: list[float], image: Row) -> Corners:
    """A box cut to its image and rounded to hundredths of a pixel."""
    corners = np.asarray(box, np.float64)
    if corners.shape != (4,) or not np.isfinite(corners).all():
        raise DataError("a box must be four numbers", "draw it again")
    cut = boxes.clip([corners], image["width"], image["height"])[0].round(2)
    if cut[2] - cut[0] < _SHORTEST or cut[3] - cut[1] < _SHORTEST:
        raise DataError("the box is empty, or outside its image", "draw it again")
    x1, y1, x2, y2 = (float(np.float32(v)) for v in cut)
    return x1, y1, x2, y2


def described(number: int, item: Item, said: Row | None, near: tuple[int, int, int, int]) -> Row:
    """An item as the page gets it."""
    label, image = item.label, item.image
    return {
        "key": item.key,
        "number": number,
        "class": label["class_name"],
        "score": label["score"],
        "threshold": label["threshold"],
        "reason": item.reason,
        "producer": producer_name(label["producer"]),
        "batch": image["batch"],
        "file": image["file_name"],
        "width": image["width"],
        "height": image["height"],
        "box": item.box,
        "masked": label["mask"] is not None,
        "near": near,
        "said": None if said is None else _answer(said),
    }


def _answer(said: Row) -> Row:
    box = None if said["x1"] is None else [said[key] for key in schema.CORNERS]
    return {"verdict": said["verdict"], "class": said["class_name"], "box": box}
