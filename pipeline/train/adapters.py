"""Low-rank adapters (LoRA, Hu et al. 2022) on linear layers: few trained weights, none left once merged."""

from __future__ import annotations

import math
from typing import Any


def add(network: Any, rank: int) -> list[str]:
    """Freeze a network and put an adapter on each linear layer inside its blocks; returns the trained names.

    A weight W becomes W + up @ down, up (out, rank) and down (rank, in); `up` begins at 0, so nothing changes
    yet. Layers of attention that keep one weight for query, key and value get one adapter for the three.

    Args:
        rank: cut to the smaller side of a weight.
    """
    import torch
    from torch.nn.utils import parametrize

    class LowRank(torch.nn.Module):
        def __init__(self, weight: Any) -> None:
            super().__init__()
            rows, columns = weight.shape
            most = min(rank, rows, columns)
            self.up = torch.nn.Parameter(weight.new_zeros(rows, most))
            self.down = torch.nn.Parameter(weight.new_empty(most, columns))
            torch.nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

        def forward(self, weight: Any) -> Any:
            return weight + self.up @ self.down

    network.requires_grad_(False)
    for module, name in _weights(network):
        parametrize.register_parametrization(module, name, LowRank(getattr(module, name)))
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def merge(network: Any) -> None:
    """Fold every adapter into its weight: the network computes what it did, with the names it had before."""
    from torch.nn.utils import parametrize

    for module in list(network.modules()):
        for name in list(getattr(module, "parametrizations", {})):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _weights(network: Any) -> list[tuple[Any, str]]:
    """Linear weights of numbered blocks: of attention and of what follows it."""
    import torch

    found: list[tuple[Any, str]] = []
    for path, module in network.named_modules():
        if not any(part.isdigit() for part in path.split(".")):
            continue
        if isinstance(module, torch.nn.MultiheadAttention) and module.in_proj_weight is not None:
            found.append((module, "in_proj_weight"))
        elif isinstance(module, torch.nn.Linear):
            found.append((module, "weight"))
    return found
