"""The loop that every fine-tuning goes through, whatever is learnt."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.ahead import cores
from pipeline.config import TrainingConfig
from pipeline.train.state import Checkpoints, Fitted, Peers, Progress, tell, warm_then_cosine

EMA = 0.99
_BLOCK = re.compile(r"^(.*?)(?:resblocks|blocks|layers?)\.?(\d+)\.")
_BOTTOM = re.compile(r"embed|conv1|ln_pre|patch|stem")  # what a tower without a block's number begins with


class Learner(ABC):
    """What is learnt.

    Attributes:
        network: its parameters that require a gradient are trained; dropout stays off.
        weight_decay: of parameters with more than one dimension. max_norm: of all gradients together.
    """

    network: Any
    weight_decay = 0.01
    max_norm = 1.0

    @abstractmethod
    def rates(self) -> Iterable[tuple[str, float]]:
        """Name of each trained parameter and its learning rate."""

    @abstractmethod
    def draw(self, number: int) -> Any:
        """Example number `number`: the same whoever draws it, and whenever; called on threads."""

    @abstractmethod
    def loss(self, examples: list[Any], numbers: Sequence[int], peers: Peers) -> Any:
        """This worker's share of the mean loss of a step: the shares of all add up to what one would have alone.

        Args:
            examples: this worker's, at least one. numbers: of all examples of the step.
        """


def fit(
    learner: Learner,
    config: TrainingConfig,
    checkpoints: Checkpoints,
    progress: Progress | None = None,
    peers: Peers | None = None,
) -> Fitted:
    """Train for `config.steps` steps of AdamW, from the last checkpoint if there is one.

    Examples are functions of their number, so a resumed training equals an undisturbed one, and workers change
    only the order in which numbers are added. The result is a moving average of the trained parameters, and the
    learner's network then holds it.

    Args:
        peers: no more of them than `config.batch_size`.
    """
    peers = peers or Peers()
    trainer = _Trainer(learner, config, peers)
    saved = checkpoints.load()
    if saved is not None:
        trainer.restore(saved)
    started = time.monotonic() - trainer.seconds
    with ThreadPoolExecutor(cores()) as pool:

        def drawn(step: int) -> list[Any]:
            return [pool.submit(learner.draw, number) for number in peers.mine(trainer.numbers(step))]

        waiting = drawn(trainer.step)
        while trainer.step < config.steps:
            examples = [future.result() for future in waiting]
            waiting = drawn(trainer.step + 1) if trainer.step + 1 < config.steps else []
            trainer.advance(examples)
            trainer.seconds = time.monotonic() - started
            if trainer.step % config.checkpoint_every == 0 and trainer.step < config.steps:
                checkpoints.save(trainer.snapshot())
            tell(progress, trainer.step, config.steps, lambda: checkpoints.save(trainer.snapshot()))
    put(learner, trainer.averaged)
    return Fitted(trainer.averaged, trainer.seconds, trainer.history, trainer.device)


def put(learner: Learner, trained: Mapping[str, Any]) -> None:
    """Let the learner's network hold these parameters, by name."""
    import torch

    with torch.no_grad():
        for name, parameter in learner.network.named_parameters():
            if name in trained:
                parameter.copy_(trained[name])


class _Trainer:
    """Trained parameters, their moving average, the optimiser, and the number of the next step."""

    def __init__(self, learner: Learner, config: TrainingConfig, peers: Peers) -> None:
        import torch

        self.learner, self.config, self.peers = learner, config, peers
        self.trained = {n: p for n, p in learner.network.named_parameters() if p.requires_grad}
        self.device = next(iter(self.trained.values())).device.type
        groups: dict[tuple[float, float], list[Any]] = {}
        for name, rate in learner.rates():
            decay = learner.weight_decay if self.trained[name].ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(self.trained[name])
        self.optimiser = torch.optim.AdamW(
            [{"params": p, "lr": r, "base": r, "weight_decay": d} for (r, d), p in groups.items()]
        )
        self.averaged = {name: p.detach().clone() for name, p in self.trained.items()}
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []

    def numbers(self, step: int) -> range:
        """Of the examples of a step."""
        first = step * self.config.batch_size
        return range(first, first + self.config.batch_size)

    def advance(self, examples: list[Any]) -> None:
        """One optimiser step."""
        import torch

        rate = warm_then_cosine(self.step, self.config.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * rate
        self.optimiser.zero_grad()
        share = self.learner.loss(examples, self.numbers(self.step), self.peers)
        if share.requires_grad:  # not where none of this worker's examples has anything to learn from
            share.backward()
        self._add_gradients()
        torch.nn.utils.clip_grad_norm_(list(self.trained.values()), self.learner.max_norm)
        self.optimiser.step()
        # A young average forgets faster, or the start would linger in it.
        decay = min(EMA, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self.trained.items():
                self.averaged[name].lerp_(parameter, 1 - decay)
        self.step += 1
        loss, lr = round(self.peers.total(share).item(), 5), self.config.learning_rate * rate
        self.history.append({"step": self.step, "loss": loss, "lr": lr})

    def _add_gradients(self) -> None:
        """Shares of the loss add up, and so do their gradients; what no worker has a gradient of stays as it is."""
        import torch

        if self.peers.count == 1:
            return
        trained = list(self.trained.values())
        there = torch.tensor([float(p.grad is not None) for p in trained], device=trained[0].device)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained]
        flat = torch.cat([there, *(g.flatten() for g in gradients)])
        self.peers.add(flat)
        there, *parts = flat.split([len(trained), *(p.numel() for p in trained)])
        for parameter, part, some in zip(trained, parts, there.tolist(), strict=True):
            parameter.grad = part.view_as(parameter) if some else None

    def snapshot(self) -> dict[str, Any]:
        return {
            "trained": {name: p.detach() for name, p in self.trained.items()},
            "averaged": self.averaged,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        import torch

        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["trained"][name])
                self.averaged[name].copy_(state["averaged"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.history = list(state["history"])


def layer_rates(names: Iterable[str], all_names: Iterable[str], rate: float, decay: float) -> list[tuple[str, float]]:
    """Learning rates that shrink by `decay` a block towards a tower's input (BEiT, Bao et al. 2022).

    A parameter's block is the number in its name; those before the first block count as one more. What
    comes after the blocks, or belongs to none, learns at `rate`.

    Args:
        names: of the parameters that are trained. all_names: of all of the network, to count blocks.
    """
    depth: dict[str, int] = {}
    for name in all_names:
        if found := _BLOCK.match(name):
            depth[found[1]] = max(depth.get(found[1], 0), int(found[2]) + 1)
    return [(name, rate * decay ** _below(name, depth)) for name in names]


def _below(name: str, depth: dict[str, int]) -> int:
    """How many steps of decay a parameter lies below the top of its tower."""
    if found := _BLOCK.match(name):
        return depth[found[1]] - int(found[2])
    if not _BOTTOM.search(name):
        return 0
    # Towers are told apart by the beginning of their names: visual.conv1 lies under visual.transformer.
    head = name.split(".")[0] + "." if "." in name else ""
    mine = [d for prefix, d in depth.items() if head and prefix.startswith(head)]
    return 1 + max(mine or depth.values(), default=-1)
