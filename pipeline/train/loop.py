"""The loop that every fine-tuning goes through, whatever is learnt."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from pipeline.ahead import cores
from pipeline.config import TrainingConfig
from pipeline.train.state import Checkpoints, Fitted, Progress, tell, warm_then_cosine

WEIGHT_DECAY = 0.01
MAX_NORM = 1.0
EMA = 0.99
_BLOCK = re.compile(r"^(.*?)(?:resblocks|blocks|layers?)\.?(\d+)\.")
_BOTTOM = re.compile(r"embed|conv1|ln_pre|patch|stem")  # what a tower without a block's number begins with


class Learner(Protocol):
    """What is learnt.

    Attributes:
        network: its parameters that require a gradient are trained; dropout stays off.
    """

    network: Any

    def rates(self) -> Iterable[tuple[str, float]]:
        """Name of each trained parameter and its learning rate."""

    def draw(self, number: int) -> Any:
        """Example number `number`: the same whoever draws it, and whenever; called on threads."""

    def loss(self, examples: list[Any]) -> Any:
        """The mean loss of a batch, to be minimised."""


def fit(learner: Learner, config: TrainingConfig, checkpoints: Checkpoints, progress: Progress | None = None) -> Fitted:
    """Train for `config.steps` steps of AdamW, from the last checkpoint if there is one.

    Examples are functions of their number, so a resumed training equals an undisturbed one. The result is
    a moving average of the trained parameters, and the learner's network then holds it.
    """
    import torch

    trainer = _Trainer(learner, config)
    saved = checkpoints.load()
    if saved is not None:
        trainer.restore(saved)
    started = time.monotonic() - trainer.seconds
    with ThreadPoolExecutor(cores()) as pool:

        def drawn(step: int) -> list[Any]:
            first = step * config.batch_size
            return [pool.submit(learner.draw, first + i) for i in range(config.batch_size)]

        waiting = drawn(trainer.step)
        while trainer.step < config.steps:
            examples = [future.result() for future in waiting]
            waiting = drawn(trainer.step + 1) if trainer.step + 1 < config.steps else []
            trainer.advance(examples)
            trainer.seconds = time.monotonic() - started
            if trainer.step % config.checkpoint_every == 0 and trainer.step < config.steps:
                checkpoints.save(trainer.snapshot())
            tell(progress, trainer.step, config.steps, lambda: checkpoints.save(trainer.snapshot()))
    with torch.no_grad():
        for name, parameter in trainer.trained.items():
            parameter.copy_(trainer.averaged[name])
    return Fitted(trainer.averaged, trainer.seconds, trainer.history, trainer.device)


class _Trainer:
    """Trained parameters, their moving average, the optimiser, and the number of the next step."""

    def __init__(self, learner: Learner, config: TrainingConfig) -> None:
        import torch

        self.learner, self.config = learner, config
        self.trained = {n: p for n, p in learner.network.named_parameters() if p.requires_grad}
        self.device = next(iter(self.trained.values())).device.type
        groups: dict[tuple[float, float], list[Any]] = {}
        for name, rate in learner.rates():
            decay = WEIGHT_DECAY if self.trained[name].ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(self.trained[name])
        self.optimiser = torch.optim.AdamW(
            [{"params": p, "lr": r, "base": r, "weight_decay": d} for (r, d), p in groups.items()]
        )
        self.averaged = {name: p.detach().clone() for name, p in self.trained.items()}
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []

    def advance(self, examples: list[Any]) -> None:
        """One optimiser step."""
        import torch

        share = warm_then_cosine(self.step, self.config.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * share
        self.optimiser.zero_grad()
        loss = self.learner.loss(examples)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.trained.values()), MAX_NORM)
        self.optimiser.step()
        # A young average forgets faster, or the start would linger in it.
        decay = min(EMA, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self.trained.items():
                self.averaged[name].lerp_(parameter, 1 - decay)
        self.step += 1
        shown = {"step": self.step, "loss": round(loss.item(), 5), "lr": self.config.learning_rate * share}
        self.history.append(shown)

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
