from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline import drift, schema
from pipeline.config import DriftConfig
from pipeline.drift import sides
from pipeline.drift.kernel import image_kernel, median_distance
from pipeline.drift.novelty import prediction_test, reference_mahalanobis
from pipeline.drift.permutations import ks_parts, permutation_test, share_parts
from pipeline.drift.sides import Sides, covered_area, thinned
from pipeline.errors import ConfigError
from tests.pipeline.curated_rows import image_rows, quality_rows, unit
from tests.pipeline.photo_rows import collect_images

CONFIG = DriftConfig(permutations=199, most_permutations=20_000, alpha=0.05)


def by_test(table: pa.Table) -> dict[str, dict[str, Any]]:
    return {row["test"]: row for row in table.to_pylist()}


def two_sides(here: int, there: int, **columns: Any) -> tuple[pa.Table, list[str]]:
    ids = [f"i{k:04d}" for k in range(here + there)]
    batches = ["new"] * here + ["old"] * there
    return image_rows(ids, **({"location": ids} | columns | {"batch": batches})), ids


def mmd_by_loops(x: np.ndarray, y: np.ndarray, width: float) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / width))

    m, n = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (m * n)


# -- maximum mean discrepancy ---------------------------------------------------------------------


@given(st.integers(2, 6), st.integers(2, 6), st.integers(1, 3), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_mmd_is_that_of_a_double_loop(m: int, n: int, windows: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    points = generator.normal(size=((m + n) * windows, 3)).astype(np.float32)
    owner = np.repeat(np.arange(m + n), windows)
    kernel = image_kernel(points, owner, m + n)
    in_batch = np.arange(m + n) < m
    statistic = kernel.statistic
    found, _, _ = permutation_test(statistic, np.arange(m + n), in_batch, 5, 0)
    exact = points.astype(np.float64)
    apart = ((exact[:, None] - exact[None]) ** 2).sum(axis=2)[np.triu_indices(len(exact), 1)]
    expected = mmd_by_loops(exact[: m * windows], exact[m * windows :], float(np.median(apart)))
    assert found == pytest.approx(expected, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(7, 45), st.integers(1, 12), st.floats(0, 0.6), st.integers(0, 999))
def test_mmd_and_its_p_value_are_those_of_alibi_detect(m: int, n: int, d: int, shift: float, seed: int) -> None:
    """Its formula: the kernel matrix without its diagonal, permuted as a whole, in float64."""
    generator, permutations = np.random.default_rng(seed), 29
    points = generator.normal(size=(m + n, d)).astype(np.float32)
    points[:m] += shift
    everyone = np.arange(m + n)
    statistic = image_kernel(points, everyone, m + n).statistic
    found, p_value, _ = permutation_test(statistic, everyone, everyone < m, permutations, 7)
    exact = points.astype(np.float64)
    apart = ((exact[:, None] - exact[None]) ** 2).sum(axis=2)
    kernel = np.exp(-apart / np.median(apart[np.triu_indices(m + n, 1)]))
    kernel -= np.diag(np.diag(kernel))

    def literal(order: np.ndarray) -> float:
        k = kernel[order][:, order]
        return k[:m, :m].sum() / (m * (m - 1)) + k[m:, m:].sum() / (n * (n - 1)) - 2 * k[:m, m:].mean()

    split = np.broadcast_to((everyone < m).astype(float), (permutations, m + n))
    drawn_sides = np.random.default_rng(7).permuted(split, axis=1)
    drawn = [literal(np.argsort(1 - side, kind="stable")) for side in drawn_sides]
    assert found == pytest.approx(literal(everyone), abs=1e-12)
    # There p is the share of permutations that are as large; here the observed one counts as one, too.
    share = np.mean([value >= literal(everyone) for value in drawn])
    assert p_value == pytest.approx((1 + share * permutations) / (1 + permutations), abs=1e-12)


def test_mmd_approaches_its_closed_form_for_normals() -> None:
    # E k(x, y) for k = exp(-d^2 / w), x ~ N(a, I), y ~ N(b, I): (w / (w + 4))^(d/2) exp(-|a - b|^2 / (w + 4))
    generator = np.random.default_rng(0)
    n, d, shift = 1500, 2, 1.5
    x, y = generator.normal(size=(n, d)), generator.normal(size=(n, d)) + np.array([shift, 0.0])
    points = np.concatenate([x, y]).astype(np.float32)
    kernel = image_kernel(points, np.repeat([0, 1], n), 2)
    width = median_distance(points.astype(np.float64))
    found, _, _ = permutation_test(kernel.statistic, np.arange(2), np.array([True, False]), 5, 0)
    scale = (width / (width + 4)) ** (d / 2)
    assert found == pytest.approx(2 * scale * (1 - np.exp(-(shift**2) / (width + 4))), rel=0.05)


def test_few_splits_are_enumerated() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(size=8)
    in_batch = np.arange(8) < 3
    statistic = ks_parts(values)
    observed, p_value, least = permutation_test(statistic, np.arange(8), in_batch, 1000, 0)
    every = [stats.ks_2samp(values[list(c)], np.delete(values, list(c))).statistic for c in combinations(range(8), 3)]
    assert observed == pytest.approx(every[0])
    assert p_value == pytest.approx(np.mean(np.array(every) >= observed - 1e-9)) and least == 1 / 56


def test_one_location_against_many_has_an_exact_p() -> None:
    images, ids = two_sides(1, 30)
    vectors = unit([[1, 0]] + [[0.05 * k, 1] for k in range(30)])
    row = by_test(
        drift.test_batch("new", images, quality_rows(ids), ids, CONFIG, encoder="e", ids=ids, vectors=vectors)
    )
    assert row["embedding_mmd"]["p_value"] == pytest.approx(1 / 31) and row["embedding_mmd"]["drifted"]


def test_false_alarms_of_every_test_keep_to_alpha() -> None:
    """Batches drawn from the reference's distribution, whose locations hold several like images each."""
    generator = np.random.default_rng(0)
    trials, alarms = 300, Counter[str]()
    for trial in range(trials):
        here, there, each = 6, 30, 3
        place = np.repeat(np.arange(here + there), each)
        images, ids = two_sides(here * each, there * each, location=[f"p{trial}-{p}" for p in place])
        centre = generator.normal(size=(here + there, 8))
        vectors = unit(centre[place] + 0.3 * generator.normal(size=(len(ids), 8)))
        measures = {
            name: (
                mean + spread * (generator.normal(size=here + there)[place] + 0.2 * generator.normal(size=len(ids)))
            ).tolist()
            for name, mean, spread in (("brightness", 0.5, 0.05), ("contrast", 0.2, 0.02), ("colourfulness", 20, 3))
        }
        counts = generator.poisson(np.exp(1 + generator.normal(size=here + there))[place])
        rows = [i for i, n in zip(ids, counts, strict=True) for _ in range(n)]
        level = dict(zip(ids, generator.uniform(0.2, 0.8, here + there)[place], strict=True))
        boxes = schema.annotations(
            "detections", image_ids=rows, batch="b", producer="m", classes=["c"] * len(rows),
            boxes=np.zeros((len(rows), 4)), scores=[level[i] + 0.1 * generator.uniform() for i in rows],
        )  # fmt: skip
        found = drift.test_batch(
            "new", images, quality_rows(ids, **measures), ids, CONFIG, encoder="e", ids=ids, vectors=vectors,
            predictions=boxes,
        )  # fmt: skip
        for test, row in by_test(found).items():
            alarms[test] += row["drifted"]
    limit = stats.binom.ppf(0.999, trials, CONFIG.alpha)
    assert all(alarms[t] <= limit for t in alarms), (alarms, limit)
    low = stats.binom.ppf(0.001, trials, CONFIG.alpha)
    assert min(alarms[t] for t in ("embedding_mmd", "count_ks", "score_ks")) >= low, alarms


def test_exchanging_locations_not_images_is_what_keeps_alpha() -> None:
    """The same like images of one place each: exchanged one by one they would alarm nearly always."""
    generator = np.random.default_rng(0)
    alarms = {"images": 0, "locations": 0}
    for _ in range(60):
        place = np.repeat(np.arange(12), 10)
        values = generator.normal(size=12)[place] + 0.05 * generator.normal(size=120)
        for unit_, block in (("images", np.arange(120)), ("locations", place)):
            side = np.arange(block.max() + 1) < (30 if unit_ == "images" else 3)
            alarms[unit_] += permutation_test(ks_parts(values), block, side, 199, 0)[1] < 0.05
    assert alarms["images"] > 30 and alarms["locations"] <= stats.binom.ppf(0.999, 60, 0.05)


def test_a_shift_is_found() -> None:
    generator = np.random.default_rng(0)
    images, ids = two_sides(10, 40)
    vectors = unit(generator.normal(size=(50, 8)) + np.where(np.arange(50)[:, None] < 10, 3.0, 0.0) * np.eye(8)[0])
    brightness = generator.normal(0.5, 0.02, 50) + 0.3 * (np.arange(50) < 10)
    quality = quality_rows(ids, brightness=brightness.tolist())
    slices = {"dark": ids[:9], "any": ids}
    found = by_test(
        drift.test_batch("new", images, quality, ids, CONFIG, encoder="e", ids=ids, vectors=vectors, slices=slices)
    )
    assert {t for t, r in found.items() if r["drifted"]} == set(found) == {
        "embedding_mmd", "embedding_novelty", "appearance_novelty", "slice_mix",
    }  # fmt: skip
    assert found["slice_mix"]["subject"] == "dark, any"


def test_a_subset_of_the_reference_is_another_mixture_but_not_new() -> None:
    generator = np.random.default_rng(0)
    centre = np.where(np.arange(60) % 2 == 0, 1.0, -1.0)[:, None] * np.array([1.0, 0, 0, 0])
    centre[:10] = [1.0, 0, 0, 0]
    vectors = unit(centre + 0.2 * generator.normal(size=(60, 4)))
    images, ids = two_sides(10, 50)
    found = by_test(
        drift.test_batch("new", images, quality_rows(ids), ids, CONFIG, encoder="e", ids=ids, vectors=vectors)
    )
    assert found["embedding_mmd"]["drifted"] and not found["embedding_novelty"]["drifted"]


# -- the other statistics -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # scipy's p-value, not looked at here
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.lists(st.integers(0, 9), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_ks_statistic_is_that_of_scipy(x: list[int], y: list[int]) -> None:
    values = np.array(x + y, np.float64)
    in_batch = np.arange(len(values)) < len(x)
    found, _, _ = permutation_test(ks_parts(values), np.arange(len(values)), in_batch, 5, 0)
    assert found == pytest.approx(stats.ks_2samp(x, y, method="asymp").statistic)


def test_ks_p_value_agrees_with_scipy() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(0.6, 1, 40), generator.normal(size=60)
    values, in_batch = np.concatenate([x, y]), np.arange(100) < 40
    _, p_value, _ = permutation_test(ks_parts(values), np.arange(100), in_batch, 20_000, 0)
    exact = stats.ks_2samp(x, y, method="exact").pvalue
    assert p_value == pytest.approx(exact, abs=4 * np.sqrt(exact / 20_000))


def test_slice_mix_is_the_chi_square_statistic() -> None:
    members = np.array([1] * 7 + [0] * 3 + [1] * 8 + [0] * 22, np.float64)[:, None]
    in_batch = np.arange(40) < 10
    found, _, _ = permutation_test(share_parts(members), np.arange(40), in_batch, 5, 0)
    chi = stats.chi2_contingency([[7, 3], [8, 22]], correction=False).statistic
    assert found == pytest.approx(chi * (1 / 10 + 1 / 30))


def test_the_prediction_test_is_students_t() -> None:
    generator = np.random.default_rng(0)
    own, batch = generator.normal(size=12), generator.normal(1, 1, 5)
    statistic, p_value = prediction_test(batch, own, 5, 12)
    scale = own.std(ddof=1) * np.sqrt(1 / 5 + 1 / 12)
    assert statistic == pytest.approx((batch.mean() - own.mean()) / scale)
    assert p_value == pytest.approx(stats.t.sf(statistic, 11))


def test_mahalanobis_leaves_the_neighbourhood_out() -> None:
    generator = np.random.default_rng(0)
    values, in_batch = generator.normal(size=(30, 3)), np.arange(30) < 4
    left_out = np.eye(30, dtype=bool)
    left_out[10, 11] = left_out[11, 10] = True
    found = reference_mahalanobis(values, in_batch, left_out, np.zeros(3))
    for i in (0, 10, 20):
        used = values[[j for j in range(4, 30) if not left_out[i, j]]]
        offset = values[i] - used.mean(axis=0)
        assert found[i] == pytest.approx(offset @ np.linalg.inv(np.cov(used.T)) @ offset)


def test_nearest_reference_is_the_least_distance_of_kernel_means() -> None:
    generator = np.random.default_rng(0)
    points, owner = generator.normal(size=(15, 2)).astype(np.float32), np.repeat(np.arange(5), 3)
    kernel = image_kernel(points, owner, 6)
    found = kernel.nearest_reference(np.arange(6) < 1, np.eye(6, dtype=bool))
    width = median_distance(points.astype(np.float64))
    gram = np.exp(-((points[:, None].astype(np.float64) - points[None]) ** 2).sum(axis=2) / width)

    def apart(i: int, j: int) -> float:
        weight = (owner == i) / 3.0 - (owner == j) / 3.0
        return float(weight @ gram @ weight)

    expected = [min(apart(i, j) for j in range(1, 5) if j != i) for i in range(5)]
    np.testing.assert_allclose(found[:5], expected, atol=1e-9)
    assert np.isnan(found[5])


@given(st.lists(st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 9)] * 2), min_size=1, max_size=8))
@settings(deadline=None)
def test_covered_area_counts_pixels(windows: list[tuple[int, int, int, int]]) -> None:
    pixels = np.zeros((30, 30), bool)
    for x, y, width, height in windows:
        pixels[y : y + height, x : x + width] = True
    assert covered_area(np.array(windows)) == pixels.sum()


# -- sides ----------------------------------------------------------------------------------------


def test_overlapping_tiles_count_by_area_and_are_left_out_of_each_others_neighbourhood() -> None:
    ids = ["a", "b", "c", "d"]
    images = image_rows(ids, parent_id=["p", "p", "p", "q"], tile_x=[0, 50, 100, 0], location=["p", "p", "p", "q"],
                        batch=["old", "old", "old", "new"])  # fmt: skip
    both = Sides.of("new", images, ids)
    assert both.ids == ["d", "a", "b", "c"] and not both.by_location
    assert both.observations(~both.in_batch) == 2.0 and both.observations(both.in_batch) == 1.0
    near = {(both.ids[i], both.ids[j]) for i, j in np.argwhere(both.neighbourhoods())}
    assert near == {(i, i) for i in ids} | {("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")}


def test_the_reference_is_a_predicate_over_images_and_splits() -> None:
    images = image_rows(["a", "b", "c", "d"], attributes=[[("site", "x")], [], [("site", "x")], []])
    rows = [
        {"image_id": i, "batch": "b", "split": s, "location": i, "gold": s != "unlabelled"}
        for i, s in (("c", "unlabelled"), ("a", "train"), ("b", "test"))
    ]
    splits = schema.table("splits").from_rows(rows)
    assert drift.reference_images(images, splits, DriftConfig()) == ["a"]
    wide = DriftConfig(reference="split = 'test' OR (NOT gold AND attributes['site'] = 'x')")
    assert drift.reference_images(images, splits, wide) == ["b", "c"]
    with pytest.raises(ConfigError, match=r"drift\.reference"):
        drift.reference_images(images, splits, DriftConfig(reference="splt = 'train'"))


@pytest.mark.parametrize("reference", [[], ["i0000"], ["unknown"]])
def test_without_a_reference_every_test_says_so(reference: list[str]) -> None:
    images, ids = two_sides(2, 0)
    vectors = unit(np.ones((2, 3)))
    found = drift.test_batch("new", images, quality_rows(ids), reference, CONFIG, encoder="e", ids=ids, vectors=vectors)
    assert found.num_rows == 3
    for row in found.to_pylist():
        assert row["p_value"] is None and not row["drifted"] and row["note"]


def test_empty_and_equal_inputs() -> None:
    empty = schema.table("images").empty()
    nothing = drift.test_batch("new", empty, schema.table("quality").empty(), [], CONFIG, encoder="e", ids=[],
                               vectors=np.zeros((0, 2), np.float32), slices={"s": []})  # fmt: skip
    assert nothing.column("p_value").null_count == nothing.num_rows == 4
    images, ids = two_sides(5, 25)
    same = drift.test_batch(
        "new", images, quality_rows(ids), ids, CONFIG, encoder="e", ids=ids, vectors=unit(np.ones((30, 2)))
    )
    assert not any(same.column("drifted").to_pylist()) and same.column("p_value").null_count == 0


def test_the_same_inputs_give_the_same_table() -> None:
    images, ids = two_sides(30, 40)
    vectors = unit(np.random.default_rng(0).normal(size=(70, 4)))
    first, second = (
        drift.test_batch("new", images, quality_rows(ids), ids, CONFIG, encoder="e", ids=ids, vectors=vectors)
        for _ in range(2)
    )
    assert first.equals(second)
    assert set(first.column("test").to_pylist()) == {"embedding_mmd", "embedding_novelty", "appearance_novelty"}


def test_large_sides_are_thinned_by_whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "MAX_VECTORS", 9)
    owner = np.repeat(np.arange(10), 2)
    kept = thinned(owner, np.arange(10) < 2)
    assert sorted(set(owner[kept].tolist())) == [0, 1, 2, 3, 4, 5] and len(kept) == 12


# -- real photographs -----------------------------------------------------------------------------


@pytest.mark.weights
@pytest.mark.slow
def test_other_sites_drift_and_the_held_out_part_of_the_same_site_does_not() -> None:
    from pipeline import encode, quality
    from pipeline.config import find_project
    from pipeline.sources import open_source

    project = find_project("trees")
    config = project.config
    source = open_source(project.source_uri)
    batches = ("2026-06-01-yell", "2026-07-01-yell", "2026-08-01-osbs", "2026-08-15-soap")
    images = pa.concat_tables([collect_images(source, b, config.source)[0] for b in batches])
    measured = quality.flag(quality.QualityWorker()(images), config.curation)
    vectors = encode.EncodeWorker(config)(images)
    windows = vectors.filter(pa.array(vectors.column("patch").to_numpy() > 0))
    matrix = np.stack(windows.column("vector").to_numpy(zero_copy_only=False))
    in_first = pa.array(np.array(images.column("batch").to_pylist()) == batches[0])
    reference = images.filter(in_first).column("image_id").to_pylist()
    flagged = {}
    for batch in batches[1:]:
        found = drift.test_batch(
            batch, images, measured, reference, config.drift, encoder="e",
            ids=windows.column("image_id").to_pylist(), vectors=matrix,
        )  # fmt: skip
        flagged[batch] = [r["test"] for r in found.to_pylist() if r["drifted"] and r["p_value"] < 0.01]
    assert flagged[batches[1]] == []
    assert "embedding_novelty" in flagged[batches[2]]
    assert "appearance_novelty" in flagged[batches[3]]
