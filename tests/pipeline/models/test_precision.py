"""A CPU computes in float32 whatever is asked for."""

import pytest
import torch

from pipeline.models.precision import autocast


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float16"])
def test_on_a_cpu_nothing_changes(precision: str) -> None:
    ones = torch.ones(2, 2)
    with autocast("cpu", precision):
        assert (ones @ ones).dtype == torch.float32
