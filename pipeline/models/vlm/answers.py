"""Answers paid for, kept for ever: an append-only log in the project's store, addressed by question.

Before a request is sent, a line says what it may cost at most; when its answer is there, a line holds it, and
only then does it count. So after a crash nothing that was received is asked again, and what was on its way is
taken for spent. No line holds a key, a picture or a URL.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.fs as fs

from pipeline import lines
from pipeline.errors import StoreError
from pipeline.files import writing
from pipeline.ids import fingerprint
from pipeline.models.vlm.budget import Tokens
from pipeline.models.vlm.questions import Reply
from pipeline.store import Store

Purpose = tuple[str, str]  # the asset and batch that asked


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """Keep other processes of this machine from asking at the same time, and spending the same budget.

    Raises:
        StoreError: one of them does.
    """
    if not isinstance(store.fs, fs.LocalFileSystem):
        yield  # a bucket has no locks: there, the Dagster pool `vlm` must have the limit 1
        return
    import fcntl

    folder = Path(_folder(store))
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    with open(folder / "lock", "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(f"another run is asking the verifier of {store.uri}", "wait until it is done") from error
        yield


class Answers:
    """The log as it was when opened, and what this process adds.

    Attributes:
        spent: tokens by purpose, of every answer and of what was sent without one.
    """

    def __init__(self, store: Store) -> None:
        self._known: dict[str, Reply] = {}
        self._open: dict[str, tuple[Purpose, Tokens]] = {}
        self.spent: dict[Purpose, Tokens] = {}
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        for line, where in lines.read(store, _folder(store)):
            self._take(_parsed(line, where))
        for purpose, tokens in self._open.values():
            self._add(purpose, tokens)
        self._lines = lines.Lines(store, _folder(store))

    def get(self, key: str) -> Reply | None:
        """The answer at that address, if it was paid for."""
        return self._known.get(key)

    @property
    def total(self) -> Tokens:
        """Everything that was spent, or may have been."""
        return sum(self.spent.values(), Tokens())

    async def sending(self, request: str, key: str, purpose: Purpose, worst: Tokens) -> None:
        """Note, durably, that a request is about to be sent."""
        await self._write({"is": "sent", "id": request, "key": key, "for": purpose, **asdict(worst)})

    async def received(self, request: str, key: str, purpose: Purpose, reply: Reply) -> None:
        """Keep, durably, what came back."""
        await self._write({"is": "reply", "id": request, "key": key, "for": purpose, **asdict(reply)})
        self._known[key] = reply
        self._add(purpose, Tokens(reply.sent, reply.written))

    def remember(self, key: str, reply: Reply) -> None:
        """An answer that cost nothing, until this process ends."""
        self._known[key] = reply

    async def returned(self, request: str) -> None:
        """Note that a request cost nothing."""
        await self._write({"is": "void", "id": request})

    def lost(self, purpose: Purpose, worst: Tokens) -> None:
        """Take a request that may have been charged, though nothing came back, for spent; its line says so already."""
        self._add(purpose, worst)

    def close(self) -> None:
        self._lines.close()

    def _add(self, purpose: Purpose, tokens: Tokens) -> None:
        self.spent[purpose] = self.spent.get(purpose, Tokens()) + tokens

    def _take(self, record: dict[str, Any]) -> None:
        if record["is"] == "sent":
            self._open[record["id"]] = (tuple(record["for"]), Tokens(record["sent"], record["written"]))
            return
        self._open.pop(record["id"], None)
        if record["is"] == "reply":
            reply = Reply(**{name: record[name] for name in Reply.__dataclass_fields__})
            # What the endpoint would not take cost nothing, and it may take it next time.
            if reply.state != "declined":
                self._known[record["key"]] = reply
            self._add(tuple(record["for"]), Tokens(reply.sent, reply.written))

    async def _write(self, record: dict[str, Any]) -> None:
        """Durable when it returns. Lines of requests that are on their way together are written together."""
        record = record | {"at": datetime.now(UTC).isoformat(timespec="milliseconds")}
        line = json.dumps(record | {"sum": fingerprint(record)}, ensure_ascii=False, separators=(",", ":"))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((line.encode() + b"\n", done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._flush())
        await done

    async def _flush(self) -> None:
        while self._waiting:
            some, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._lines.append, [line for line, _ in some])
            except StoreError as error:
                for _, done in some:
                    if not done.done():
                        done.set_exception(error)
                continue
            for _, done in some:
                if not done.done():
                    done.set_result(None)


def _folder(store: Store) -> str:
    return f"{store.root}/_answers"


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        intact = record.pop("sum") == fingerprint(record)
    except (ValueError, KeyError, AttributeError):
        intact = False
    if not intact:
        raise StoreError(f"{where}: damaged", "restore that file from a backup, or remove that line")
    return dict(record)
