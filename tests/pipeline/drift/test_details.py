from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.drift.classifier import held_out_auc, training_half
from pipeline.drift.dimensions import by_dimension
from pipeline.drift.kernel import feature_kernel, image_kernel
from pipeline.drift.mixes import label_mix, psi, score_mix, slice_mix
from pipeline.drift.permutations import permutation_test
from pipeline.drift.regions import drivers
from pipeline.drift.sides import Blocks
from tests.pipeline.curated_rows import unit


def apart(here: int, there: int) -> Blocks:
    """Every image is a location."""
    return Blocks.of(np.arange(here + there), np.arange(here + there) < here)


# -- classifier -----------------------------------------------------------------------------------


def test_a_classifier_finds_a_shift_and_keeps_alpha_without() -> None:
    rng = np.random.default_rng(0)
    trials, found = 40, {0.0: 0, 2.0: 0}
    for trial in range(trials):
        for shift in found:
            # Locations of two like images each, that learning and testing must not share.
            place = np.repeat(np.arange(60), 2)
            vectors = rng.normal(size=(60, 12))[place] + 0.1 * rng.normal(size=(120, 12))
            vectors[:40, 0] += shift
            blocks = Blocks.of(place, np.arange(120) < 40)
            auc, held_out = held_out_auc(vectors, blocks, trial)
            found[shift] += permutation_test(auc, held_out.number, held_out.in_batch, 99, trial)[1] <= 0.05
    assert found[0.0] <= stats.binom.ppf(0.999, trials, 0.05)
    assert found[2.0] > 0.75 * trials


def test_it_learns_from_half_of_each_sides_locations() -> None:
    blocks = apart(9, 21)
    half = training_half(blocks, 0)
    assert half[blocks.in_batch].sum() == 4 and half[~blocks.in_batch].sum() == 10
    vectors = np.random.default_rng(0).normal(size=(30, 3))
    _, held_out = held_out_auc(vectors, blocks, 0)
    assert held_out.in_batch.sum() == 5 and (~held_out.in_batch).sum() == 11 and len(held_out.number) == 16


# -- dimensions -----------------------------------------------------------------------------------


@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 6), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_dimensions_are_those_of_scipy_and_corrected(here: int, there: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(here + there, width)).round(1)
    values[:here, 0] += rng.normal()
    found = by_dimension(values, [f"v{k}" for k in range(width)], apart(here, there))
    each = [stats.ks_2samp(values[:here, k], values[here:, k]) for k in range(width)]
    np.testing.assert_array_equal(found.statistic, [e.statistic for e in each])
    np.testing.assert_array_equal(found.p_value, [e.pvalue for e in each])
    order = np.argsort(found.p_value)
    stepped = [min(1, max((width - j) * found.p_value[order[j]] for j in range(k + 1))) for k in range(width)]
    np.testing.assert_allclose(found.holm[order], stepped)
    ranked = [min(1, min(width / (j + 1) * found.p_value[order[j]] for j in range(k, width))) for k in range(width)]
    np.testing.assert_allclose(found.q_value[order], ranked)


def test_a_location_is_one_observation() -> None:
    place = np.array([0, 0, 0, 1, 2, 3, 3])
    values = np.array([[1.0], [2], [6], [4], [0], [1], [2]])
    found = by_dimension(values, ["x"], Blocks.of(place, place < 2))
    assert found.p_value[0] == stats.ks_2samp([3, 4], [0, 1.5]).pvalue
    assert found.shift[0] == pytest.approx((3.5 - 0.75) / np.sqrt((0.25 * 2 + 0.5625 * 2) / 2))


# -- mixes ----------------------------------------------------------------------------------------


def test_psi_is_its_formula_and_finite_for_empty_categories() -> None:
    here, there = np.array([30.0, 60, 10]), np.array([200.0, 300, 500])
    p, q = (here + 0.5) / 101.5, (there + 0.5) / 1001.5
    np.testing.assert_allclose(psi(here, 100, there, 1000), (p - q) * np.log(p / q))
    # With many images the half does not matter.
    exact = ((here / 100 - there / 1000) * np.log((here / 100) / (there / 1000))).sum()
    assert psi(1e4 * here, 1e6, 1e4 * there, 1e7).sum() == pytest.approx(exact, rel=1e-3)
    empty = psi(np.array([3.0, 0]), 3, np.array([0.0, 4]), 4)
    assert np.isfinite(empty).all() and (empty > 0).all()


def test_labels_count_as_their_scores_and_scores_in_tenths() -> None:
    mix = label_mix(["cat", "dog", "cat"], np.array([0.9, 0.4, 0.2]), np.array([0, 0, 2]), 3)
    assert mix.categories == ["cat", "dog"]
    np.testing.assert_allclose(mix.counts, [[0.9, 0.4], [0, 0], [0.2, 0]])
    scores = np.linspace(0, 1, 101)
    tenths = score_mix(scores, np.arange(101) % 4, 4)
    assert len(tenths.categories) == 10 and tenths.counts.sum() == 101
    assert np.ptp(tenths.counts.sum(axis=0)) <= 2
    same = score_mix(np.full(20, 0.3), np.arange(20), 20)
    assert same.counts.sum() == 20
    near = score_mix(0.5 + np.linspace(0, 1e-6, 50), np.arange(50), 50)
    assert len(set(near.categories)) == len(near.categories) == 10  # names are keys


def test_a_mix_that_shifted_is_named() -> None:
    rng = np.random.default_rng(0)
    kind = np.concatenate([rng.choice(3, 100, p=[0.1, 0.45, 0.45]), rng.choice(3, 300, p=[0.4, 0.3, 0.3])])
    rows = slice_mix(["night", "rain", "fog"], np.eye(3)[kind]).rows("b", "slices", "declared", apart(100, 300), 999, 0)
    night = rows[0]
    assert night["p_value"] == pytest.approx(3 / 1000) and night["share"] < 0.2 < night["reference_share"]
    assert night["psi"] == max(r["psi"] for r in rows)


# -- what drives it -------------------------------------------------------------------------------


def test_the_witness_sums_to_the_squared_mmd() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 4)).astype(np.float32)
    kernel, side = image_kernel(vectors, np.arange(30), 30), np.arange(30) < 12
    weight = np.where(side, 1 / 12, -1 / 18)
    value = kernel.witness(side)
    assert value[side].mean() - value[~side].mean() == pytest.approx(weight @ kernel.sums @ weight)
    np.testing.assert_allclose(value, kernel.means()[:, side].mean(axis=1) - kernel.means()[:, ~side].mean(axis=1))


def test_the_witness_by_random_features_ranks_images_as_the_exact_one() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(600, 16)).astype(np.float32)
    points[:80, 0] += 3.0  # of a batch of 400 points, two an image
    owner, side = np.repeat(np.arange(300), 2), np.arange(300) < 200
    exact, near = (of(points, owner, 300).witness(side) for of in (image_kernel, feature_kernel))
    assert stats.spearmanr(exact, near).statistic > 0.9
    assert np.abs(exact - near).max() < 0.3 * np.abs(exact).max()
    assert set(np.argsort(-near)[:20]) <= set(range(40))


def test_a_planted_kind_of_image_is_the_first_region_and_its_images_come_first() -> None:
    rng = np.random.default_rng(0)
    centres = 2 * np.eye(8)[[0, 1, 2, 3]]
    kind = np.concatenate([rng.choice(3, 40), np.full(20, 3), rng.choice(3, 120)])  # kind 3 only in the batch
    vectors = unit(centres[kind] + 0.2 * rng.normal(size=(180, 8)))
    ids = [f"i{k:03d}" for k in range(180)]
    blocks = apart(60, 120)
    kernel = image_kernel(vectors, np.arange(180), 180)
    side = np.arange(180) < 60
    distance = kernel.nearest_reference(side, np.eye(180, dtype=bool))
    regions, images = drivers(
        "b", "e", ids, vectors.astype(float), np.arange(180), kernel.witness(side), distance, blocks, 4, 999, 0
    )
    planted = set(ids[40:60])
    assert regions[0]["images"] == 20 and regions[0]["reference_images"] == 0
    assert set(regions[0]["examples"]) <= planted and regions[0]["reference_examples"] == []
    assert regions[0]["p_value"] <= 4 / 1000 < 0.05 < min(r["p_value"] for r in regions[1:])
    assert regions[0]["contribution"] > 0.5
    assert sum(r["contribution"] for r in regions) == pytest.approx(1)
    assert sum(r["images"] for r in regions) == 60 == len(images)
    assert {r["image_id"] for r in images[:20]} == planted and {r["region"] for r in images[:20]} == {1}
