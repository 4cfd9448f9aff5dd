"""Which process makes a run of `cvp run`, and whether it is still there.

Dagster's daemon watches the runs that it starts. One that a terminal started ends with its process; if that is
killed, nobody says so: Dagster would show the run as running for ever, ask for none of its batches again, and keep
its places in pools. So such a run carries its process as tags, and is marked as failed by the next `cvp run` and
by `assets.run_launcher`.
"""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import dagster as dg

from pipeline import pulse
from pipeline.config import find_project
from pipeline.errors import PipelineError
from pipeline.store import Store

HOST, PLACE, PID, BORN, PROJECT = (f"cvp/{name}" for name in ("host", "place", "pid", "born", "project"))
_SILENT = 600.0  # seconds without a pulse, on another host, whose clock may go differently
_BETWEEN = 3600.0  # the same where it has none: it is between two tables, or died there
_UNFINISHED = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_PROC = Path("/proc")


def tags(project: str) -> dict[str, str]:
    """Tags of a run that this process makes of a project."""
    pid = os.getpid()
    return {HOST: socket.gethostname(), PLACE: _place(), PID: str(pid), BORN: _born(pid) or "", PROJECT: project}


def gone(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Why a run of `cvp run` cannot be going on any more; None if it may be, or is another kind of run.

    Of this machine's own, since it booted, the process itself tells at once; of others, and of this one's before that,
    a long silence.
    """
    host, pid = run.tags.get(HOST), run.tags.get(PID)
    if host is None or pid is None:
        return None
    again = f"cvp run {run.tags.get(PROJECT, 'PROJECT')} goes on at its last finished shard"
    born = run.tags.get(BORN, "")
    if (host, run.tags.get(PLACE), _boot(born)) == (socket.gethostname(), _place(), _boot(_born(os.getpid()) or "")):
        same = _born(int(pid)) == born
        return None if same else f"its process {pid} on {host} ended without a word: {again}"
    silent, allowed = _silence(instance, run, host, int(pid))
    return f"no sign of life from {host} {pid} for {silent:.0f} s: {again}" if silent > allowed else None


def mark_gone(instance: dg.DagsterInstance) -> list[str]:
    """Mark the runs of terminals that are gone as failed, and free their places in pools; their ids."""
    marked = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=_UNFINISHED)):
        if why := gone(instance, run):
            instance.report_run_failed(run, why)
            if instance.event_log_storage.supports_global_concurrency_limits:
                instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            marked.append(run.run_id)
    return marked


def _place() -> str:
    """Where process numbers mean the same: a container that shares the host's name has numbers of its own."""
    try:
        return str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return ""


def _born(pid: int) -> str | None:
    """What a process has and a later one of the same number has not; None if there is no such process."""
    if not _PROC.is_dir():  # not Linux: the number alone
        with suppress(PermissionError):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return None
        return ""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        state, *fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else f"{boot} {fields[18]}"  # its start, in ticks since then: see proc_pid_stat(5)


def _boot(born: str) -> str:
    """The boot of a machine in what `_born` says: two machines may have one name, and the same namespace of numbers."""
    return born.partition(" ")[0]


def _silence(instance: dg.DagsterInstance, run: dg.DagsterRun, host: str, pid: int) -> tuple[float, float]:
    """Seconds since the last sign of life of a process elsewhere, its pulse or what it told Dagster, and how many may
    pass; 0 where its store cannot be asked."""
    with suppress(PipelineError, OSError):
        store = Store(find_project(run.tags.get(PROJECT, "")).store_uri)
        pulses = [p.seen for p in pulse.read(store) if (p.host, p.pid) == (host, pid)]
        said = [r.timestamp for r in instance.get_records_for_run(run.run_id, limit=1, ascending=False).records]
        record = instance.get_run_record_by_id(run.run_id)
        began = [record.create_timestamp.timestamp()] if record else []
        return time.time() - max(*pulses, *said, *began, 0.0), _SILENT if pulses else _BETWEEN
    return 0.0, _SILENT
