from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.models import clip_net
from pipeline.train import adapters
from tests.pipeline.models import clip_files


def moved(network: torch.nn.Module) -> None:
    """Adapters as after training: up is no longer 0."""
    for name, parameter in network.named_parameters():
        if name.endswith(".up"):
            parameter.data.normal_(std=0.02)


def seen(network: torch.nn.Module, what: clip_net.Design) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        return network.encode_image(torch.randn(3, 3, 96, 96)), network.encode_text(clip_net.tokenizer(what)(["a dog"]))


def test_new_adapters_change_nothing_and_merged_ones_compute_what_they_did() -> None:
    what = clip_files.small()
    plain = clip_files.random_network(what)
    before, names = seen(plain, what), list(plain.state_dict())
    tuned = copy.deepcopy(plain)
    trained = adapters.add(tuned, rank=4)
    # Two towers of 3 and 2 blocks: attention's input and output, and two layers of the perceptron.
    assert len(trained) == 2 * 4 * (3 + 2) and all(".parametrizations." in name for name in trained)
    for a, b in zip(seen(tuned, what), before, strict=True):
        assert torch.equal(a, b)
    moved(tuned)
    unmerged = seen(tuned, what)
    assert (unmerged[0] - before[0]).abs().max() > 1e-3
    adapters.merge(tuned)
    assert set(tuned.state_dict()) == set(names)
    for a, b in zip(seen(tuned, what), unmerged, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), rank=st.integers(1, 12))
def test_a_merged_weight_is_the_weight_and_a_product_of_that_rank(rows: int, columns: int, rank: int) -> None:
    network = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(columns, rows)])})
    layer = network["layers"][0]
    weight = layer.weight.detach().clone()
    adapters.add(network, rank)
    moved(network)
    up, down = (layer.parametrizations.weight[0].get_parameter(n).detach().clone() for n in ("up", "down"))
    adapters.merge(network)
    torch.testing.assert_close(layer.weight, weight + up @ down)
    assert torch.linalg.matrix_rank(layer.weight.double() - weight.double(), atol=1e-6) <= min(rank, rows, columns)


def test_only_adapters_learn() -> None:
    network = clip_files.random_network(clip_files.small())
    trained = set(adapters.add(network, 2))
    (network.encode_image(torch.randn(2, 3, 96, 96)).sum()).backward()
    with_gradient = {name for name, p in network.named_parameters() if p.grad is not None}
    assert with_gradient and with_gradient <= trained


@pytest.mark.parametrize("rank", [1, 100])
def test_rank_is_cut_to_what_a_weight_has(rank: int) -> None:
    network = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(6, 3)])})
    adapters.add(network, rank)
    assert network["layers"][0].parametrizations.weight[0].up.shape == (3, min(rank, 3))
