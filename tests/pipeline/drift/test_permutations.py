from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from pipeline.drift.kernel import feature_kernel, image_kernel
from pipeline.drift.permutations import ChiSquare, EachShare, auc_parts, each_p_value, ks_parts, permutation_test
from pipeline.drift.sides import Blocks


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(1, 39))
@settings(max_examples=60, deadline=None)
def test_auc_is_that_of_scikit_learn(scores: list[int], cut: int) -> None:
    side = np.arange(len(scores)) < 1 + cut % (len(scores) - 1)
    found, _, _ = permutation_test(auc_parts(np.array(scores, np.float64)), np.arange(len(scores)), side, 5, 0)
    assert found == pytest.approx(roc_auc_score(side, scores))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_chi_square_is_that_of_scipy(table: list[tuple[int, int]]) -> None:
    counts = np.array(table, np.float64).T
    if (counts.sum(axis=1) == 0).any():
        return
    expected = stats.chi2_contingency(counts[:, counts.sum(axis=0) > 0], correction=False).statistic
    side = np.array([True, False])
    statistic = ChiSquare(counts, counts.sum(axis=1))
    found, _, _ = permutation_test(statistic, np.arange(2), side, 5, 0)
    assert found == pytest.approx(expected, abs=1e-9)
    if counts.shape[1] == 2 and (counts.sum(axis=0) > 0).all():
        sums, sizes = EachShare(counts, counts.sum(axis=1)).blocks(np.arange(2))
        each = EachShare(counts, counts.sum(axis=1)).of_sides(sums, sizes, side[:, None].astype(float))
        np.testing.assert_allclose(each[:, 0], expected, atol=1e-9)


def test_chi_square_p_values_are_scipys_where_images_are_independent() -> None:
    rng = np.random.default_rng(0)
    kind = np.concatenate([rng.choice(3, 200, p=[0.5, 0.3, 0.2]), rng.choice(3, 300, p=[0.42, 0.33, 0.25])])
    member, side = np.eye(3)[kind], np.arange(500) < 200
    _, p, _ = permutation_test(ChiSquare(member, np.ones(500)), np.arange(500), side, 20_000, 0)
    table = [np.bincount(kind[side]), np.bincount(kind[~side])]
    assert p == pytest.approx(stats.chi2_contingency(table).pvalue, abs=0.02)
    each = each_p_value(EachShare(member, np.ones(500)), np.arange(500), side, 20_000, 0)
    for k in range(3):
        two = [[t[k], t.sum() - t[k]] for t in table]
        exact = stats.fisher_exact(two).pvalue
        assert each[k] == pytest.approx(exact, abs=0.02)


def test_small_p_values_are_told_apart_by_more_draws() -> None:
    """30 against 30 independent values: the exact tail by Mann-Whitney, which 199 draws cannot see."""
    rng = np.random.default_rng(1)
    values, side = np.concatenate([rng.normal(0.85, 1, 30), rng.normal(size=30)]), np.arange(60) < 30
    exact = stats.mannwhitneyu(values[side], values[~side], alternative="greater", method="exact").pvalue
    assert 5e-5 < exact < 2e-3
    _, few, least = permutation_test(auc_parts(values), np.arange(60), side, 199, 3)
    assert few >= 1 / 200 and least == 1 / 200
    _, more, least = permutation_test(auc_parts(values), np.arange(60), side, 199, 3, 100_000)
    assert least == 1 / 100_001 and exact / 2.5 < more < 2.5 * exact


def test_p_values_with_more_draws_stay_valid() -> None:
    """P(p <= u) <= u for every u, over many null pairs."""
    rng = np.random.default_rng(0)
    side, found = np.arange(24) < 10, []
    for draw in range(1500):
        values = rng.normal(size=24)
        found.append(permutation_test(auc_parts(values), np.arange(24), side, 49, draw, 2000)[1])
    for level in (0.002, 0.01, 0.05, 0.2, 0.5):
        assert (np.array(found) <= level).sum() <= stats.binom.ppf(0.999, 1500, level)


@given(st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_random_features_come_near_the_kernel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(120, 8)).astype(np.float32)
    points[:40] += 0.7
    owner = np.repeat(np.arange(60), 2)
    blocks, side = np.arange(60), np.arange(60) < 20
    exact, p, _ = permutation_test(image_kernel(points, owner, 60).statistic, blocks, side, 99, 0)
    near, p_near, _ = permutation_test(feature_kernel(points, owner, 60, 4096).statistic, blocks, side, 99, 0)
    assert near == pytest.approx(exact, abs=0.02)
    assert p == p_near == 0.01


def test_what_is_no_shift_is_none_by_random_features_either() -> None:
    rng = np.random.default_rng(0)
    everyone, alarms = np.arange(60), 0
    for draw in range(300):
        points = rng.normal(size=(60, 4)).astype(np.float32)
        statistic = feature_kernel(points, everyone, 60, 64).statistic
        alarms += permutation_test(statistic, everyone, everyone < 25, 99, draw)[1] <= 0.05
    assert stats.binom.ppf(0.001, 300, 0.05) <= alarms <= stats.binom.ppf(0.999, 300, 0.05)


def test_a_location_on_both_sides_is_two_blocks() -> None:
    blocks = Blocks.of(np.array([0, 0, 1, 1, 2]), np.array([True, False, True, True, False]))
    assert blocks.shared == 1 and blocks.in_batch.sum() == 2 and len(blocks.in_batch) == 4
    assert len(set(blocks.number.tolist())) == 4 and blocks.number[2] == blocks.number[3]
    np.testing.assert_allclose(blocks.means(np.arange(5.0)[:, None])[blocks.number, 0], [0, 1, 2.5, 2.5, 4])


def test_kolmogorov_smirnov_takes_any_number_of_values() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=3000), rng.normal(0.1, 1, 2000)
    found, _, _ = permutation_test(ks_parts(np.concatenate([x, y])), np.arange(5000), np.arange(5000) < 3000, 5, 0)
    assert found == pytest.approx(stats.ks_2samp(x, y).statistic, abs=2 / 512)
