"""Any training on Ray Train: data-parallel, checkpointed, and going on with what is left of a cluster.

An example depends on the seed and its number alone, and losses are divided by totals over all workers. So the
number of workers changes nothing but the order in which numbers are summed, and it may change in the middle.

Checkpoints are not Ray's: the first worker writes them into the store itself, whole, and whoever goes on takes the
one that is there. So none is lost that was finished, and a training may go on elsewhere than it began.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from pipeline.compute import Compute, connect_ray
from pipeline.compute.on_ray import compare, installed, own_error
from pipeline.config import TrainingConfig
from pipeline.errors import ComputeError, PipelineError
from pipeline.files import open_files
from pipeline.train.state import FITTED, FileCheckpoints, Fitted, Peers, Progress, Train

Answer = TypeVar("Answer")
# Ray Train looks at the cluster every 20 s: just after a machine is lost it still asks for as many workers as before.
# By default it waits a minute for them, before it counts again.
_START_SECONDS = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}
_BACKENDS = {False: "gloo", True: "cpu:gloo,cuda:nccl"}  # whether on GPUs; few words are said on the CPU there, too
_TOLD_EVERY = 0.1  # seconds between two questions to the driver whether to go on: each takes some milliseconds


def fit(
    train: Train, config: TrainingConfig, checkpoints: FileCheckpoints, compute: Compute, progress: Progress | None
) -> Fitted:
    """`train` on up to `config.workers` Ray workers, one GPU each where the cluster has them.

    Fewer will do, down to `config.min_workers`: when a worker or its machine is lost, those that there is room for
    go on from the last checkpoint, and when there is room again, more do. None is without an example.

    Args:
        checkpoints: where all machines of the cluster see them.
        progress: told here; what it raises ends the training at that step, and keeps it.

    Raises:
        PipelineError: no cluster answers, training failed in every attempt, or what `progress` or a worker raised.
    """
    ray = connect_ray(compute.mode)
    try:
        _Run(ray, train, config, checkpoints, compute).follow(progress)
    except (ConnectionError, ray.exceptions.RayActorError) as error:
        raise ComputeError(
            f"the connection to the Ray cluster at {compute.mode} was lost: {error}",
            "run again when it answers: training goes on from its last checkpoint",
        ) from error
    fitted = checkpoints.result()
    if fitted is None:
        raise ComputeError("training on Ray ended without a result", f"read its workers' logs; {checkpoints.uri}")
    return fitted


def once(function: Callable[[], Answer], compute: Compute) -> Answer:
    """What `function` gives on one machine of the cluster, with a GPU if there are any.

    Raises:
        PipelineError: what it raised, or the cluster cannot do it.
    """
    ray = connect_ray(compute.mode)
    task = ray.remote(num_cpus=1, num_gpus=1 if _gpus(ray, compute) else 0)(_call)
    try:
        answer: Answer = ray.get(task.remote(function))
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise own_error(error) or ComputeError(
            f"the Ray cluster at {compute.mode} could not do it: {error}", "run again when it answers"
        ) from error
    return answer


def _call(function: Callable[[], Answer]) -> Answer:
    return function()


def _gpus(ray: Any, compute: Compute) -> int:
    return int(ray.cluster_resources().get("GPU", 0)) if compute.gpus != 0 else 0


class _Run:
    """One run of Ray Train, and the desk between its workers and this process."""

    def __init__(
        self, ray: Any, train: Train, config: TrainingConfig, checkpoints: FileCheckpoints, compute: Compute
    ) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray = ray
        # Where this process is, or its port to the cluster: lost only with them.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._desk = ray.remote(num_cpus=0, scheduling_strategy=here)(_Desk).remote()
        least, most = (min(n, config.batch_size) for n in (config.min_workers, config.workers))
        workers: Any = (least, most) if least < most else most  # Ray's stubs do not know that bounds may be given
        gpu = _gpus(ray, compute) >= least
        self._files, path = open_files(checkpoints.uri)
        folder, _, name = path.rpartition("/")
        self._notes = f"{folder}/ray/{name}"  # Ray's own, of which it needs none to go on
        self._files.clear(self._notes)
        os.environ.update(_START_SECONDS | os.environ)
        self._trainer = TorchTrainer(
            _loop,
            train_loop_config={"train": train, "checkpoints": checkpoints, "desk": self._desk, "code": installed()},
            torch_config=TorchConfig(backend=_BACKENDS[gpu]),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
            run_config=RunConfig(
                name=name,
                storage_path=f"{folder}/ray",
                storage_filesystem=self._files.fs,
                failure_config=FailureConfig(max_failures=config.max_failures),
            ),
        )
        self._failure: Exception | None = None

    def follow(self, progress: Progress | None) -> None:
        """Until it ends. If `progress` raises, or whoever waits here is interrupted, it ends at the next step."""
        running = threading.Thread(target=self._fit, name="training on Ray", daemon=True)
        running.start()
        spent: PipelineError | None = None
        try:
            while (news := self._ray.get(self._desk.news.remote())) is not None:
                try:
                    if progress:
                        progress(*news)
                except PipelineError as error:
                    spent = error
                self._desk.answer.remote(spent is None)
            running.join()
            found = spent or self._ray.get(self._desk.failure.remote())
            self._files.clear(self._notes)
        except BaseException:
            with suppress(Exception):
                self._desk.close.remote()
            raise
        if found:
            raise found from self._failure
        if isinstance(self._failure, self._ray.train.TrainingFailedError):
            raise ComputeError(
                f"training on Ray failed: {self._failure}", "read its workers' logs, or set `compute: inline`"
            ) from self._failure
        if self._failure:
            raise self._failure

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # noqa: BLE001 - `follow` raises it, on the thread that waits
            self._failure = error
        finally:
            with suppress(Exception):  # the connection may be what was lost
                self._ray.get(self._desk.end.remote())


class _Desk:
    """An actor where the first worker tells how far it is and waits to hear whether to go on."""

    def __init__(self) -> None:
        import asyncio

        self._news: Any = asyncio.Queue()
        self._answers: Any = asyncio.Queue()
        self._open = True
        self._failure: PipelineError | None = None

    async def tell(self, step: int, total: int) -> bool:
        """The driver's word whether to go on after a step."""
        if self._open:
            await self._news.put((step, total))
            self._open = await self._answers.get() and self._open
        return self._open

    async def fail(self, error: PipelineError) -> None:
        """No other try would end otherwise."""
        self._failure, self._open = error, False

    async def is_open(self) -> bool:
        return self._open

    async def news(self) -> tuple[int, int] | None:
        """The next step that is told of; None when the training has ended."""
        told: tuple[int, int] | None = await self._news.get()
        return told

    async def answer(self, go_on: bool) -> None:
        await self._answers.put(go_on)

    async def close(self) -> None:
        self._open = False
        await self._answers.put(False)

    async def end(self) -> None:
        await self._news.put(None)

    async def failure(self) -> PipelineError | None:
        return self._failure


# -- on the workers -------------------------------------------------------------------------------


class _Ended(PipelineError):
    """The driver, or an earlier attempt, wants no more."""


def _loop(options: dict[str, Any]) -> None:
    """What each Ray worker runs."""
    import ray
    import torch
    from ray import train

    desk = options["desk"]
    if not ray.get(desk.is_open.remote()):
        return
    context = train.get_context()
    rank, count = context.get_world_rank(), context.get_world_size()
    peers = Peers(rank, count, torch.distributed.all_reduce) if count > 1 else Peers()
    checkpoints = _Shared(options["checkpoints"], peers)
    try:
        compare(("the driver's machine", options["code"]))
        fitted = options["train"](checkpoints, _Teller(ray, desk, peers), peers)
        if not rank:
            options["checkpoints"].finish(fitted)
    except _Ended:
        pass
    except PipelineError as error:
        ray.get(desk.fail.remote(error))
        raise


class _Shared:
    """The run's checkpoints: all workers take the same one, and the first one writes."""

    def __init__(self, kept: FileCheckpoints, peers: Peers) -> None:
        self._kept, self._peers = kept, peers

    def load(self) -> dict[str, Any] | None:
        while True:
            state = self._kept.load()
            # A worker that was given up for lost may still write.
            if self._peers.agree(state["step"] if state else -1):
                break
        if state and FITTED in state:
            raise _Ended("it is done", "take its result")
        return state

    def save(self, state: dict[str, Any]) -> None:
        if not self._peers.rank:
            self._kept.save(state)


class _Teller:
    """Progress of a worker: the first one asks the driver whether to go on, and all hear it."""

    def __init__(self, ray: Any, desk: Any, peers: Peers) -> None:
        self._ray, self._desk, self._peers = ray, desk, peers
        self._told = -_TOLD_EVERY

    def __call__(self, step: int, total: int) -> None:
        go_on = True
        if not self._peers.rank and (step == total or time.monotonic() - self._told >= _TOLD_EVERY):
            go_on = self._ray.get(self._desk.tell.remote(step, total))
            self._told = time.monotonic()
        if self._stops(not go_on):
            raise _Ended("told to end", "run again")

    def _stops(self, mine: bool) -> bool:
        import torch

        return bool(self._peers.total(torch.tensor(float(mine))))
