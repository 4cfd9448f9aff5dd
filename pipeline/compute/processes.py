"""Local processes, each with a worker of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing.connection import wait

import pyarrow as pa

from pipeline.compute.careful import Child, Died
from pipeline.compute.hands import share_out
from pipeline.compute.job import Compute, Job, Tell, Todo


def run(job: Job, todo: Todo, compute: Compute, tell: Tell) -> Iterator[int]:
    """Do the shards in `compute.workers` processes; yields rows finished."""
    yield from share_out(_Processes(job, min(compute.workers, len(todo))), todo, tell)


class _Processes:
    def __init__(self, job: Job, count: int) -> None:
        self._job = job
        self._threads = max(1, (os.cpu_count() or 1) // count)
        self._idle = [Child(job, self._threads) for _ in range(count)]
        self._busy: dict[Child, str] = {}

    def idle(self) -> list[Child]:
        return list(self._idle)

    def nodes(self) -> dict[str, int]:
        return {}

    def give(self, hand: Child, shard: str, rows: pa.Table, carefully: bool) -> None:
        self._idle.remove(hand)
        self._busy[hand] = shard
        hand.ask(shard, rows, "carefully" if carefully else "put")

    def dismiss(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def wait(self) -> list[tuple[str, bool]]:
        ready = set(wait([child.connection for child in self._busy]))
        ended = []
        for child in [c for c in self._busy if c.connection in ready]:
            shard = self._busy.pop(child)
            try:
                child.answer()
            except Died:
                child.close()
                self._idle.append(Child(self._job, self._threads))
                ended.append((shard, False))
            except BaseException:
                self._idle.append(child)
                raise
            else:
                self._idle.append(child)
                ended.append((shard, True))
        return ended

    def close(self) -> None:
        for child in (*self._idle, *self._busy):
            child.close()
