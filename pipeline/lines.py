"""Files of lines that only grow and survive the death of their process: decisions of people, answers paid for.

A line counts once it is on the disk, newline included (or the object is in the bucket), so one that was being
written when the power went does not, and nothing is ever rewritten or deleted. Every writer has files of its
own, so that any number of processes write side by side.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.fs as fs

from pipeline.errors import StoreError, StoreUnavailable
from pipeline.files import Entry
from pipeline.store import Store

_SUFFIX = "jsonl"
_LINES_PER_OBJECT = 256  # a bucket cannot append: its last object, some 100 kB at most, is put again whole


class Lines:
    """One writer of a folder of lines. Safe to use from several threads.

    Args:
        folder: path inside the store's file system.
    """

    def __init__(self, store: Store, folder: str, session: str | None = None) -> None:
        self._store = store
        self._folder = folder
        self._local = isinstance(store.fs, fs.LocalFileSystem)
        self._session = session or new_session()
        self._lock = threading.Lock()
        self._file: int | None = None
        self._number = 0
        self._held: list[bytes] = []

    def append(self, lines: Sequence[bytes]) -> None:
        """Write lines, each ending in its newline; when this returns, they are durable.

        Raises:
            StoreUnavailable: they could not be written, and none of them may be taken for written.
        """
        with self._lock:
            try:
                self._append_file(b"".join(lines)) if self._local else self._put_objects(lines)
            except OSError as error:
                raise StoreUnavailable(
                    f"cannot write to {self._folder}: {error}", "check free space and permissions there, and try again"
                ) from error

    def close(self) -> None:
        """Close the file. Nothing is lost without it."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
            self._file = None

    def _append_file(self, data: bytes) -> None:
        descriptor = self._file = self._create() if self._file is None else self._file
        start = os.lseek(descriptor, 0, os.SEEK_END)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except OSError:
            # Half a line must not be continued by the next one: cut it off, and go on in another file.
            self._file = None
            with suppress(OSError):
                os.ftruncate(descriptor, start)
            os.close(descriptor)
            raise

    def _create(self) -> int:
        path = Path(self._folder)
        path.mkdir(parents=True, exist_ok=True)
        name = f"{self._session}-{uuid.uuid4().hex[:4]}.{_SUFFIX}"
        descriptor = os.open(path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        # A new name is durable when the folder that lists it is; that folder and its parent may be new, too.
        for parent in (path, path.parent, path.parent.parent):
            listing = os.open(parent, os.O_RDONLY)
            try:
                os.fsync(listing)
            finally:
                os.close(listing)
        return descriptor

    def _put_objects(self, lines: Sequence[bytes]) -> None:
        for first in range(0, len(lines), _LINES_PER_OBJECT):
            some = list(lines[first : first + _LINES_PER_OBJECT])
            if len(self._held) + len(some) > _LINES_PER_OBJECT:
                self._number, self._held = self._number + 1, []
            path = f"{self._folder}/{self._session}-{self._number:04d}.{_SUFFIX}"
            self._store.files.put(path, b"".join(self._held + some))
            self._held = self._held + some


def new_session() -> str:
    """A name for a writer's files: they sort by when it began."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"


def state(store: Store, folder: str) -> list[list[object]]:
    """Names and sizes of the files in `folder`: changes with every line, and with nothing else."""
    return [[_name(entry), entry.bytes] for entry in _files(store, folder)]


def read(store: Store, folder: str) -> Iterator[tuple[bytes, str]]:
    """Every line of `folder` without its newline, and where it is, writer by writer.

    Raises:
        StoreError: a file cannot be read.
    """
    for entry in _files(store, folder):
        try:
            with store.files.open(entry.path) as stream:
                data = bytes(stream.read())
        except OSError as error:
            raise StoreError(f"cannot read {entry.path}: {error}", "check that it may be read") from error
        # What follows the last newline was cut off before it counted.
        for number, line in enumerate(data.split(b"\n")[:-1], start=1):
            yield line, f"{entry.path}, line {number}"


def _files(store: Store, folder: str) -> list[Entry]:
    return sorted((e for e in store.files.entries(folder) if e.path.endswith(f".{_SUFFIX}")), key=_name)


def _name(entry: Entry) -> str:
    return entry.path.rpartition("/")[2]
