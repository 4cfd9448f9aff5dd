"""The detector as a learner: the same inline and as one of several data-parallel workers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline import weights
from pipeline.config import TrainingConfig
from pipeline.errors import DataError
from pipeline.models.fcos import FcosConfig, build
from pipeline.models.threads import use_threads
from pipeline.train import loop, losses
from pipeline.train.loop import Learner
from pipeline.train.scenes import Crop, Crops, Scene
from pipeline.train.state import Checkpoints, Fitted, Peers, Progress

BACKBONE_RATE = 0.2  # pretrained layers learn more slowly than new ones
FROZEN_BLOCKS = 2  # edges and colours need no relearning, and their gradients are the dearest


@dataclass(frozen=True)
class Job:
    """All that a worker needs to train; it is sent to Ray workers as it is."""

    scenes: tuple[Scene, ...]
    classes: tuple[str, ...]
    config: TrainingConfig
    min_visible: float
    backbone: str | None  # a checkpoint, which workers look up themselves; None: random weights, which only tests want
    threads: int = 0  # 0 leaves torch's own

    @property
    def model(self) -> FcosConfig:
        low, high = self.config.crop
        return FcosConfig(self.classes, scale=round(self.config.input_size / math.sqrt(low * high), 4))


def fit(job: Job, checkpoints: Checkpoints, progress: Progress | None = None, peers: Peers | None = None) -> Fitted:
    """Train the detector (`loop.fit`); the state is that of the whole network.

    Raises:
        DataError: there is nothing to train on, or a photo can no longer be read.
    """
    if job.threads:
        use_threads(job.threads)
    learner = FcosLearner(job)
    fitted = loop.fit(learner, job.config, checkpoints, progress, peers)
    return replace(fitted, state={k: v.detach() for k, v in learner.network.state_dict().items()})


def _crops(job: Job) -> Crops:
    if not any((~scene.ignore).any() for scene in job.scenes):
        raise DataError("no box to train on", "label some images of the train split, or set training.kind: none")
    config = job.config
    crops = Crops(job.scenes, config.crop, config.input_size, job.min_visible, config.rotate, config.seed)
    error = crops.unreadable()
    if error is not None:
        raise error
    return crops


class FcosLearner(Learner):
    """All of the detector but its first layers. No layer looks across a batch."""

    weight_decay = 0.05
    max_norm = 5.0

    def __init__(self, job: Job) -> None:
        import torch

        self._job, self._crops = job, _crops(job)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(job.config.seed)
        network = build(job.model, weights.resolve(job.backbone) if job.backbone else None)
        network = network.to(self._device, memory_format=torch.channels_last).train()
        for layer in network.features[:FROZEN_BLOCKS]:
            layer.requires_grad_(False)
        self.network = network
        self._limits: Any = None

    def rates(self) -> Iterable[tuple[str, float]]:
        rate = self._job.config.learning_rate
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                yield name, rate * (BACKBONE_RATE if name.startswith("features.") else 1.0)

    def draw(self, number: int) -> Crop:
        return self._crops.draw(number)

    def loss(self, examples: list[Crop], numbers: Sequence[int], peers: Peers) -> Any:
        import torch

        parts = self._losses(examples)
        *_, objects, quality = peers.total(torch.stack(parts)).clamp(min=1.0)
        return (parts[0] + parts[2]) / objects + parts[1] / quality

    def _losses(self, crops: list[Crop]) -> list[Any]:
        """Sums of focal, GIoU and centerness losses; the objects' locations and their centerness."""
        import torch
        from torch.nn import functional

        pixels = torch.from_numpy(np.stack([c.pixels for c in crops])).to(self._device)
        logits, sides, centre, points, strides = self.network.raw(pixels.permute(0, 3, 1, 2).float())
        if self._limits is None:
            self._limits = losses.level_limits(strides, self._job.model.strides, self._job.model.limits)
        targets = [self._targets(crop, points, strides) for crop in crops]
        labels = torch.cat([t.labels for t in targets])
        positive = labels >= 0
        wanted = torch.cat([t.boxes for t in targets])[positive]
        at = points.repeat(len(crops), 1)[positive]
        sides = sides.flatten(0, 1)[positive]
        predicted = torch.cat([at - sides[:, :2], at + sides[:, 2:]], dim=1)
        weight = losses.centerness(at, wanted)
        return [
            losses.focal(logits.flatten(0, 1), labels),
            (weight * (1 - losses.giou(predicted, wanted))).sum(),
            functional.binary_cross_entropy_with_logits(centre.flatten()[positive], weight, reduction="sum"),
            positive.sum().float(),
            weight.sum(),
        ]

    def _targets(self, crop: Crop, points: Any, strides: Any) -> losses.Targets:
        import torch

        boxes = torch.from_numpy(crop.boxes).to(points)
        classes = torch.from_numpy(crop.classes).to(points.device)
        ignore = torch.from_numpy(crop.ignore).to(points.device)
        return losses.assign(points, strides, self._limits, boxes, classes, ignore)
