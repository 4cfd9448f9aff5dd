"""Pairs that are found without looking at all, against looking at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.duplicates import near_hashes, near_in_cells, near_vectors
from pipeline.duplicates.vectors import Screen
from tests.pipeline.curated_rows import unit


def tuples(blocks) -> list[tuple[int, int]]:
    return [tuple(p) for part in blocks for p in part.tolist()]


@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.integers(0, 20), st.integers(0, 3), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_hash_pairs_are_those_of_a_double_loop(values: list[int], limit: int, more: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    flips = [sum(1 << int(b) for b in draw.choice(64, limit + draw.integers(2), False)) for _ in values]
    hashes = values + [v ^ f for v, f in zip(values, flips, strict=True)]
    n = len(hashes)
    expected = [(i, j) for i in range(n) for j in range(i + 1, n) if (hashes[i] ^ hashes[j]).bit_count() <= limit]
    for chunks in (0, limit + 1 + more, None):
        assert sorted(tuples(near_hashes(np.array(hashes, np.uint64), limit, chunks))) == expected


def test_many_hashes_are_not_all_compared() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, 50_000).astype(np.uint64)
    hashes[:100] = hashes[100:200] ^ np.uint64(0b1011)
    assert sorted(tuples(near_hashes(hashes, 4))) == [(i, i + 100) for i in range(100)]


def alike(n: int, d: int, seed: int, spread: float) -> np.ndarray:
    """Unit vectors around few centres, so that many pairs are near any limit."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(1 + n // 5, d))
    return unit(centres[draw.integers(0, len(centres), n)] + spread * draw.normal(size=(n, d)))


@given(
    st.integers(0, 60),
    st.sampled_from([1, 3, 40, 130]),
    st.floats(0, 1.2),
    st.floats(0, 1),
    st.integers(0, 99),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_vector_pairs_are_those_of_a_double_loop(
    n: int, d: int, limit: float, spread: float, seed: int, data: st.DataObject
) -> None:
    vectors = alike(n, d, seed, spread)
    fresh = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1)))) if n else [], np.int64)
    apart = {(i, j): 1 - vectors[i].astype(float) @ vectors[j].astype(float) for i in range(n) for j in range(i + 1, n)}
    # The rounding of two ways to add up doubles.
    sure = {p for p, a in apart.items() if a < limit - 1e-12}
    maybe = {p for p, a in apart.items() if a < limit + 1e-12}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.duplicates.vectors.ROWS", 7)
        patch.setattr("pipeline.duplicates.vectors.COLUMNS", 11)
        found = tuples(near_vectors(vectors, limit))
        new = tuples(near_vectors(vectors, limit, fresh))
    assert sure <= set(found) <= maybe and len(set(found)) == len(found)
    assert set(new) == {p for p in found if {*p} & {*fresh.tolist()}} and len(set(new)) == len(new)


@pytest.mark.peers
@given(st.integers(2, 200), st.sampled_from([2, 16, 70]), st.floats(0.01, 0.5), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_pairs_are_those_of_faiss(n: int, d: int, limit: float, spread: float, seed: int) -> None:
    import faiss

    vectors = alike(n, d, seed, spread)
    index = faiss.IndexFlatIP(d)
    index.add(vectors)
    starts, _, others = index.range_search(vectors, 1 - limit)
    rows = np.repeat(np.arange(n), np.diff(starts.astype(np.int64)))
    theirs = {(int(i), int(j)) for i, j in zip(rows, others, strict=True) if i < j}
    odd = theirs ^ set(tuples(near_vectors(vectors, limit)))
    exact = vectors.astype(float)
    # It rounds to float32.
    assert all(abs(1 - exact[i] @ exact[j] - limit) < 1e-6 for i, j in odd)

    hashes = np.random.default_rng(seed).integers(0, 2**63, n).astype(np.uint64)
    hashes[1::2] = hashes[: len(hashes[1::2])] ^ np.uint64(0b101)
    packed = hashes.view(np.uint8).reshape(-1, 8)
    binary = faiss.IndexBinaryFlat(64)
    binary.add(packed)
    starts, _, others = binary.range_search(packed, 5)  # below 5
    rows = np.repeat(np.arange(n), np.diff(starts.astype(np.int64)))
    theirs = {(int(i), int(j)) for i, j in zip(rows, others, strict=True) if i < j}
    assert theirs == set(tuples(near_hashes(hashes, 4)))


def test_vectors_exactly_at_the_limit_are_decided_in_double_precision() -> None:
    """Pairs within float32 rounding of the limit, on either side of it."""
    angle = np.arccos(0.95) + np.linspace(-3e-7, 3e-7, 101)
    vectors = np.zeros((102, 300), np.float32)
    vectors[0, 0] = 1
    vectors[1:, 0], vectors[1:, 7] = np.cos(angle), np.sin(angle)
    near = 1 - vectors[1:].astype(float) @ vectors[0].astype(float) < 0.05
    assert 0 < near.sum() < 101
    found = {j for i, j in tuples(near_vectors(vectors, 0.05)) if i == 0}
    assert found == set(np.flatnonzero(near) + 1)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_the_screen_lets_no_near_pair_through_its_fingers(decay: float) -> None:
    """The bound holds for every pair, whatever the spectrum."""
    draw = np.random.default_rng(0)
    vectors = unit(draw.normal(size=(500, 400)) / np.arange(1, 401) ** decay)
    screen = Screen(vectors, 0.05, np.arange(500))
    bound = screen.screened.astype(float) @ screen.screened.astype(float).T
    assert (bound >= vectors.astype(float) @ vectors.astype(float).T - 1e-6).all()


def test_screening_is_by_few_numbers() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(3000, 512)))
    assert Screen(vectors, 0.05, np.arange(3000)).screened.shape[1] <= 97


@given(st.integers(2, 200), st.integers(0, 99), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_cells_find_only_what_is_near_and_all_where_every_cell_is_visited(n: int, seed: int, cells: int) -> None:
    vectors = alike(n, 8, seed, 0.2)
    exact = set(tuples(near_vectors(vectors, 0.05)))
    fresh = np.flatnonzero(np.random.default_rng(seed).random(n) < 0.5)
    if not len(fresh):
        return
    recall, found = near_in_cells(vectors, 0.05, 0.9, fresh, cells)
    some = set(tuples(found))
    wanted = {p for p in exact if {*p} & {*fresh.tolist()}}
    assert some <= wanted
    if recall.probes >= min(cells, n):
        assert some == wanted
    assert 0 <= recall.found <= recall.pairs and recall.low <= max(recall.found, 0) / max(recall.pairs, 1)


def test_the_recall_of_cells_is_the_one_that_is_measured() -> None:
    draw = np.random.default_rng(1)
    base = draw.normal(size=(4000, 64))
    vectors = unit(np.concatenate([base, base + 0.2 * draw.normal(size=base.shape)]))
    exact = set(tuples(near_vectors(vectors, 0.05)))
    recall, found = near_in_cells(vectors, 0.05, 0.95)
    share = len(set(tuples(found)) & exact) / len(exact)
    assert share >= recall.low and share >= 0.9 and recall.probes <= 16
