"""Workers that train together, here as threads of one process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import pytest
import torch

from pipeline.config import TrainingConfig
from pipeline.train import loop
from pipeline.train.loop import Learner
from pipeline.train.state import Fitted, Peers


class Memory:
    """Checkpoints of a training that nobody kills."""

    def load(self) -> None:
        return None

    def save(self, state: dict[str, Any]) -> None: ...


def peers(workers: int) -> list[Peers]:
    """So many, to be used from as many threads."""
    if workers == 1:
        return [Peers()]
    parts: list[Any] = [None] * workers
    meeting = Barrier(workers, timeout=300)

    def add(rank: int, tensor: torch.Tensor) -> None:
        parts[rank] = tensor.clone()
        meeting.wait()
        tensor.copy_(torch.stack(parts).sum(0))
        meeting.wait()

    return [Peers(rank, workers, partial(add, rank)) for rank in range(workers)]


def train(make: Callable[[], Learner], config: TrainingConfig, workers: int) -> tuple[Fitted, Learner]:
    """What the first of `workers` has at the end, and its learner; the others have the same."""
    learners, all_peers = [make() for _ in range(workers)], peers(workers)

    def fit(rank: int) -> Fitted:
        return loop.fit(learners[rank], config, Memory(), peers=all_peers[rank])

    with ThreadPoolExecutor(workers) as pool:
        first, *others = pool.map(fit, range(workers))
    for other in others:
        assert other.history == first.history
        assert all(torch.equal(other.state[k], v) for k, v in first.state.items())
    return first, learners[0]


def assert_as_one(make: Callable[[], Learner], config: TrainingConfig, *workers: int) -> None:
    """So many workers have the loss and the gradients of one in a step. (Adam would hide gradients of another size.)"""
    config = config.model_copy(update={"steps": 1})
    alone, learner = train(make, config, 1)
    wanted = {name: p.grad for name, p in learner.network.named_parameters() if p.grad is not None}
    smallest = 1e-4 * float(torch.stack([g.norm() for g in wanted.values()]).norm())
    for count in workers:
        together, learner = train(make, config, count)
        assert together.history[0]["loss"] == pytest.approx(alone.history[0]["loss"], rel=1e-4)
        found = {name: p.grad for name, p in learner.network.named_parameters() if p.grad is not None}
        assert found.keys() == wanted.keys()
        for name, gradient in found.items():
            assert (gradient - wanted[name]).norm() < 0.01 * wanted[name].norm() + smallest, name
