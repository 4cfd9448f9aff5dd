"""The detector's training loop on Ray Train: data-parallel, checkpointed, and going on with what is left of a cluster.

An example depends on the seed and its number alone, and losses are divided by totals over all workers. So the
number of workers changes nothing but the order in which numbers are summed, and it may change in the middle.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from pipeline.compute import connect_ray
from pipeline.errors import PipelineError
from pipeline.files import Files
from pipeline.train import fcos
from pipeline.train.state import Fitted

SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of a run's checkpoints
_STATE, _RESULT = "state.pt", "result.pt"
# Ray Train looks at the cluster every 20 s: just after a machine is lost it still asks for as many workers as before.
# By default it waits a minute for them, before it counts again.
_START_SECONDS = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}


def fit(job: fcos.Job, folder: str, name: str, mode: str, files: Files) -> Fitted:
    """`fcos.fit` on up to `job.config.workers` Ray workers, one GPU each where the cluster has them.

    Fewer will do, down to `job.config.min_workers`: when a worker or its machine is lost, those that there is
    room for go on from the last checkpoint, and when there is room again, more do.

    Args:
        folder: path in `files` where Ray keeps checkpoints: one that all machines of the cluster see.
        name: of the run under `folder`; a run that was cut short goes on under the same name.

    Raises:
        PipelineError: no cluster answers, or training failed in every attempt.
    """
    ray = connect_ray(mode)
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    least, most = job.config.min_workers, job.config.workers
    os.environ.update(_START_SECONDS | os.environ)
    _forget_if_damaged(files, f"{folder}/{name}")
    gpu = ray.cluster_resources().get("GPU", 0) >= least
    workers: Any = (least, most) if least < most else most  # Ray's stubs do not know that bounds may be given
    trainer = TorchTrainer(
        _loop,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(
            name=name,
            storage_path=folder,
            storage_filesystem=files.fs,
            failure_config=FailureConfig(max_failures=job.config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        result = trainer.fit()
    except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:  # or its controller is lost
        raise PipelineError(
            f"training on Ray failed: {error}", f"read the workers' logs, or set `compute: inline`; state: {folder}"
        ) from error
    if result.checkpoint is None:
        raise PipelineError("training on Ray ended without a result", f"read the workers' logs; state: {folder}")
    fitted = _fitted(result.checkpoint)
    files.clear(f"{folder}/{name}")  # a finished run needs no checkpoints
    return fitted


def _forget_if_damaged(files: Files, run: str) -> None:
    """Ray writes its list of checkpoints in place, and a run whose list was cut short can never go on; from the start,
    training gives the same result."""
    try:
        with files.open(f"{run}/{SNAPSHOT}") as file:
            json.loads(file.read())
    except FileNotFoundError:
        pass
    except ValueError:
        files.clear(run)


def _fitted(checkpoint: Any) -> Fitted:
    import torch

    with checkpoint.as_directory() as folder:
        return Fitted(**torch.load(Path(folder) / _RESULT, map_location="cpu", weights_only=True))


def _loop(options: dict[str, Any]) -> None:
    """What each Ray worker runs."""
    import torch
    from ray import train

    context = train.get_context()
    rank, count = context.get_world_rank(), context.get_world_size()
    peers = fcos.Peers(rank, count, torch.distributed.all_reduce) if count > 1 else fcos.Peers()
    fitted = fcos.fit(options["job"], _RayCheckpoints(rank), peers=peers)
    _report(rank, _RESULT, {**fitted.__dict__}, fitted.history[-1])


class _RayCheckpoints:
    """Ray's checkpoints of this run. Every worker restores; the first one saves."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def load(self) -> dict[str, Any] | None:
        import torch
        from ray import train

        checkpoint = train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            path = Path(folder) / _STATE
            if not path.is_file():
                return None
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state

    def save(self, state: dict[str, Any]) -> None:
        _report(self.rank, _STATE, state, state["history"][-1])


def _report(rank: int, name: str, content: dict[str, Any], metrics: dict[str, Any]) -> None:
    """All workers must report together; only the first one's files are kept."""
    import torch
    from ray import train

    if rank:
        train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save(content, Path(folder) / name)
        train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder))
