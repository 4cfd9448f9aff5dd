"""Where a training runs: in this process, or on Ray. What it has learnt so far lies in the store, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pipeline.compute import Compute
from pipeline.config import TrainingConfig
from pipeline.store import Store
from pipeline.train import ray_train
from pipeline.train.state import FileCheckpoints, Fitted, Peers, Progress, Train

Answer = TypeVar("Answer")
FOLDER = "models"  # of the store's files


@dataclass(frozen=True)
class Place:
    """What a training needs to know of where it runs."""

    store: Store
    compute: Compute
    progress: Progress | None = None

    def checkpoints(self, stem: str, identity: str) -> FileCheckpoints:
        """Those of a training: whoever goes on with it, on whatever machine, finds them in the store."""
        return FileCheckpoints(self.store.file_uri(FOLDER, f"{stem}.checkpoint.pt"), identity)

    def run(self, train: Train, config: TrainingConfig, checkpoints: FileCheckpoints) -> Fitted:
        """Train here, or on up to `config.workers` workers on Ray, from the last checkpoint if there is one.

        Args:
            train: travels to the workers.

        Raises:
            PipelineError: what `train` or `progress` raised, or the cluster fails.
        """
        done = checkpoints.result()
        if done is not None:  # but whoever asked for it died before it was used
            return done
        if self.compute.on_ray:
            return ray_train.fit(train, config, checkpoints, self.compute, self.progress)
        fitted = train(checkpoints, self.progress, Peers())
        checkpoints.finish(fitted)
        return fitted

    def once(self, function: Callable[[], Answer]) -> Answer:
        """What `function` gives, here or on one machine of the cluster, to which it travels."""
        return ray_train.once(function, self.compute) if self.compute.on_ray else function()
