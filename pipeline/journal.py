"""People's decisions as they are made: an append-only journal that survives the death of its process.

`STORE/_decisions/batch=B/SESSION.jsonl` holds one JSON object a line (see `pipeline.lines`). Every line carries
the hash of its own content: damage is noticed. The table `decisions` is what `read` makes of these files.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from pipeline import lines, schema
from pipeline.errors import DataError, StoreError
from pipeline.ids import fingerprint
from pipeline.store import Store

VERDICTS = ("yes", "no", "fix", "add", "undo")
TIED = "people disagree"  # begins `decided_by` of a label on which they do
Corners = tuple[float, float, float, float]

_LONGEST_NAME = 64


@dataclass(frozen=True)
class Decision:
    """What one person said of one label.

    Attributes:
        verdict: yes (the label is right), no (there is nothing of the sort), fix (right after this
            change), add (a thing that no label showed), undo (`withdraws` does not count any more).
        class_name, box, mask: the label as the person left it; null for no and undo. A null box with a
            class is a label of the whole image.
        asked_class, asked_box: the label as the person saw it, so that the decision still makes sense
            when a later run no longer proposes it.
        source: page, label-studio, cvat, coco, fiftyone.
    """

    annotation_id: str
    image_id: str
    batch: str
    reviewer: str
    verdict: str
    at: datetime
    source: str
    class_name: str | None = None
    box: Corners | None = None
    mask: str | None = None
    asked_class: str | None = None
    asked_box: Corners | None = None
    withdraws: str | None = None

    @cached_property
    def decision_id(self) -> str:
        """Hash of everything in it."""
        return fingerprint(self._content())

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _FIELDS}

    def _content(self) -> dict[str, Any]:
        return self._fields() | {"at": self.at.astimezone(UTC).isoformat(timespec="microseconds")}

    def line(self) -> bytes:
        """One line of the journal."""
        record = {"decision_id": self.decision_id, **self._content()}
        return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"

    def row(self) -> dict[str, Any]:
        """One row of the table `decisions`."""
        row = {"decision_id": self.decision_id, **self._fields()}
        for prefix, box in (("", row.pop("box")), ("asked_", row.pop("asked_box"))):
            corners = box or (None,) * 4
            row |= {f"{prefix}{key}": value for key, value in zip(("x1", "y1", "x2", "y2"), corners, strict=True)}
        return row


_FIELDS = tuple(field.name for field in fields(Decision))


def checked_reviewer(name: str) -> str:
    """`name`, trimmed.

    Raises:
        DataError: it is empty, too long, or holds unprintable characters.
    """
    trimmed = name.strip()
    if not trimmed or len(trimmed) > _LONGEST_NAME or not trimmed.isprintable():
        raise DataError(f"{name[:80]!r} cannot be a reviewer's name", f"use 1 to {_LONGEST_NAME} printable characters")
    return trimmed


class Journal:
    """One session's writer. Sessions of any number of processes write side by side, each its own files.

    Safe to use from several threads.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._session = lines.new_session()
        self._lock = threading.Lock()
        self._books: dict[str, lines.Lines] = {}
        self._last = datetime.min.replace(tzinfo=UTC)

    def append(self, decisions: Sequence[Decision]) -> list[Decision]:
        """Write decisions; when this returns, they are durable. Their times are made to rise strictly.

        Raises:
            StoreError: they could not be written, and none of them may be taken for made.
        """
        with self._lock:
            stamped = [self._stamped(decision) for decision in decisions]
            made: dict[str, list[bytes]] = {}
            for decision in stamped:
                made.setdefault(decision.batch, []).append(decision.line())
            for batch, written in made.items():
                self._book(batch).append(written)
        return stamped

    def close(self) -> None:
        """Close this session's files. Nothing is lost without it."""
        with self._lock:
            for book in self._books.values():
                book.close()

    def _book(self, batch: str) -> lines.Lines:
        if batch not in self._books:
            self._books[batch] = lines.Lines(self._store, folder(self._store, batch), self._session)
        return self._books[batch]

    def _stamped(self, decision: Decision) -> Decision:
        at = max(decision.at, self._last + timedelta(microseconds=1))
        self._last = at
        return replace(decision, at=at)


def folder(store: Store, batch: str) -> str:
    """Path, inside the store's file system, of a batch's journal files."""
    return f"{store.root}/_decisions/batch={quote(batch, safe='')}"


def state(store: Store, batch: str) -> list[list[object]]:
    """Names and sizes of a batch's journal files: changes with every decision, and with nothing else."""
    return lines.state(store, folder(store, batch))


def read(store: Store, batch: str) -> pa.Table:
    """Rows of `decisions` of one batch, oldest first.

    Raises:
        StoreError: a line that was complete is damaged; the message names it.
    """
    found: dict[str, dict[str, Any]] = {}
    for line, where in lines.read(store, folder(store, batch)):
        decision = _parsed(line, where)
        found[decision.decision_id] = decision.row()
    rows = sorted(found.values(), key=lambda row: (row["at"], row["decision_id"]))
    return schema.table("decisions").from_rows(rows)


def _parsed(line: bytes, where: str) -> Decision:
    try:
        record = json.loads(line)
        stated = record.pop("decision_id")
        record["at"] = datetime.fromisoformat(record["at"])
        for key in ("box", "asked_box"):
            record[key] = tuple(record[key]) if record[key] is not None else None
        decision = Decision(**record)
        intact = decision.decision_id == stated
    except (ValueError, TypeError, KeyError, AttributeError):
        intact = False
    if not intact:
        raise StoreError(f"{where}: damaged", "restore that file from a backup, or remove that line")
    return decision
