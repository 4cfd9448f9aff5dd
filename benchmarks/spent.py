"""What a process and all its descendants cost: time on the clock, time on cores, and memory, read from /proc."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from common import status

T = TypeVar("T")
_TICK = os.sysconf("SC_CLK_TCK")
_PAUSE = 0.1


@dataclass(frozen=True)
class Spent(Generic[T]):
    """Of one call. Processes that end are counted up to 0.1 s before their end.

    Attributes:
        wall, cores: seconds. peak: MiB resident, of the largest single process, from its own record of it.
    """

    result: T
    wall: float
    cores: float
    peak: float


def spent(work: Callable[[], T]) -> Spent[T]:
    """Do `work`, and say what this process and its descendants spent meanwhile."""
    before, seen = _ticks(), dict[int, int]()
    peaks: dict[int, float] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_PAUSE):
            seen.update(_ticks())
            peaks.update((pid, _peak(pid)) for pid in seen)

    watcher = threading.Thread(target=watch, daemon=True)
    Path("/proc/self/clear_refs").write_text("5")  # this process's peak starts again from here
    watcher.start()
    start = time.perf_counter()
    try:
        result = work()
    finally:
        wall = time.perf_counter() - start
        over.set()
        watcher.join()
    seen.update(_ticks())
    ticks = sum(ticks - before.get(pid, 0) for pid, ticks in seen.items())
    return Spent(result, wall, ticks / _TICK, max([_peak(os.getpid()), *peaks.values()]))


def _ticks() -> dict[int, int]:
    """Clock ticks on cores by process: this one and all its descendants."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(path.parent.name)
        parents[pid], ticks[pid] = int(words[1]), int(words[11]) + int(words[12])
    return {pid: ticks[pid] for pid in ticks if _descends(pid, parents)}


def _descends(pid: int, parents: dict[int, int]) -> bool:
    while pid and pid != os.getpid():
        pid = parents.get(pid, 0)
    return pid != 0


def _peak(pid: int) -> float:
    try:
        return status("VmHWM", pid) / 1024
    except (OSError, StopIteration):  # it has ended, or is a zombie, which has no memory
        return 0.0
