from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import TrainingConfig
from pipeline.errors import PipelineError
from pipeline.train import loop
from pipeline.train.state import FileCheckpoints, Peers
from tests.pipeline.models import clip_files
from tests.pipeline.train.together import Memory


class Line(loop.Learner):
    """y = 2x + 1 from noisy examples."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.network = torch.nn.Linear(1, 1)

    def rates(self) -> list[tuple[str, float]]:
        return [(name, 0.1) for name, _ in self.network.named_parameters()]

    def draw(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = torch.Generator().manual_seed(number)
        x = torch.rand(1, generator=random) * 4 - 2
        return x, 2 * x + 1 + torch.randn(1, generator=random) * 0.05

    def loss(self, examples: list[Any], numbers: Sequence[int], peers: Peers) -> torch.Tensor:
        x, y = (torch.stack(part) for part in zip(*examples, strict=True))
        return ((self.network(x) - y) ** 2).sum() / len(numbers)


def config(**more: Any) -> TrainingConfig:
    return TrainingConfig(**{"steps": 200, "batch_size": 8, "learning_rate": 0.1, "checkpoint_every": 20} | more)


def test_it_learns_and_leaves_the_average_in_the_network() -> None:
    line = Line()
    calls: list[tuple[int, int]] = []
    fitted = loop.fit(line, config(), Memory(), lambda done, total: calls.append((done, total)))
    assert line.network.weight.item() == pytest.approx(2, abs=0.05)
    assert line.network.bias.item() == pytest.approx(1, abs=0.05)
    assert torch.equal(fitted.state["weight"], line.network.weight) and calls[-1] == (200, 200)
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"] / 50


def test_a_killed_training_ends_as_if_undisturbed(tmp_path: Path) -> None:
    undisturbed = loop.fit(Line(), config(steps=50), Memory())
    checkpoints = FileCheckpoints(str(tmp_path / "c.pt"), "line")
    killed = False

    def kill(step: int, _: int) -> None:
        nonlocal killed
        if step == 45 and not killed:
            killed = True
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.fit(Line(), config(steps=50), checkpoints, kill)
    resumed = loop.fit(Line(), config(steps=50), checkpoints, kill)
    assert resumed.history == undisturbed.history
    assert all(torch.equal(resumed.state[k], v) for k, v in undisturbed.state.items())


def test_a_training_that_a_budget_ends_goes_on_from_that_very_step(tmp_path: Path) -> None:
    checkpoints = FileCheckpoints(str(tmp_path / "c.pt"), "line")
    steps: list[int] = []

    def spend(step: int, _: int) -> None:
        steps.append(step)
        if steps.count(7) == 1 and step == 7:
            raise PipelineError("the budget is spent", "raise it")

    with pytest.raises(PipelineError):
        loop.fit(Line(), config(steps=9), checkpoints, spend)
    loop.fit(Line(), config(steps=9), checkpoints, spend)
    assert steps == list(range(1, 10))


def test_rates_fall_towards_the_input_of_each_tower() -> None:
    network = clip_files.random_network(clip_files.small())  # 3 blocks of pictures, 2 of text
    names = [name for name, _ in network.named_parameters()]
    rates = dict(loop.layer_rates(names, names, 1.0, 0.5))
    assert rates["visual.proj"] == rates["text_projection"] == rates["logit_scale"] == 1
    assert rates["visual.ln_post.weight"] == rates["ln_final.weight"] == 1
    assert [rates[f"visual.transformer.resblocks.{i}.mlp.c_fc.weight"] for i in range(3)] == [1 / 8, 1 / 4, 1 / 2]
    assert [rates[f"transformer.resblocks.{i}.attn.in_proj_weight"] for i in range(2)] == [1 / 4, 1 / 2]
    assert rates["visual.conv1.weight"] == rates["visual.positional_embedding"] == 1 / 16
    assert rates["token_embedding.weight"] <= 1 / 8
    assert set(dict(loop.layer_rates(names, names, 0.3, 1.0)).values()) == {0.3}
