"""What any training keeps and gives: checkpoints that survive a kill, its peers, its schedule, and its result."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from pipeline.errors import PipelineError
from pipeline.files import open_files

Progress = Callable[[int, int], None]  # steps done, steps in all
Item = TypeVar("Item")
FITTED = "fitted"  # in a state: the result


class Checkpoints(Protocol):
    """Keeps the state of a training that may be killed."""

    def load(self) -> dict[str, Any] | None: ...

    def save(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class FileCheckpoints:
    """One file, replaced whole at each save. It travels to other machines, which find it where they find the store.

    Args:
        uri: an absolute path, or s3://BUCKET/KEY.
        identity: a state that was saved under another is not used.
    """

    uri: str
    identity: str

    def load(self) -> dict[str, Any] | None:
        import pickle

        import torch

        files, path = open_files(self.uri)
        try:
            with files.open(path) as file:
                saved = torch.load(io.BytesIO(file.read()), map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            return None  # damaged: training from the start gives the same result
        return saved["state"] if saved.get("identity") == self.identity else None

    def save(self, state: dict[str, Any]) -> None:
        import torch

        made = io.BytesIO()
        torch.save({"identity": self.identity, "state": state}, made)
        files, path = open_files(self.uri)
        files.put(path, made.getbuffer())

    def finish(self, fitted: Fitted) -> None:
        """Keep the result in the place of what led to it, until it is cleared."""
        self.save({"step": len(fitted.history), FITTED: {**fitted.__dict__}})

    def result(self) -> Fitted | None:
        """The result of a training that ended."""
        kept = (self.load() or {}).get(FITTED)
        return Fitted(**kept) if kept else None

    def clear(self) -> None:
        files, path = open_files(self.uri)
        files.delete([path])


@dataclass(frozen=True)
class Peers:
    """The workers that train together: which of them this one is, how many there are, and a sum over all, in place.

    All must add in the same order, whatever is in their share of the examples.
    """

    rank: int = 0
    count: int = 1
    add: Callable[[Any], None] = field(default=lambda tensor: None)

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """This worker's share."""
        return items[self.rank :: self.count]

    def total(self, value: Any) -> Any:
        """The sum of all workers' values, without a gradient."""
        summed = value.detach().clone()
        self.add(summed)
        return summed

    def together(self, own: Any, number: int) -> Any:
        """(number, d) rows of all workers; only this worker's carry a gradient.

        Args:
            own: (k, d) rows of `mine(range(number))`.
        """
        if self.count == 1:
            return own
        rows = own.new_zeros(number, own.shape[1])
        rows[self.rank :: self.count] = own.detach()
        self.add(rows)
        rows[self.rank :: self.count] = own
        return rows

    def agree(self, value: float) -> bool:
        """Whether all workers have the same value."""
        import torch

        values = torch.zeros(self.count, dtype=torch.float64)
        values[self.rank] = value
        self.add(values)
        return bool((values == value).all())


@dataclass(frozen=True)
class Fitted:
    """Averaged weights, seconds of training (earlier, killed runs included), and the loss history."""

    state: dict[str, Any]
    seconds: float
    history: list[dict[str, float]]
    device: str


# What a worker does of a training; given no peers, all of it.
Train = Callable[[Checkpoints, Progress | None, Peers], Fitted]


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
