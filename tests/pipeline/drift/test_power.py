from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.drift.kernel import image_kernel, median_distance
from pipeline.drift.permutations import permutation_test
from pipeline.drift.power import Simulation, leading_direction, smallest_shift


@pytest.mark.parametrize(("here", "there"), [(50, 200), (20, 50), (300, 300)])
def test_the_smallest_shift_is_its_closed_form_for_a_difference_of_means(here: int, there: int) -> None:
    """With a wide kernel on one dimension MMD is the squared difference of means: a two-sided z test."""
    points = np.random.default_rng(0).normal(size=(800, 1))
    found = smallest_shift(points, np.arange(800), here, there, 1e5, 0.05, 0.8, 1)
    expected = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * np.sqrt(1 / here + 1 / there)
    assert found == pytest.approx(expected, rel=0.12)


def test_the_test_itself_catches_that_shift_as_often_as_promised() -> None:
    rng = np.random.default_rng(3)
    scale = np.array([2.0, 1, 1, 1, 1, 1])
    reference = rng.normal(size=(600, 6)) * scale
    width = median_distance(reference)
    found = smallest_shift(reference, np.arange(600), 40, 80, width, 0.05, 0.8, 0)
    assert found is not None
    direction, deviation = leading_direction(reference)
    caught, everyone = 0, np.arange(120)
    for trial in range(100):
        points = rng.normal(size=(120, 6)) * scale
        points[:40] += found * deviation * direction
        statistic = image_kernel(points.astype(np.float32), everyone, 120).statistic
        caught += permutation_test(statistic, everyone, everyone < 40, 199, trial)[1] <= 0.05
    assert stats.binom.ppf(0.005, 100, 0.72) <= caught <= stats.binom.ppf(0.995, 100, 0.88)


def test_power_without_a_shift_is_alpha_and_rises_to_one() -> None:
    rng = np.random.default_rng(0)
    made = Simulation(rng.normal(size=(300, 5)), np.repeat(np.arange(150), 2), 30, 60, 10.0, 0.05, 0)
    assert made.power(0) == pytest.approx(0.05, abs=0.03)
    rising = [made.power(s) for s in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert rising == sorted(rising) and rising[-1] == 1.0


def test_where_it_cannot_be_told_it_is_not() -> None:
    points = np.random.default_rng(0).normal(size=(40, 3))
    assert smallest_shift(points, np.zeros(40, int), 5, 5, 1.0, 0.05, 0.8, 0) is None  # one location
    assert smallest_shift(points, np.arange(40), 5, 5, 1.0, 1e-6, 0.8, 0) is None  # no quantile of so few draws
    assert smallest_shift(np.ones((40, 3)), np.arange(40), 5, 5, 1.0, 0.05, 0.8, 0) is None  # no spread
