"""What is being made just now: small files that running work renews, and `cvp status` reads.

`STORE/_pulse/TABLE.BATCH.HOST.PID.json` is written when the making of a table's batch begins, every few seconds
while it goes on, and removed when it ends. A process that is killed leaves its file, which then grows old: that is
how a dead run is told from a slow one, on whatever machine it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.compute import Load
from pipeline.errors import StoreError
from pipeline.store import Store

FIRST, EVERY = 1.0, 5.0  # seconds until the first beat, which short work never sees, and between two
SILENT = 6 * EVERY  # without one for so long, the process is taken for dead
_FORGOTTEN = 24 * 3600.0  # seconds after which what a dead process left is removed by the next one


@dataclass(frozen=True)
class Pulse:
    """One table of one batch in the making.

    Attributes:
        done, total: images, 0 where the work does not say. kept: of `done`, what an earlier run had finished.
        began, seen: seconds since 1970, by the clock of its host.
        mode, workers: as in `Compute`; how many are up. busy, waiting: shards in work, and in the queue.
        lost: workers that died. nodes: on Ray, how many are up on each machine.
        memory: peak MiB of its process and its children on that host.
    """

    table: str
    batch: str
    host: str
    pid: int
    began: float
    seen: float
    mode: str = "inline"
    done: int = 0
    kept: int = 0
    total: int = 0
    workers: int = 0
    busy: int = 0
    waiting: int = 0
    lost: int = 0
    memory: float = 0.0
    nodes: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Images a second so far; 0 while none is done."""
        return max(0, self.done - self.kept) / max(self.seen - self.began, 1e-9)

    @property
    def left(self) -> float | None:
        """Seconds until it will be done at this rate; None while that is unknown."""
        return (self.total - self.done) / self.rate if self.total and self.rate else None

    def silent(self, now: float) -> float:
        """Seconds since its last sign of life, if it is too many; else 0."""
        return now - self.seen if now - self.seen > SILENT else 0.0


class Beat:
    """The pulse of this process's present work. Tells what it has done on a thread of its own."""

    def __init__(self, store: Store, table: str, batch: str | None, mode: str) -> None:
        now = time.time()
        self.pulse = Pulse(table, batch or "", socket.gethostname(), os.getpid(), now, now, mode)
        self.longest_queue = 0
        self._store, self._lock, self._end = store, threading.Lock(), threading.Event()
        self._written = False
        name = ".".join(quote(part, safe="") for part in (table, batch or "", self.pulse.host))
        self._path = f"{_folder(store)}/{name}.{self.pulse.pid}.json"
        self._thread = threading.Thread(target=self._run, name=f"pulse {table}", daemon=True)

    def progress(self, done: int, total: int) -> None:
        """Images done and in all."""
        with self._lock:
            self.pulse = replace(self.pulse, done=done, total=total)

    def load(self, load: Load) -> None:
        """Workers and queue; the first time also what an earlier run has left to do."""
        now: dict[str, Any] = {"workers": load.workers, "busy": load.busy, "waiting": load.waiting, "lost": load.lost}
        now["nodes"] = dict(load.nodes)
        with self._lock:
            if not self.pulse.total:
                now |= {"kept": load.kept, "done": load.kept, "total": load.total}
            self.pulse = replace(self.pulse, **now)
            self.longest_queue = max(self.longest_queue, load.waiting)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> Pulse:
        """End it; how the work stood."""
        self._end.set()
        self._thread.join()
        self._renew()
        if self._written:
            with contextlib.suppress(OSError, StoreError):
                self._store.files.delete([self._path])
        return self.pulse

    def _run(self) -> None:
        if self._end.wait(FIRST):
            return
        with contextlib.suppress(OSError, StoreError):
            _forget(self._store)
        self._write()
        while not self._end.wait(EVERY):
            self._write()

    def _write(self) -> None:
        self._renew()
        self._written = True
        # Nobody's work may fail because its pulse cannot be told.
        with contextlib.suppress(OSError, StoreError):
            self._store.files.put(self._path, json.dumps(asdict(self.pulse)).encode())

    def _renew(self) -> None:
        held = memory()
        with self._lock:
            self.pulse = replace(self.pulse, seen=time.time(), memory=max(self.pulse.memory, held))


@contextmanager
def beating(store: Store, table: str, batch: str | None, mode: str) -> Iterator[Beat]:
    """Let it be known, while the context is open, that a table of a batch is being made."""
    beat = Beat(store, table, batch, mode)
    beat.start()
    try:
        yield beat
    finally:
        beat.stop()


def read(store: Store) -> list[Pulse]:
    """What is being made in a store, and what was when its process died; those that began first come first."""
    return sorted((pulse for _, pulse in _files(store)), key=lambda p: (p.began, p.table))


def _files(store: Store) -> Iterator[tuple[str, Pulse]]:
    for entry in list(store.files.entries(_folder(store))):
        with contextlib.suppress(OSError, ValueError, TypeError):  # it has just ended, or is of another version
            with store.files.open(entry.path) as file:
                found: dict[str, Any] = json.loads(file.read())
            yield entry.path, Pulse(**found)


def _forget(store: Store) -> None:
    """Remove what processes that died long ago left."""
    store.files.delete([path for path, pulse in _files(store) if time.time() - pulse.seen > _FORGOTTEN])


def _folder(store: Store) -> str:
    return f"{store.root}/_pulse"


def memory() -> float:
    """MiB of memory that this process and its children hold now; 0 where Linux's /proc is not to be had."""
    todo, pages = [os.getpid()], 0
    while todo:
        process = Path("/proc") / str(todo.pop())
        with contextlib.suppress(OSError, ValueError):  # it has ended
            pages += int((process / "statm").read_text().split()[1])
            todo += [int(c) for task in (process / "task").iterdir() for c in (task / "children").read_text().split()]
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
