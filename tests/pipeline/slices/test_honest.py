from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from scipy.stats import fisher_exact

from pipeline.slices.honest import first_half, p_worse, units


def names(n: int) -> list[str]:
    return [f"i{k}" for k in range(n)]


def test_p_value_is_fishers_for_right_and_wrong() -> None:
    generator = np.random.default_rng(0)
    error, inside = (generator.random(40) < 0.4).astype(float), generator.random(40) < 0.3
    cells = np.array([[(error[part]).sum(), (1 - error[part]).sum()] for part in (inside, ~inside)])
    assert p_worse(error, inside, 0, names(40)) == pytest.approx(fisher_exact(cells, "greater").pvalue)
    assert p_worse(error, np.zeros(40, bool), 0, names(40)) is None


def test_permutation_p_value_is_the_share_of_all_choices() -> None:
    error, inside = np.array([0.9, 0.8, 0.1, 0.3, 0.5, 0.2]), np.array([True, True, False, False, False, False])
    # The two largest of six: one choice of 15 is as large.
    assert p_worse(error, inside, 0, names(6)) == pytest.approx(1 / 15, abs=0.02)


def test_a_small_permutation_p_value_is_drawn_until_it_is_exact() -> None:
    generator = np.random.default_rng(0)
    error, inside = generator.random(60), np.arange(60) < 20
    error[inside] += 0.35
    fisher = [p_worse((error > c).astype(float), inside, 0, names(60)) for c in (0.4, 0.6)]
    drawn = p_worse(error, inside, 0, names(60))
    assert drawn is not None and drawn < min(f for f in fisher if f is not None)
    assert 1 / 20_001 <= drawn < 1 / 2001  # less than what 2,000 draws can tell


@pytest.mark.parametrize("seed", range(6))
def test_p_value_of_locations_is_the_larger_share_of_all_signs_and_of_all_orders(seed: int) -> None:
    generator = np.random.default_rng(seed)
    location = np.repeat(np.arange(7), generator.integers(1, 6, 7))
    error, inside = generator.random(len(location)), generator.random(len(location)) < 0.4
    scores = np.bincount(location, (inside - inside.mean()) * (error - error.mean()))
    # The sum over locations is the difference of means but for a factor.
    difference = error[inside].mean() - error[~inside].mean()
    assert scores.sum() == pytest.approx(difference * inside.sum() * (~inside).sum() / len(inside))
    signs = float((np.array(list(product((-1, 1), repeat=7))) @ scores >= scores.sum() - 1e-9).mean())
    share = np.array([inside[location == k].mean() for k in range(7)])
    excess = np.array([(error - error.mean())[location == k].sum() for k in range(7)])
    orders = float((np.array(list(permutations(share))) @ excess >= share @ excess - 1e-9).mean())
    found = p_worse(error, inside, 0, [f"p{k}" for k in location])
    assert found == pytest.approx(max(signs, orders), abs=0.04)


@pytest.mark.parametrize("whole", [True, False], ids=["locations", "parts of them"])
def test_locations_that_err_alone_do_not_make_a_slice(whole: bool) -> None:
    """Errors differ from location to location, the slice is drawn at random: p <= 0.05 in at most 5 % of trials."""
    generator = np.random.default_rng(2)
    by_location = by_image = 0
    trials = 400
    for _ in range(trials):
        location = np.repeat(np.arange(40), generator.integers(1, 16, 40))
        error = (generator.random(len(location)) < generator.beta(0.4, 1.6, 40)[location]).astype(float)
        share = (generator.random(40) < 0.25).astype(float) if whole else generator.beta(0.5, 1.5, 40)
        inside = generator.random(len(location)) < share[location]
        together, apart = (
            p_worse(error, inside, 0, found) for found in ([f"p{k}" for k in location], names(len(location)))
        )
        by_location += together is not None and together <= 0.05
        by_image += apart is not None and apart <= 0.05
    # 34 or more of 400 would be as rare as 1 in 400; as if images were independent it is far more often.
    assert 0 < by_location < 34 < by_image


@pytest.mark.parametrize(("rate", "all_alike"), [(0.95, True), (0.95, False), (0.5, True), (0.1, True)])
def test_few_of_the_locations_that_err_nearly_everywhere_do_not_make_a_slice(rate: float, all_alike: bool) -> None:
    """12 of 200 locations are drawn at random: p <= 0.05 in at most 5 % of trials; flipped signs alone find half."""
    generator = np.random.default_rng(3)
    small, trials = 0, 200
    for _ in range(trials):
        location = np.repeat(np.arange(200), 3 if all_alike else generator.integers(2, 6, 200))
        often = generator.random(200) < rate
        by_location = often.astype(float) if all_alike else np.where(often, 0.95, 0.3) + generator.uniform(0, 0.05, 200)
        inside = np.isin(location, generator.choice(200, 12, replace=False))
        p = p_worse(by_location[location], inside, 0, [f"p{k}" for k in location])
        small += p is not None and p <= 0.05
    assert small <= 19  # more would be as rare as 1 in 350


def test_halves_are_even_and_keep_locations_together_where_there_are_many() -> None:
    ids = names(600)
    by_image = first_half(units(ids))
    assert 0.4 < by_image.mean() < 0.6
    places = {i: f"p{k // 6}" for k, i in enumerate(ids)}
    together = first_half(units(ids, places)).reshape(100, 6)
    assert (together.all(axis=1) | ~together.any(axis=1)).all() and 0.3 < together.mean() < 0.7
    few = {i: f"p{k // 60}" for k, i in enumerate(ids)}
    np.testing.assert_array_equal(first_half(units(ids, few)), by_image)
    # Other images change nothing.
    np.testing.assert_array_equal(first_half(units(ids[:50])), by_image[:50])
