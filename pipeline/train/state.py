"""What any training keeps and gives: checkpoints that survive a kill, the schedule of its rate, and its result."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import PipelineError

Progress = Callable[[int, int], None]  # steps done, steps in all


class Checkpoints(Protocol):
    """Keeps the state of a training that may be killed."""

    def load(self) -> dict[str, Any] | None: ...

    def save(self, state: dict[str, Any]) -> None: ...


class FileCheckpoints:
    """One file, replaced whole at each save.

    Args:
        identity: a state that was saved under another is not used.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.identity = identity

    def load(self) -> dict[str, Any] | None:
        import pickle

        import torch

        if not self.path.is_file():
            return None
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            return None  # damaged: training from the start gives the same result
        return saved["state"] if saved.get("identity") == self.identity else None

    def save(self, state: dict[str, Any]) -> None:
        import torch

        temporary = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}.tmp")
        try:
            torch.save({"identity": self.identity, "state": state}, temporary)
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Fitted:
    """Averaged weights, seconds of training (earlier, killed runs included), and the loss history."""

    state: dict[str, Any]
    seconds: float
    history: list[dict[str, float]]
    device: str


def warm_then_cosine(step: int, total: int) -> float:
    """Share of the learning rate at a step: linear over the first tenth (30 steps at most), then half a cosine."""
    warm = max(1, min(30, total // 10))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def tell(progress: Progress | None, step: int, total: int, keep: Callable[[], None]) -> None:
    """Tell how far a training is; told to end there, by a budget, it is kept first: nothing that was paid for is lost.

    Raises:
        PipelineError: what `progress` raised.
    """
    if progress is None:
        return
    try:
        progress(step, total)
    except PipelineError:
        keep()
        raise
