"""What is done, wherever it is done: one worker class over the shards of a table."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa

from pipeline import logs
from pipeline.store import Staging

_log = logging.getLogger(__name__)


class Worker(Protocol):
    """Loads its weights when made; turns rows into rows, knowing nothing of where it runs."""

    def __call__(self, rows: pa.Table) -> pa.Table: ...


class AheadWorker(ABC):
    """A worker that reads what it needs of the rows ahead of its model, while that is busy with earlier ones."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        return self.answer(rows, self.read(rows))

    @abstractmethod
    def read(self, rows: pa.Table) -> Iterator[Any]:
        """Something for each row, in order; made on threads before it is asked for (`pipeline.ahead`)."""

    @abstractmethod
    def answer(self, rows: pa.Table, read: Iterable[Any]) -> pa.Table:
        """Rows for rows, with what was read of each."""


Progress = Callable[[int, int], None]  # images done, images in all


@dataclass(frozen=True)
class Load:
    """How a piece of work stands: workers up, those at work, shards in the queue, workers that died so far;
    images that an earlier run had done, and images in all; on Ray, how many workers each machine has."""

    workers: int
    busy: int
    waiting: int
    lost: int
    kept: int
    total: int
    nodes: Mapping[str, int] = field(default_factory=dict)


Tell = Callable[[int, int, int, int, Mapping[str, int]], None]  # the first four of `Load`, and its last
Failures = Callable[[pa.Table], None]  # the input rows that killed their worker, with a column `reason`


@dataclass(frozen=True)
class Compute:
    """One setting for labelling, embedding and training.

    Attributes:
        mode: inline, local, auto (a Ray on this machine) or ray://HOST:PORT.
        workers: processes or actors at most, unless inline. On Ray, work begins with the first that is up.
        batch_size: rows a worker sees at once; part of a result's identity, since models round
            differently in other batch shapes.
        cpus: of each Ray actor: its threads, on which photos are decoded ahead of the model.
        gpus: of each Ray actor, a share of one if below 1; None: a whole one, and no more actors than there are
            GPUs, unless the cluster has none.
        min_workers: actors that must be up before work begins on Ray.
        patience: seconds to wait for them, and for any while none is up.
        load: told how the work stands whenever that changes.
        failed: told of the rows that no process survived; the others are done without them.
    """

    mode: str = "inline"
    workers: int = 2
    batch_size: int = 16
    batches_per_shard: int = 8
    progress: Progress | None = field(default=None, compare=False)
    cpus: float = 1
    gpus: float | None = None
    min_workers: int = 1
    patience: float = 300.0
    load: Callable[[Load], None] | None = field(default=None, compare=False)
    failed: Failures | None = field(default=None, compare=False)

    @property
    def on_ray(self) -> bool:
        return self.mode not in ("inline", "local")


@dataclass(frozen=True)
class Job:
    """A worker, how to make it, and where its finished shards go. Travels to other processes whole."""

    worker: Callable[..., Worker]
    options: dict[str, Any]
    batch_size: int
    staging: Staging

    def make(self) -> Worker:
        return self.worker(**self.options)

    def run(self, ready: Worker, shard: str, rows: pa.Table) -> None:
        """Do one shard and write it."""
        started = time.monotonic()
        with logs.labelled(**self.staging.labels, shard=shard):
            self.staging.put(shard, self.rows(ready, rows))
            _log.info("shard done", extra={"images": rows.num_rows, "seconds": round(time.monotonic() - started, 3)})

    def rows(self, ready: Worker, rows: pa.Table) -> pa.Table:
        """What the worker makes of `rows`, batch by batch."""
        batches = [rows.slice(start, self.batch_size) for start in range(0, max(rows.num_rows, 1), self.batch_size)]
        if not isinstance(ready, AheadWorker):
            return pa.concat_tables([ready(batch) for batch in batches])
        read = ready.read(rows)  # of all, so that the model need not wait at the beginning of each batch
        return pa.concat_tables([ready.answer(batch, list(islice(read, batch.num_rows))) for batch in batches])


Todo = list[tuple[str, pa.Table]]  # shards by name, in the order of the input


def packed(rows: pa.Table) -> bytes:
    """`rows` as an Arrow stream. Pickling a slice would take the whole table along."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def unpacked(data: bytes) -> pa.Table:
    """The table that `packed` made into bytes."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()
