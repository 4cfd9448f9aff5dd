from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap

from pipeline import intervals


@given(st.integers(1, 60), st.data(), st.sampled_from([0.8, 0.9, 0.95]))
def test_clopper_pearson_is_that_of_scipy(total: int, data: st.DataObject, confidence: float) -> None:
    right = data.draw(st.integers(0, total))
    low, high = intervals.clopper_pearson(right, total, confidence)
    assert low == pytest.approx(binomtest(right, total, alternative="greater").proportion_ci(confidence).low)
    assert high == pytest.approx(binomtest(right, total, alternative="less").proportion_ci(confidence).high)


@given(st.integers(1, 60), st.data())
def test_wilson_is_that_of_scipy(total: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, total))
    expected = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert intervals.wilson(right, total, 0.95) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_seen_has_no_limits() -> None:
    assert intervals.clopper_pearson(0, 0, 0.9) == intervals.wilson(0, 0, 0.9) == (None, None)
    assert intervals.percentile(np.array([np.nan, np.nan, 1.0]), 0.9) == (None, None)


def test_bootstrap_interval_of_a_mean_covers_as_often_as_it_says() -> None:
    """A mean of 100 normal values with known expectation 0: the closed-form case."""
    generator = np.random.default_rng(3)
    covered = 0
    for trial in range(400):
        values = generator.normal(size=100)
        low, high = intervals.percentile(intervals.resamples(100, 200, trial) @ values / 100, 0.9)
        covered += low <= 0 <= high
    assert covered / 400 == pytest.approx(0.9, abs=0.045)  # three standard errors of 400 trials


def test_resamples_draw_with_replacement_and_repeat() -> None:
    weights = intervals.resamples(50, 300, 1)
    assert (weights.sum(axis=1) == 50).all() and weights.max() > 1
    assert np.array_equal(weights, intervals.resamples(50, 300, 1))
    assert (weights == 0).mean() == pytest.approx((1 - 1 / 50) ** 50, abs=0.01)


def test_holm_by_hand() -> None:
    assert intervals.holm(np.array([0.04, 0.01, 0.03])) == pytest.approx([0.06, 0.03, 0.06])
    assert intervals.holm(np.array([])).shape == (0,)


@given(st.integers(0, 2**32 - 1), st.integers(3, 30), st.booleans())
@settings(max_examples=30, deadline=None)
def test_bca_is_that_of_scipy(seed: int, n: int, skewed: bool) -> None:
    generator = np.random.default_rng(seed)
    values = generator.exponential(size=n) ** 2 if skewed else generator.normal(size=n)
    found = bootstrap((values,), np.mean, n_resamples=199, confidence_level=0.9, method="BCa", rng=generator)
    left_out = (values.sum() - values) / (n - 1)
    # Twice: rows do not mix.
    rows = (np.tile(v, (2, 1)) for v in (found.bootstrap_distribution, left_out))
    ours = intervals.bca(np.full(2, values.mean()), *rows, 0.9)
    assert ours == pytest.approx(np.tile(found.confidence_interval, (2, 1)), rel=1e-9)


def test_bca_without_enough_is_undefined_and_without_spread_the_percentiles() -> None:
    draws = np.linspace(0, 1, 101)[None]
    assert np.isnan(intervals.bca(np.array([0.5]), draws, np.full((1, 5), np.nan), 0.9)).all()
    assert np.isnan(intervals.bca(np.array([0.5]), draws * np.nan, np.ones((1, 5)), 0.9)).all()
    assert intervals.bca(np.array([0.5]), draws, np.ones((1, 5)), 0.9)[0] == pytest.approx([0.05, 0.95])


def test_bca_of_a_skewed_mean_covers_more_truly_than_percentiles() -> None:
    generator = np.random.default_rng(4)
    covered = {"bca": 0, "percentile": 0}
    for trial in range(400):
        values = generator.lognormal(size=20)
        drawn = (intervals.resamples(20, 200, trial) @ values / 20)[None]
        left_out = ((values.sum() - values) / 19)[None]
        both = {
            "bca": intervals.bca(np.array([values.mean()]), drawn, left_out, 0.9)[0],
            "percentile": intervals.percentiles(drawn, 0.9)[0],
        }
        for name, (low, high) in both.items():
            covered[name] += low <= np.exp(0.5) <= high
    assert covered["percentile"] < covered["bca"] < 0.9 * 400
