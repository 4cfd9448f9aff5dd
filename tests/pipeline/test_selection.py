from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from pipeline import schema
from pipeline.config import SelectConfig
from pipeline.selection import facility_location, k_center, nearest_distance, propose
from pipeline.selection.signals import rarity, uncertainty
from tests.pipeline.curated_rows import image_rows, unit


def splits_of(gold: dict[str, bool]):
    rows = [
        {"image_id": i, "batch": "b", "split": "train" if g else "unlabelled", "location": i, "gold": g}
        for i, g in gold.items()
    ]
    return schema.table("splits").from_rows(rows)


def brute_force(points: np.ndarray, centres: np.ndarray, n: int) -> tuple[list[int], list[float]]:
    chosen, gains, known = [], [], list(centres)
    for _ in range(min(n, len(points))):
        apart = cdist(points, np.array(known)).min(axis=1)
        apart[chosen] = -1
        best = int(np.argmax(apart))
        chosen.append(best)
        gains.append(apart[best])
        known.append(points[best])
    return chosen, gains


@given(st.integers(1, 30), st.integers(1, 10), st.integers(0, 35), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_k_center_is_that_of_brute_force(m: int, labelled: int, n: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    points, centres = generator.normal(size=(m, 4)), generator.normal(size=(labelled, 4))
    chosen, gains = k_center(points, centres, n)
    expected, expected_gains = brute_force(points, centres, n)
    assert chosen == expected
    np.testing.assert_allclose(gains, expected_gains, atol=1e-6)
    assert all(a >= b - 1e-6 for a, b in pairwise(gains))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_nearest_distance_does_not_depend_on_blocks(n: int, m: int, block: int) -> None:
    generator = np.random.default_rng(n * 41 + m)
    points, others = generator.normal(size=(n, 3)), generator.normal(size=(m, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.selection.criteria._BLOCK", block)
        np.testing.assert_allclose(nearest_distance(points, others), cdist(points, others).min(axis=1), atol=1e-7)


def test_the_farthest_from_what_is_labelled_comes_first() -> None:
    ids = ["gold", "near", "far", "middle"]
    vectors = unit([[1, 0], [1, 0.1], [-1, 0], [0, 1]])
    found = propose(
        image_rows(ids), splits_of({"gold": True, "near": False, "far": False}), ids, vectors, SelectConfig(budget=2)
    )
    assert found.column("image_id").to_pylist() == ["far", "middle"]
    assert found.column("rank").to_pylist() == [1, 2]
    np.testing.assert_allclose(found.column("gain").to_numpy(), [1.0, np.sqrt(2) / 2], rtol=1e-6)


def test_without_labels_the_start_does_not_depend_on_the_order() -> None:
    ids = [f"i{i}" for i in range(12)]
    vectors = unit(np.random.default_rng(0).normal(size=(12, 3)))
    one = propose(image_rows(ids), splits_of(dict.fromkeys(ids, False)), ids, vectors, SelectConfig(budget=5))
    other = propose(image_rows(ids[::-1]), splits_of({}), ids[::-1], vectors[::-1], SelectConfig(budget=5))
    assert one.equals(other) and one.column("gain")[0].as_py() == 1.0


def test_equal_images_are_each_proposed_once_and_ties_go_to_the_smaller_id() -> None:
    ids = ["c", "a", "b", "gold"]
    vectors = unit([[0, 1], [0, 1], [0, 1], [1, 0]])
    found = propose(image_rows(ids), splits_of({"gold": True}), ids, vectors, SelectConfig(budget=9))
    assert found.column("image_id").to_pylist() == ["a", "b", "c"]
    np.testing.assert_allclose(found.column("gain").to_numpy(), [1, 0, 0], atol=1e-6)


def test_what_is_left_out_is_not_proposed_however_odd_it_is() -> None:
    ids = ["gold", "near", "black", "middle"]
    vectors = unit([[1, 0], [1, 0.1], [-1, 0], [0, 1]])
    splits = splits_of({"gold": True, "near": False, "black": False, "middle": False})
    for left_out, first in (((), "black"), (["black", "gold"], "middle")):
        found = propose(image_rows(ids), splits, ids, vectors, SelectConfig(budget=9), left_out=left_out)
        assert found.column("image_id").to_pylist()[0] == first and found.num_rows == 3 - bool(left_out)


@pytest.mark.parametrize(("ids", "n"), [([], 5), (["gold"], 5), (["gold", "a"], 0)])
def test_nothing_to_propose_gives_an_empty_table(ids: list[str], n: int) -> None:
    vectors = unit(np.ones((len(ids), 2))) if ids else np.zeros((0, 2), np.float32)
    assert propose(image_rows(ids), splits_of({"gold": True}), ids, vectors, SelectConfig(budget=n)).num_rows == 0


@given(st.integers(1, 40), st.integers(0, 6), st.integers(1, 45), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_facility_location_is_that_of_brute_force(m: int, labelled: int, n: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    points, known = unit(generator.normal(size=(m, 5))), unit(generator.normal(size=(labelled, 5)).reshape(-1, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.selection.criteria._HELD", int(generator.integers(2)) * 10**6)
        patch.setattr("pipeline.selection.criteria._BLOCK", int(generator.integers(1, 9)))
        chosen, gains = facility_location(points, points, known, n)
    similar = (points.astype(np.float64) @ points.T + 1) / 2
    covered = ((known.astype(np.float64) @ points.T + 1) / 2).max(axis=0, initial=0)
    assert len(set(chosen)) == min(m, n)
    for step, (best, gain) in enumerate(zip(chosen, gains, strict=True)):
        expected = np.maximum(similar - covered, 0).sum(axis=1)
        assert gain == pytest.approx(expected[best], abs=1e-4)
        assert gain >= np.delete(expected, chosen[:step]).max() - 1e-4  # of equal ones, either
        covered = np.maximum(covered, similar[best])


def answers(*rows: tuple[str, str, float]) -> pa.Table:
    table = pa.table({"image_id": [r[0] for r in rows], "class_name": [r[1] for r in rows],
                      "score": pa.array([r[2] for r in rows], pa.float32())})  # fmt: skip
    return table.append_column("producer", pa.array(["crowns"] * len(rows)))


def test_rarity_by_hand() -> None:
    said = answers(("a", "cat", 0.9), ("a", "cat", 0.5), ("a", "yak", 0.25), ("b", "cat", 0.6), ("c", "yak", 0.5))
    cat, yak = (1 - np.log1p(m) / np.log1p(10) for m in (0.9 + 0.6, 0.25 + 0.5))
    expected = [max(0.9 * cat, 0.25 * yak), 0.0, 0.5 * yak]
    np.testing.assert_allclose(rarity(said, ["a", "nothing", "c"], 10), expected, rtol=1e-6)


def test_uncertainty_by_hand() -> None:
    said = answers(("a", "cat", 0.5), ("a", "cat", 1.0), ("b", "cat", 0.9))
    bits = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1))
    np.testing.assert_allclose(uncertainty(said, ["b", "a", "none"]), [bits, 0.5, 0], atol=1e-6)
    ranked = [("a", "x", 0.6, 1), ("a", "y", 0.3, 2), ("b", "x", 0.9, 1)]
    tags = pa.table({"image_id": [r[0] for r in ranked], "class_name": [r[1] for r in ranked],
                     "probability": [r[2] for r in ranked], "rank": [r[3] for r in ranked],
                     "producer": ["p"] * 3})  # fmt: skip
    np.testing.assert_allclose(uncertainty(tags, ["a", "b"]), [0.7, 0.1], atol=1e-6)


@given(st.integers(2, 25), st.integers(0, 6), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_the_mix_is_the_best_sum_at_every_step(m: int, gold: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    ids = [f"g{i}" for i in range(gold)] + [f"p{i:02d}" for i in range(m)]
    vectors = unit(generator.normal(size=(len(ids), 4)))
    said = answers(*((i, "ab"[generator.integers(2)], float(generator.uniform())) for i in ids for _ in range(2)))
    slices = pa.table({"slice": ["s"] * 4 + ["t"] * 3, "image_id": generator.choice(ids, 7).tolist()})
    slices = slices.group_by(["slice", "image_id"]).aggregate([])
    weights = dict(zip(NAMES, generator.integers(0, 4, 5).tolist(), strict=True)) | {"rarity": 1}
    config = SelectConfig(budget=m, slice_target=3, **weights)
    found = propose(image_rows(ids), splits_of({i: i[0] == "g" for i in ids}), ids, vectors, config, said, slices)
    weights = {name: getattr(config, name) for name in NAMES if getattr(config, name)}
    chosen = found.column("image_id").to_pylist()
    assert sorted(chosen) == ids[gold:]
    first: dict[str, float] = {}
    for step, image in enumerate(chosen):
        values = naive(ids, gold, vectors, said, slices, chosen[:step])
        first = first or {name: values[name].max() for name in NAMES}
        parts = {n: values[n] / first[n] if first[n] > 1e-9 else 0 * values[n] for n in weights}
        total = sum(w * parts[n] for n, w in weights.items())
        at = ids.index(image) - gold
        left = [i - gold for i in range(gold, len(ids)) if ids[i] not in chosen[:step]]
        assert total[at] >= max(total[left]) - 1e-4
        row = found.slice(step, 1).to_pylist()[0]
        assert row["gain"] == pytest.approx(total[at] / sum(weights.values()), abs=1e-4)
        assert all(row[n] == pytest.approx(parts[n][at], abs=1e-4) for n in weights)
        assert all(row[n] is None for n in NAMES if n not in weights)


NAMES = ("diversity", "representativeness", "uncertainty", "rarity", "slice_deficit")


def naive(ids, gold, vectors, said, slices, chosen):  # type: ignore[no-untyped-def]
    """Every criterion for all of the pool, from its definition."""
    known = [i for i, name in enumerate(ids) if name[0] == "g" or name in chosen]
    pool = range(gold, len(ids))
    wide = vectors.astype(np.float64)
    similar = (wide @ wide.T + 1) / 2
    covered = similar[known].max(axis=0, initial=0)
    deficits = np.zeros(len(pool))
    for name in ("s", "t"):
        members = {r["image_id"] for r in slices.to_pylist() if r["slice"] == name}
        target = min(3, len(members))
        lacking = max(0, target - sum(ids[i] in members for i in known)) / target if members else 0
        deficits = np.maximum(deficits, [lacking * (ids[i] in members) for i in pool])
    return {
        "diversity": cdist(wide[pool], wide[known]).min(axis=1) if known else np.full(len(pool), 2.0),
        "representativeness": np.maximum(similar[pool] - covered, 0).sum(axis=1),
        "uncertainty": uncertainty(said, ids[gold:]),
        "rarity": rarity(said, ids[gold:], len(ids)),
        "slice_deficit": deficits,
    }


@pytest.mark.peers
@settings(max_examples=30, deadline=None)
@given(st.integers(70, 400), st.integers(8, 40), st.integers(1, 60), st.integers(0, 999))
def test_facility_location_chooses_the_set_of_apricot(n: int, d: int, budget: int, seed: int) -> None:
    from apricot import FacilityLocationSelection

    points = unit(np.random.default_rng(seed).normal(size=(n, d)))
    similar = np.clip((points.astype(np.float64) @ points.T + 1) / 2, 0, None)  # it refuses -1e-9
    theirs = FacilityLocationSelection(budget, metric="precomputed", optimizer="lazy").fit(similar)
    chosen, gains = facility_location(points, points, points[:0], budget)
    same = next((k for k, pair in enumerate(zip(chosen, theirs.ranking, strict=True)) if len({*pair}) > 1), budget)
    np.testing.assert_allclose(gains[:same], theirs.gains[:same], rtol=1e-4)
    if same < budget:  # two images are worth the same, and either may be taken
        covered = similar[chosen[:same]].max(axis=0, initial=0)
        ours, other = (np.maximum(similar[i] - covered, 0).sum() for i in (chosen[same], theirs.ranking[same]))
        assert ours == pytest.approx(other, rel=1e-5)
