"""Ray's actors, on this machine or a cluster, each with a worker of its own.

Actors of Ray's core rather than a Ray Data pipeline: a dataset retries rows that kill their actor for ever,
and one that failed keeps its actors, and so their CPUs and GPUs, until Python happens to collect it.
Here a shard goes to one actor at a time, no more is in flight than there are actors, and all of them are
gone when the work ends, however it ends.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from pipeline import logs
from pipeline.compute import careful
from pipeline.compute.hands import share_out
from pipeline.compute.job import Compute, Job, Tell, Todo, Worker, packed, unpacked
from pipeline.errors import ComputeError, PipelineError

_log = logging.getLogger(__name__)
_ANSWER = 10.0  # seconds for a cluster's port to answer
# A head forks a server for each client from a process full of gRPC threads, and now and then the fork dies
# before it runs (seen in one start of five on a busy machine). Another one is what helps.
_CLIENT_SERVER_DIED = ("Starting Ray client server failed", "start_specific_server", "Proxy failed to Connect")
_ATTEMPTS = 5
_DEATHS_AT_START = 4  # of one actor and those in its place: machines may be lost, but not again and again


def run(job: Job, todo: Todo, compute: Compute, tell: Tell) -> Iterator[int]:
    """Do the shards on up to `compute.workers` actors; yields rows finished.

    Work begins when `compute.min_workers` are up. The others may wait for room: to a cluster's autoscaler
    that is the wish for more machines. Actors of a lost machine are asked for again, and those for which
    no shard is left are ended while the last shards are still being done.
    """
    ray = connect_ray(compute.mode)
    try:
        yield from share_out(_Actors(ray, job, compute, len(todo)), todo, tell)
    except ConnectionError as error:
        raise ComputeError(
            f"the connection to the Ray cluster at {compute.mode} was lost: {error}",
            "run again when it answers: finished shards are kept",
        ) from error


class _Shards:
    """What an actor runs. The worker is made at the first shard: what __init__ raises would arrive as text only."""

    def __init__(self, job: Job) -> None:
        logs.set_up()
        self.job = job
        self.worker: Worker | None = None

    def up(self) -> tuple[str, str]:
        """Answers once the actor is running: its machine, and the code that it runs."""
        import ray

        return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})", installed()

    def do(self, shard: str, data: bytes, carefully: bool) -> None:
        rows = unpacked(data)
        if carefully:
            careful.run(self.job, shard, rows)
            return
        self.worker = self.worker or self.job.make()
        self.job.run(self.worker, shard, rows)


class _Actors:
    def __init__(self, ray: Any, job: Job, compute: Compute, shards: int) -> None:
        self._ray = ray
        cluster = ray.cluster_resources()
        count = max(1, min(compute.workers, shards))
        self._patience = compute.patience
        if compute.mode == "auto" and not os.environ.get("RAY_ADDRESS"):
            count = max(1, min(count, int(cluster.get("CPU", 1) // compute.cpus)))
        gpus = compute.gpus
        if gpus is None:  # two models on one GPU, of which neither knows, would not fit
            there = int(cluster.get("GPU", 0))
            gpus = min(there, 1)
            if 0 < there < count:
                _say_fewer(there, count)
                count = there
        self._least = min(compute.min_workers, count)
        # No restarts of Ray's own: which shard an actor died over must be known here.
        self._kind = ray.remote(num_cpus=compute.cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Shards)
        self._job = ray.put(job)
        self._starting: dict[Any, tuple[Any, int]] = {}
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, str]] = {}
        self._machine: dict[Any, str] = {}
        self._up_at = time.monotonic()
        for _ in range(count):
            self._start()

    def _start(self, deaths: int = 0) -> None:
        actor = self._kind.remote(self._job)
        self._starting[actor.up.remote()] = actor, deaths

    def idle(self) -> list[Any]:
        if len(self._idle) < self._least:
            return []
        self._least = 0
        return list(self._idle)

    def dismiss(self) -> None:
        spare = [*(actor for actor, _ in self._starting.values()), *self._idle]
        if self._least or not self._busy:
            return
        self._starting.clear()
        self._idle.clear()
        for actor in spare:
            self._ray.kill(actor)

    def nodes(self) -> Counter[str]:
        return Counter(self._machine[actor] for actor in (*self._idle, *(actor for actor, _ in self._busy.values())))

    def give(self, hand: Any, shard: str, rows: pa.Table, carefully: bool) -> None:
        self._idle.remove(hand)
        self._busy[hand.do.remote(shard, packed(rows), carefully)] = hand, shard

    def wait(self) -> list[tuple[str, bool]]:
        ready, _ = self._ray.wait([*self._starting, *self._busy], num_returns=1, timeout=self._patience)
        if self._busy or (self._idle and not self._least):
            self._up_at = time.monotonic()
        elif not ready and time.monotonic() - self._up_at >= self._patience:
            raise ComputeError(
                f"{len(self._idle)} of {max(1, self._least)} Ray actors came up within {self._patience:.0f} s",
                "the cluster has no free CPU or GPU: see `ray status`; ask for less in `ray:` of project.yaml, "
                "or wait for other work",
            )
        return [end for ref in ready for end in (self._came_up(ref) if ref in self._starting else self._ended(ref))]

    def _came_up(self, ref: Any) -> list[tuple[str, bool]]:
        actor, deaths = self._starting.pop(ref)
        try:
            said = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise own_error(error) or error from error
        except self._ray.exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False) or deaths + 1 == _DEATHS_AT_START:
                raise _never_up(error, deaths + 1) from error
            self._start(deaths + 1)
            return []
        self._idle.append(actor)
        self._machine[actor] = compare(said)
        return []

    def _ended(self, ref: Any) -> list[tuple[str, bool]]:
        actor, shard = self._busy.pop(ref)
        try:
            self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            self._idle.append(actor)
            raise own_error(error) or error from error
        except self._ray.exceptions.RayError:  # the actor, or the machine it was on, is gone
            self._start()
            return [(shard, False)]
        self._idle.append(actor)
        return [(shard, True)]

    def close(self) -> None:
        """Their CPUs and GPUs must be free when the next work begins."""
        actors = [actor for actor, _ in (*self._starting.values(), *self._busy.values())] + self._idle
        if self._ray.is_initialized():
            for actor in actors:
                self._ray.kill(actor)


@lru_cache
def installed() -> str:
    """The package as it lies here: its version, and a hash of its code."""
    import pipeline

    folder, digest = Path(pipeline.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return f"{version('cv-pipeline')} ({digest.hexdigest()[:12]})"


def compare(said: tuple[str, str] | None) -> str:
    """The machine, where it runs the code that lies here: other code there would quietly give other rows.

    Args:
        said: a machine and the code that it runs.

    Raises:
        ComputeError: that is not the code that lies here.
    """
    host, code = said or ("a node", "an older one")
    if code != installed():
        raise ComputeError(
            f"the package on {host} is {code}, here it is {installed()}",
            "install the same on every node and start Ray there again (docs/cluster.md)",
        )
    return host


def _never_up(error: Exception, deaths: int) -> ComputeError:
    why = str(error).strip().splitlines()[-1].strip()[:500]  # of a traceback, what was raised
    return ComputeError(
        f"a Ray actor died {deaths} times before it was up: {why}"
        if deaths > 1
        else f"a Ray actor cannot start: {why}",
        "install this package on every node, in the same version (docs/cluster.md), and see that they have memory",
    )


@lru_cache
def _say_fewer(gpus: int, workers: int) -> None:
    _log.warning(
        "the cluster has %d GPUs: so many actors are started, not %d; with `ray.gpus` below 1 they share them",
        gpus,
        workers,
    )


def own_error(error: Any) -> PipelineError | None:
    """The worker's own PipelineError inside what Ray raised, if it is one."""
    seen: BaseException | None = error
    for _ in range(10):  # causes can go in circles
        if seen is None or isinstance(seen, PipelineError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None


def connect_ray(mode: str) -> Any:
    """The ray module, connected to the cluster that `mode` names.

    Args:
        mode: ray://HOST:PORT, or auto: the cluster that RAY_ADDRESS names, else a Ray of this process's own.

    Raises:
        ComputeError: no cluster answers at that address, or it does not let us in.
    """
    # Ray would otherwise report its use to its makers; it reads this when it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    address = mode if mode.startswith("ray://") else os.environ.get("RAY_ADDRESS") or "local"
    if ray.is_initialized():
        if _connected.get("address", address) == address:
            return ray
        ray.shutdown()  # this process's earlier work was on another cluster
    if address.startswith("ray://"):
        _knock(address)
    for attempt in range(_ATTEMPTS):
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False, configure_logging=False)
        except Exception as error:  # Ray raises bare ones, too, as when a node does not start in time
            died = any(sign in str(error) for sign in _CLIENT_SERVER_DIED)
            if died and attempt + 1 < _ATTEMPTS:
                _log.warning("Ray's server for this client died at its start at %s: asking for another", address)
                ray.shutdown()
                continue
            raise ComputeError(
                f"the Ray cluster at {address} does not take us in: {str(error).strip()[:500]}",
                "it may want RAY_AUTH_MODE=token and the RAY_AUTH_TOKEN of its nodes, or run other versions of Ray "
                "and Python; or set `compute: inline` in project.yaml",
            ) from error
        break
    _connected["address"] = address
    return ray


_connected: dict[str, str] = {}


def _knock(address: str) -> None:
    """Ray's client tries for minutes before it gives up on a host that is not there."""
    parts = urlsplit(address)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 10001), timeout=_ANSWER).close()
    except OSError as error:
        raise ComputeError(
            f"no Ray cluster answers at {address}: {error}",
            "start one with `ray start --head`, or set `compute: inline` in project.yaml",
        ) from error
