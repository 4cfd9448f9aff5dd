from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import power_divergence

from pipeline.slices import regions
from pipeline.slices.regions import evidence, find_regions


@given(st.integers(2, 40), st.integers(2, 200), st.integers(0, 40), st.integers(1, 200))
def test_evidence_is_half_the_g_statistic_of_the_two_by_two_table(
    wrong: int, size: int, others: int, rest: int
) -> None:
    wrong, others = min(wrong, size), min(others, rest)
    value = float(evidence(np.array([wrong]), np.array([size]), wrong + others, size + rest)[0])
    if wrong / size <= others / rest:
        assert value == -np.inf
        return
    table = np.array([[wrong, size - wrong], [others, rest - others]], float)
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    seen = expected > 0
    g = power_divergence(table[seen], expected[seen], lambda_="log-likelihood").statistic
    assert value == pytest.approx(g / 2, abs=1e-8)


def planted(images: int = 3000, share: float = 0.02) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(images, 20))
    inside = generator.random(images) < share
    vectors[inside] = 2.0 + 0.3 * vectors[inside]
    return vectors, (generator.random(images) < np.where(inside, 0.7, 0.05)).astype(float), inside


def test_a_rare_region_is_found_first_and_its_evidence_is_that_of_its_members() -> None:
    vectors, errors, inside = planted()
    found = find_regions(vectors, errors, most=5)
    best = found.found[0]
    chosen = np.zeros(len(errors), bool)
    chosen[best.members] = True
    assert (chosen & inside).sum() > 0.8 * (chosen | inside).sum()
    again = evidence(errors[chosen].sum(keepdims=True), np.array([chosen.sum()]), errors.sum(), len(errors))
    assert best.evidence == pytest.approx(float(again[0]))
    # Asked anew, the same images are inside.
    assert (np.isfinite(found.distances(vectors)[:, 0]) == chosen).mean() > 0.999
    assert [r.evidence for r in found.found] == sorted((r.evidence for r in found.found), reverse=True)


def test_a_weak_region_is_seen_better_once_a_strong_one_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    overlap: dict[str, list[float]] = {"again": [], "once": []}
    for draw in range(3):
        generator = np.random.default_rng(draw)
        vectors = generator.normal(size=(3000, 20))
        vectors[:600] += 4
        weak, angle = np.arange(600, 640), generator.uniform(0, 2 * np.pi, 40)
        vectors[weak] *= 0.3
        vectors[weak, :2] += 2.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        rate = np.repeat([0.7, 0.4, 0.05], [600, 40, 2360])
        errors = (generator.random(3000) < rate).astype(float)
        for how, sure in (("again", 3.0), ("once", np.inf)):
            monkeypatch.setattr(regions, "_SURE", sure)
            found = find_regions(vectors, errors).found
            shares = [len(np.intersect1d(r.members, weak)) / len(np.union1d(r.members, weak)) for r in found]
            overlap[how].append(max(shares))
            assert any(len(np.intersect1d(r.members, np.arange(600))) > 300 for r in found)
    assert np.mean(overlap["again"]) > np.mean(overlap["once"]) + 0.08


def test_scale_and_place_of_the_vectors_change_nothing() -> None:
    vectors, errors, _ = planted()
    one, other = (find_regions(v, errors, most=3) for v in (vectors, 4 * vectors + 1))
    for a, b in zip(one.found, other.found, strict=True):
        assert set(a.members) == set(b.members)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 60), st.sampled_from(["none", "all", "equal", "random", "real"]), st.booleans(), st.integers(0, 99)
)
def test_odd_inputs_give_regions_or_none(images: int, kind: str, same: bool, draw: int) -> None:
    generator = np.random.default_rng(draw)
    vectors = np.ones((images, 6)) if same else generator.normal(size=(images, 6))
    errors = {
        "none": np.zeros(images),
        "all": np.ones(images),
        "equal": np.full(images, 0.5),
        "random": (generator.random(images) < 0.3).astype(float),
        "real": generator.random(images),
    }[kind]
    found = find_regions(vectors, errors, generator.integers(-1, 3, images), most=4, least=5)
    assert len(found.found) <= 4 and found.distances(vectors, np.zeros(images, int)).shape == (images, len(found.found))
    for region in found.found:
        rest = np.setdiff1d(np.arange(images), region.members)
        assert len(region.members) >= 5 and errors[region.members].mean() > errors[rest].mean()
