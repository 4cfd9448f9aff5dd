from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.trust import thresholds

p_values = st.lists(st.floats(0, 1), max_size=30)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), max_size=200), st.floats(0.01, 1), st.integers(1, 40))
def test_grid_falls_and_ends_with_everything(scores: list[float], first: float, size: int) -> None:
    found = thresholds.grid(np.array(scores), first, size)
    assert (np.diff(found) < 0).all() and found[-1] == 0 and len(found) <= size + 1
    assert (found == found.astype(np.float32)).all()
    if scores:
        assert set(found[:-1].tolist()) <= set(np.float32(scores).astype(float).tolist())


def test_grid_starts_where_gold_can_say_something() -> None:
    """With ten times the evidence needed, the strictest score lets a fifth through: a margin of two."""
    assert thresholds.start(10) == pytest.approx(0.2) and thresholds.start(0.5) == 1.0
    assert thresholds.grid(np.linspace(0, 1, 1000), 0.2, 50)[0] == pytest.approx(0.8, abs=0.002)
    assert thresholds.grid(np.linspace(0.5, 1, 1000), 1.0, 50).tolist() == [0.5, 0.0]


def test_sequence_stops_and_may_enter_again() -> None:
    low, high = 1e-4, 0.5
    assert thresholds.choose(np.array([low, low, high, high, high]), 0.1, "fixed_sequence", 9) == 1
    # 40 % along the grid of five, a second entry has 0.03 to spend; a first entry that held brings 0.07 along.
    assert thresholds.choose(np.array([high, low, 0.029, 0.029, high]), 0.1, "fixed_sequence", 9) == 3
    assert thresholds.choose(np.array([high, low, 0.031, 0.029, high]), 0.1, "fixed_sequence", 9) is None
    assert thresholds.choose(np.array([0.069, 0.069, 0.09, 0.09, high]), 0.1, "fixed_sequence", 9) == 3
    assert thresholds.choose(np.array([0.09, 0.09, high, low, high]), 0.1, "fixed_sequence", 2) == 1
    assert thresholds.choose(np.array([]), 0.1, "fixed_sequence", 9) is None


@settings(max_examples=80, deadline=None)
@given(p_values)
def test_holm_is_the_textbook_loop(values: list[float]) -> None:
    order, safe = np.argsort(values, kind="stable"), []
    for step, place in enumerate(order):
        if values[place] > 0.1 / (len(values) - step):
            break
        safe.append(int(place))
    assert thresholds.choose(np.array(values), 0.1, "holm", 9) == (max(safe) if safe else None)


@settings(max_examples=80, deadline=None)
@given(p_values, st.sampled_from(["fixed_sequence", "holm"]), st.sampled_from([1.0, 9.0]))
def test_smaller_p_values_never_lose_a_threshold(values: list[float], method: thresholds.Method, room: float) -> None:
    p = np.array(values)
    before, after = thresholds.choose(p, 0.1, method, room), thresholds.choose(p / 2, 0.1, method, room)
    assert before is None or (after is not None and after >= before)


@pytest.mark.parametrize(("method", "room"), [("fixed_sequence", 1), ("fixed_sequence", 9), ("holm", 9)])
def test_false_rejections_stay_at_delta_under_any_dependence(method: thresholds.Method, room: float) -> None:
    """All hypotheses true: uniform p-values that are equal, independent, or opposed."""
    generator = np.random.default_rng(1)
    u = generator.random((4000, 1))
    for p in (np.repeat(u, 8, axis=1), generator.random((4000, 8)), np.tile(np.hstack([u, 1 - u]), (1, 4))):
        wrong = np.mean([thresholds.choose(row, 0.1, method, room) is not None for row in p])
        assert wrong <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 4000)
