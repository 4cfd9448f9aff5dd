"""Trains on a Ray cluster from a process of its own: python -m tests.pipeline.train.ray_job ADDRESS FOLDER SETTINGS."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.compute import Compute
from pipeline.config import TrainingConfig
from pipeline.train import fcos
from pipeline.train.scenes import Scene
from pipeline.train.state import FileCheckpoints


def job(folder: Path, **settings: Any) -> fcos.Job:
    """A little training on one drawn picture."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "p.png"
    pixels = np.random.default_rng(0).integers(0, 255, (128, 128, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    row: dict[str, Any] = {"uri": str(path), "file_name": path.name, "tile_x": 0, "tile_y": 0}
    row |= {"width": 128, "height": 128, "photo_width": 128, "photo_height": 128}
    scene = Scene((row,), np.array([[20.0, 20, 50, 60], [70, 70, 110, 100]]), np.zeros(2, int), np.zeros(2, bool))
    given = {"batch_size": 2, "crop": (60, 120), "input_size": 64} | settings
    return fcos.Job((scene,), ("Tree",), TrainingConfig(**given), 0.25, None, threads=1)


def kept(folder: Path) -> FileCheckpoints:
    """Where its checkpoints lie."""
    return FileCheckpoints(str(folder / "files" / "run.pt"), "job")


STEP_SECONDS = 0.1  # at least, so that there is time to kill somebody


def noted(options: dict[str, Any]) -> None:
    """Training on a worker that notes each step: a line of step, rank, workers, process and node's process."""
    from pipeline.train import loop, ray_train

    advance = loop._Trainer.advance
    folder = Path(options["train"].args[0].scenes[0].rows[0]["uri"]).parent

    def and_note(trainer: loop._Trainer, crops: Any) -> None:
        advance(trainer, crops)
        time.sleep(STEP_SECONDS)
        who = trainer.peers.rank, trainer.peers.count, os.getpid(), os.environ["RAY_RAYLET_PID"]
        with (folder / f"{os.getpid()}.steps").open("a") as notes:
            notes.write(f"{trainer.step} {' '.join(map(str, who))}\n")

    loop._Trainer.advance = and_note  # type: ignore[method-assign]
    ray_train._loop(options)


def main() -> None:
    address, folder, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    import torch

    from pipeline.train import ray_train

    ray_train._loop = noted
    mine = job(folder, **settings)
    fitted = ray_train.fit(partial(fcos.fit, mine), mine.config, kept(folder), Compute(address), None)
    torch.save({"state": fitted.state, "history": fitted.history}, folder / "fitted.pt")


if __name__ == "__main__":
    main()
