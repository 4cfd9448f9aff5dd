"""Certificates keep their promise on simulated gold; the quick half of benchmarks/trust.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "trust.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trust_benchmark", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["trust_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def outcomes(bench: ModuleType, shape: str, gold: int, draws: int) -> dict[str, object]:
    return {o.mode: o for o in bench.simulate(shape, gold, draws, bench.MODES)}


@pytest.mark.parametrize("shape", ["sharp", "worst first", "just below", "ties", "rare", "correlated"])
def test_violations_stay_within_delta(bench: ModuleType, shape: str) -> None:
    found = outcomes(bench, shape, 200, 150)
    for mode, outcome in found.items():
        independent = bench.SHAPES[shape][3] == 0
        if mode.startswith("image") or (mode.startswith("box") and independent):
            assert outcome.violated <= outcome.allowed, (mode, outcome)


def test_the_naive_rule_breaks_it_and_certificates_pay_little_for_keeping_it(bench: ModuleType) -> None:
    found = outcomes(bench, "sharp", 1000, 60)
    assert found["naive"].violated > 0.3
    assert found["box, fixed sequence"].coverage > 0.85 and found["image, fixed sequence"].coverage > 0.8


def test_boxes_of_one_image_are_not_independent(bench: ModuleType) -> None:
    """Images that are all right or all wrong: by the box delta is broken, by the image it holds."""
    found = outcomes(bench, "all or none", 200, 120)
    assert found["box, fixed sequence"].violated > 0.12 and found["image, fixed sequence"].violated <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("gold", [50, 200, 1000])
def test_violations_in_two_thousand_draws(bench: ModuleType, gold: int) -> None:
    """Each shape by the unit whose promise it tries: of independent answers the box, whose images say the same."""
    for shape, (_, _, _, correlation) in bench.SHAPES.items():
        modes = {k: v for k, v in bench.MODES.items() if k.startswith("image" if correlation else "box")}
        for outcome in bench.simulate(shape, gold, 2000, modes):
            assert outcome.violated <= outcome.allowed, outcome
