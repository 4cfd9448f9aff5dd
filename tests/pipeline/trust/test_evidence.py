from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from pipeline.trust import evidence

units = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40)


def arrays(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    right = np.array([min(r) for r in rows], np.int64)
    return np.array([max(r) for r in rows], np.int64), right


@pytest.mark.parametrize(("right", "total"), [(0, 5), (9, 10), (30, 30), (47, 50)])
def test_independent_answers_have_the_exact_tail(right: int, total: int) -> None:
    accepted, good = np.ones((total, 1), np.int64), (np.arange(total) < right).astype(np.int64)[:, None]
    p = evidence.p_values(accepted, good, np.array([1]), 0.8)[0]
    assert p == pytest.approx(binomtest(right, total, 0.8, alternative="greater").pvalue)
    low, high = evidence.limits(accepted[:, 0], good[:, 0], 1, 0.9)
    assert (low, high) == pytest.approx(
        (
            binomtest(right, total, alternative="greater").proportion_ci(0.9).low,
            binomtest(right, total, alternative="less").proportion_ci(0.9).high,
        )
    )


def test_nothing_accepted_says_nothing() -> None:
    nothing = np.zeros((4, 2), np.int64)
    assert evidence.p_values(nothing, nothing, np.array([1, 3]), 0.9).tolist() == [1, 1]
    assert evidence.limits(nothing[:, 0], nothing[:, 0], 3, 0.9) == (None, None)
    assert evidence.p_values(np.zeros((0, 1), np.int64), np.zeros((0, 1), np.int64), np.array([2]), 0.9)[0] == 1


@settings(max_examples=60, deadline=None)
@given(units, st.sampled_from([0.5, 0.8, 0.95]))
def test_bets_do_not_depend_on_order_and_like_right_answers(rows: list[tuple[int, int]], target: float) -> None:
    accepted, right = arrays(rows)
    capital = evidence.log_capital(accepted, right, 5, target)
    assert capital == pytest.approx(evidence.log_capital(accepted[::-1], right[::-1], 5, target))
    assert evidence.log_capital(accepted, accepted, 5, target) >= capital - 1e-9
    assert evidence.log_capital(accepted, right, 5, target * 0.9) >= capital - 1e-9


@settings(max_examples=40, deadline=None)
@given(units)
def test_limits_hold_the_observed_share_and_refute_beyond_themselves(rows: list[tuple[int, int]]) -> None:
    accepted, right = arrays(rows)
    low, high = evidence.limits(accepted, right, 5, 0.9)
    if not accepted.sum():
        assert (low, high) == (None, None)
        return
    assert low is not None and high is not None
    assert 0 <= low <= right.sum() / accepted.sum() <= high <= 1
    if low > 1e-6:
        assert evidence.log_capital(accepted, right, 5, low * 0.999) >= np.log(10) - 1e-6
        assert evidence.log_capital(accepted, right, 5, min(0.999, low * 1.001)) < np.log(10) + 0.05


def test_capital_is_fair_where_the_target_is_just_met() -> None:
    """Its mean over draws is 1 at most; here images are all right or all wrong, the worst there is."""
    generator = np.random.default_rng(0)
    accepted = generator.integers(0, 4, (4000, 30))
    right = accepted * (generator.random((4000, 30)) < 0.9)
    capital = [np.exp(evidence.log_capital(a, r, 3, 0.9)) for a, r in zip(accepted, right, strict=True)]
    assert np.mean(capital) < 1 + 3 * np.std(capital) / np.sqrt(4000)
    assert np.mean(np.array(capital) >= 10) <= 0.1


@pytest.mark.parametrize(("target", "delta"), [(0.9, 0.1), (0.95, 0.05), (0.5, 0.2)])
def test_answers_that_must_all_be_right(target: float, delta: float) -> None:
    least = evidence.least_units(target, delta)
    assert target**least <= delta < target ** (least - 1)


@pytest.mark.parametrize("share", [0.93, 0.97, 1.0])
def test_units_needed_give_about_the_power_asked_for(share: float) -> None:
    n = evidence.units_needed(share, 0.9, 0.1)
    assert n is not None
    critical = next(k for k in range(n + 2) if binom.sf(k - 1, n, 0.9) <= 0.1)
    assert 0.7 < binom.sf(critical - 1, n, share) <= 1
    assert evidence.units_needed(0.9, 0.9, 0.1) is None
