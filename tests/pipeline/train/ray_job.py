"""Trains on a Ray cluster from a process of its own: python -m tests.pipeline.train.ray_job ADDRESS FOLDER SETTINGS."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.config import TrainingConfig
from pipeline.files import LocalFiles
from pipeline.train import fcos
from pipeline.train.scenes import Scene


def job(folder: Path, **settings: Any) -> fcos.Job:
    """A little training on one drawn picture."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "p.png"
    pixels = np.random.default_rng(0).integers(0, 255, (128, 128, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    row: dict[str, Any] = {"uri": str(path), "tile_x": 0, "tile_y": 0}
    row |= {"width": 128, "height": 128, "photo_width": 128, "photo_height": 128}
    scene = Scene((row,), np.array([[20.0, 20, 50, 60], [70, 70, 110, 100]]), np.zeros(2, int), np.zeros(2, bool))
    given = {"batch_size": 2, "crop": (60, 120), "input_size": 64} | settings
    return fcos.Job((scene,), ("Tree",), TrainingConfig(**given), 0.25, None, threads=1)


class Memory:
    """Checkpoints that nobody needs."""

    def load(self) -> None:
        return None

    def save(self, state: dict[str, Any]) -> None: ...


def main() -> None:
    address, folder, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    import torch

    from pipeline.train import ray_train

    fitted = ray_train.fit(job(folder, **settings), str(folder / "ray"), "run", address, LocalFiles())
    torch.save({"state": fitted.state, "history": fitted.history}, folder / "fitted.pt")


if __name__ == "__main__":
    main()
