"""Rows that kill the process which reads them: found in a child process by halving, and left out.

A decoder or a model in native code can die on one damaged image (SIGSEGV, SIGABRT, the kernel's
out-of-memory killer). A shard that has done so is done in a child, so that only the child dies.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa

from pipeline import logs
from pipeline.compute.job import Job, Worker, packed, unpacked
from pipeline.errors import PipelineError

_log = logging.getLogger(__name__)
_TRIES = 2  # a child may also be killed from outside; the same image twice in a row is no accident


class Died(Exception):
    """The child process is gone. `why` names the signal or exit code."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Child:
    """A process of its own that makes a job's worker once and then does what it is sent.

    It ends when this process does, whatever ends it: its pipe is closed then.
    """

    def __init__(self, job: Job, threads: int = 0) -> None:
        import cloudpickle

        self.connection, theirs = get_context("spawn").Pipe()
        self._process = get_context("spawn").Process(target=_serve, args=(theirs, threads), daemon=False)
        self._process.start()
        theirs.close()
        with contextlib.suppress(OSError):  # that it died is noticed when its answer is read
            self.connection.send_bytes(cloudpickle.dumps(job))

    def ask(self, shard: str, rows: pa.Table, how: str) -> None:
        """Have it do `rows`: 'put' them as `shard`, 'give' them back, or put them 'carefully'."""
        with contextlib.suppress(OSError):
            self.connection.send((shard, packed(rows), how))

    def answer(self) -> Any:
        """What became of the last `ask`.

        Raises:
            Died: the process died over it.
        """
        try:
            outcome, value = self.connection.recv()
        except (EOFError, OSError):
            raise Died(self._obituary()) from None
        if outcome == "raised":
            raise value
        return value

    def close(self) -> None:
        """End it, whatever it is doing."""
        self.connection.close()
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def _obituary(self) -> str:
        self._process.join(10)
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
        return f"signal {-code}"


def _serve(connection: Connection, threads: int) -> None:
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # before the worker's module imports torch or OpenBLAS
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes the pipe
    import cloudpickle

    logs.set_up()
    with contextlib.suppress(EOFError, OSError):
        job: Job = cloudpickle.loads(connection.recv_bytes())
        ready: Worker | None = None
        while True:
            shard, data, how = connection.recv()
            try:
                rows = unpacked(data)
                ready = ready or (None if how == "carefully" else job.make())
                if how == "carefully":
                    run(job, shard, rows)
                elif ready is not None and how == "put":
                    job.run(ready, shard, rows)
                answer = packed(job.rows(ready, rows)) if ready is not None and how == "give" else rows.num_rows
            except Exception as error:  # noqa: BLE001 - the parent decides what it means
                connection.send(("raised", _portable(error)))
            else:
                connection.send(("done", answer))


def _portable(error: Exception) -> Exception:
    """`error`, or its words where it cannot travel."""
    import pickle

    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made on the line itself
    except Exception:  # noqa: BLE001 - whatever an exception's own pickling raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def run(job: Job, shard: str, rows: pa.Table) -> None:
    """Do a shard that has killed a process: rows that nothing survives are noted as failed and left out.

    Raises:
        PipelineError: the worker dies without any row, so no image is to blame.
    """
    _log.warning("shard %s killed its process: doing its %d rows in a child", shard, rows.num_rows)
    with _Nurse(job) as nurse:
        parts: list[pa.Table] = []
        for start in range(0, rows.num_rows, job.batch_size):
            parts += nurse.survive(rows.slice(start, job.batch_size))
        failed = nurse.failed
        parts = parts or [nurse.must(rows.slice(0, 0))]
    if failed:
        job.staging.note_failures(shard, pa.concat_tables(failed))
    job.staging.put(shard, pa.concat_tables(parts))


class _Nurse:
    """Keeps one child alive to try rows on."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.failed: list[pa.Table] = []
        self._child: Child | None = None

    def __enter__(self) -> _Nurse:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child:
            self._child.close()

    def survive(self, rows: pa.Table) -> Iterator[pa.Table]:
        """What the worker makes of `rows` without those that kill it, in order."""
        try:
            yield self._try(rows)
        except Died as death:
            if rows.num_rows > 1:
                half = rows.num_rows // 2
                yield from self.survive(rows.slice(0, half))
                yield from self.survive(rows.slice(half))
                return
            why = death.why
            for _ in range(_TRIES - 1):
                try:
                    yield self._try(rows)
                    return
                except Died as again:
                    why = again.why
            self.must(rows.slice(0, 0))
            self.failed.append(_failure(rows, f"killed the process that worked on it ({why})"))
            _log.warning("left out: %s", self.failed[-1].to_pylist()[0])

    def must(self, rows: pa.Table) -> pa.Table:
        """As the worker makes of `rows`, which no image can be blamed for."""
        try:
            return self._try(rows)
        except Died as death:
            raise PipelineError(
                f"{self.job.worker.__name__} dies as soon as it is made ({death.why})",
                "check memory and the weights: cvp doctor; cvp models check",
            ) from death

    def _try(self, rows: pa.Table) -> pa.Table:
        self._child = self._child or Child(self.job)
        self._child.ask("", rows, "give")
        try:
            return unpacked(self._child.answer())
        except Died:
            self._child.close()
            self._child = None
            raise


_NAMES = ("image_id", "batch", "uri", "file_name", "unit")


def _failure(rows: pa.Table, reason: str) -> pa.Table:
    named = rows.select([name for name in _NAMES if name in rows.column_names])
    return named.append_column("reason", pa.array([reason] * rows.num_rows, pa.string()))
