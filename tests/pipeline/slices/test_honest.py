from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact

from pipeline.slices.honest import first_half, p_worse


def test_p_value_is_fishers_for_right_and_wrong() -> None:
    generator = np.random.default_rng(0)
    error, inside = (generator.random(40) < 0.4).astype(float), generator.random(40) < 0.3
    cells = np.array([[(error[part]).sum(), (1 - error[part]).sum()] for part in (inside, ~inside)])
    assert p_worse(error, inside, 0) == pytest.approx(fisher_exact(cells, "greater").pvalue)
    assert p_worse(error, np.zeros(40, bool), 0) is None


def test_permutation_p_value_is_the_share_of_all_choices() -> None:
    error, inside = np.array([0.9, 0.8, 0.1, 0.3, 0.5, 0.2]), np.array([True, True, False, False, False, False])
    # The two largest of six: one choice of 15 is as large.
    assert p_worse(error, inside, 0) == pytest.approx(1 / 15, abs=0.02)


def test_halves_are_even_and_keep_locations_together_where_there_are_many() -> None:
    ids = [f"i{k}" for k in range(600)]
    by_image = first_half(ids)
    assert 0.4 < by_image.mean() < 0.6
    places = {i: f"p{k // 6}" for k, i in enumerate(ids)}
    together = first_half(ids, places).reshape(100, 6)
    assert (together.all(axis=1) | ~together.any(axis=1)).all() and 0.3 < together.mean() < 0.7
    few = {i: f"p{k // 60}" for k, i in enumerate(ids)}
    np.testing.assert_array_equal(first_half(ids, few), by_image)
    # Other images change nothing.
    np.testing.assert_array_equal(first_half(ids[:50]), by_image[:50])
