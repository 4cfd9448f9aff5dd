"""The training loop of the detector: the same inline and as one of several data-parallel workers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import TrainingConfig
from pipeline.errors import DataError
from pipeline.models.fcos import FcosConfig, build
from pipeline.models.threads import use_threads
from pipeline.train import losses
from pipeline.train.scenes import Crop, Crops, Scene
from pipeline.train.state import Checkpoints, Fitted, Progress, tell, warm_then_cosine

BACKBONE_RATE = 0.2  # pretrained layers learn more slowly than new ones
WEIGHT_DECAY = 0.05
FROZEN_BLOCKS = 2  # edges and colours need no relearning, and their gradients are the dearest
MAX_NORM = 5.0
EMA = 0.99


@dataclass(frozen=True)
class Job:
    """All that a worker needs to train; it is sent to Ray workers as it is."""

    scenes: tuple[Scene, ...]
    classes: tuple[str, ...]
    config: TrainingConfig
    min_visible: float
    backbone: Path | None  # None: random weights, which only tests want
    threads: int = 0  # 0 leaves torch's own

    @property
    def model(self) -> FcosConfig:
        low, high = self.config.crop
        return FcosConfig(self.classes, scale=round(self.config.input_size / math.sqrt(low * high), 4))


@dataclass(frozen=True)
class Peers:
    """The other workers: rank, how many there are, and a sum over all of them, in place."""

    rank: int = 0
    count: int = 1
    add: Callable[[Any], None] = field(default=lambda tensor: None)


def fit(
    job: Job,
    checkpoints: Checkpoints,
    progress: Progress | None = None,
    peers: Peers | None = None,
) -> Fitted:
    """Train for `job.config.steps` optimiser steps, from the last checkpoint if there is one.

    Every example is a function of the seed and its number, and no layer looks across a batch; so a
    resumed training equals an undisturbed one, and workers change only the order of summation.

    Raises:
        DataError: there is nothing to train on, or a photo can no longer be read.
    """
    import torch

    peers = peers or Peers()
    if job.threads:
        use_threads(job.threads)
    crops = _crops(job)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = _Trainer(job, crops, device, peers)
    saved = checkpoints.load()
    if saved is not None:
        trainer.restore(saved)
    total, every = job.config.steps, job.config.checkpoint_every
    started = time.monotonic() - trainer.seconds
    with ThreadPoolExecutor(1) as ahead:
        # The next examples are cut while the processor is at the present ones.
        waiting = ahead.submit(trainer.batch, trainer.step)
        while trainer.step < total:
            ready = waiting.result()
            if trainer.step + 1 < total:
                waiting = ahead.submit(trainer.batch, trainer.step + 1)
            trainer.advance(ready)
            trainer.seconds = time.monotonic() - started
            if trainer.step % every == 0 and trainer.step < total:
                checkpoints.save(trainer.snapshot())
            tell(progress, trainer.step, total, lambda: checkpoints.save(trainer.snapshot()))
    return Fitted(trainer.averaged, trainer.seconds, trainer.history, device)


def _crops(job: Job) -> Crops:
    if not any((~scene.ignore).any() for scene in job.scenes):
        raise DataError("no box to train on", "label some images of the train split, or set training.kind: none")
    config = job.config
    crops = Crops(job.scenes, config.crop, config.input_size, job.min_visible, config.rotate, config.seed)
    error = crops.unreadable()
    if error is not None:
        raise error
    return crops


class _Trainer:
    """Weights, their moving average, the optimiser, and the number of the next step."""

    def __init__(self, job: Job, crops: Crops, device: str, peers: Peers) -> None:
        import torch

        self.job, self.crops, self.device, self.peers = job, crops, device, peers
        torch.manual_seed(job.config.seed)
        self.network = build(job.model, job.backbone).to(device, memory_format=torch.channels_last).train()
        for layer in self.network.features[:FROZEN_BLOCKS]:
            layer.requires_grad_(False)
        self.optimiser = torch.optim.AdamW(_groups(self.network, job.config.learning_rate))
        self.averaged = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self._limits: Any = None

    def batch(self, step: int) -> list[Crop]:
        """This worker's share of a step's examples."""
        size = self.job.config.batch_size
        return [self.crops.draw(step * size + i) for i in range(self.peers.rank, size, self.peers.count)]

    def advance(self, crops: list[Crop]) -> None:
        """One optimiser step."""
        import torch

        rate = warm_then_cosine(self.step, self.job.config.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * rate
        self.optimiser.zero_grad()
        parts = self._losses(crops)
        sums = torch.stack([p.detach() for p in parts])
        self.peers.add(sums)
        objects, quality = sums[3].clamp(min=1.0), sums[4].clamp(min=1.0)
        loss = (parts[0] + parts[2]) / objects + parts[1] / quality
        loss.backward()
        self._sum_gradients()
        trained = [p for g in self.optimiser.param_groups for p in g["params"]]
        torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)
        self.optimiser.step()
        self._average()
        self.step += 1
        shown = ((sums[0] + sums[2]) / objects + sums[1] / quality).item()
        self.history.append({"step": self.step, "loss": round(shown, 5), "lr": self.job.config.learning_rate * rate})

    def _losses(self, crops: list[Crop]) -> list[Any]:
        """Sums of focal, GIoU and centerness losses; the objects' locations and their centerness."""
        import torch
        from torch.nn import functional

        if not crops:
            zero = torch.zeros((), device=self.device)
            anchor = sum((p.sum() * 0.0 for p in self.network.parameters() if p.requires_grad), zero)
            return [anchor, zero, zero, zero, zero]
        pixels = torch.from_numpy(np.stack([c.pixels for c in crops])).to(self.device)
        logits, sides, centre, points, strides = self.network.raw(pixels.permute(0, 3, 1, 2).float())
        if self._limits is None:
            self._limits = losses.level_limits(strides, self.job.model.strides, self.job.model.limits)
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

    def _sum_gradients(self) -> None:
        """The losses are divided by totals over all workers, so gradients are added, not averaged."""
        import torch

        if self.peers.count == 1:
            return
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        self.peers.add(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _average(self) -> None:
        import torch

        # A young average forgets faster, or the random start would linger in it.
        decay = min(EMA, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                self.averaged[name].lerp_(value, 1 - decay) if value.is_floating_point() else None

    def snapshot(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "averaged": self.averaged,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.averaged = {k: v.to(self.device) for k, v in state["averaged"].items()}
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.history = list(state["history"])


def _groups(network: Any, rate: float) -> list[dict[str, Any]]:
    """Parameters by rate and decay: pretrained ones learn slowly; norms and biases do not decay."""
    groups: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            base = rate * (BACKBONE_RATE if name.startswith("features.") else 1.0)
            decay = WEIGHT_DECAY if parameter.ndim > 1 else 0.0
            groups.setdefault((base, decay), []).append(parameter)
    return [{"params": p, "lr": b, "base": b, "weight_decay": d} for (b, d), p in groups.items()]
