"""SliceLine against an enumeration of every slice, and against the package `sliceline`."""

from __future__ import annotations

import warnings
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.slices.search import Slice, top_slices

EPS = 1e-9


def every_slice(codes: np.ndarray, errors: np.ndarray, alpha: float, support: int, most: int) -> dict[tuple, float]:
    """Score of every slice of score above 0, by enumeration."""
    found = {}
    for size in range(1, most + 1):
        for columns in combinations(range(codes.shape[1]), size):
            for values in product(*(sorted(set(codes[:, c]) - {-1}) for c in columns)):
                rows = (codes[:, columns] == values).all(axis=1)
                if rows.sum() < max(1, support):
                    continue
                worse = errors[rows].mean() / errors.mean() - 1
                score = alpha * worse - (1 - alpha) * (len(errors) / rows.sum() - 1)
                if score > EPS:
                    found[tuple(zip(columns, map(int, values), strict=True))] = score
    return found


@st.composite
def tables(draw: st.DrawFn, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    n, d, values = draw(st.integers(least, 60)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low = draw(st.sampled_from([0, -1]))
    codes = generator.integers(low, values, (n, d))
    kind = draw(st.sampled_from(["binary", "real", "sparse", "few"]))
    errors = {
        "binary": lambda: (generator.random(n) < 0.3).astype(float),
        "real": lambda: generator.random(n),
        "sparse": lambda: generator.exponential(size=n) * (generator.random(n) < 0.3),
        "few": lambda: generator.integers(0, 4, n) / 3,
    }[kind]()
    return codes, errors + (0.5 * (codes[:, 0] == 0) if draw(st.booleans()) else 0)


def check(found: list[Slice], expected: dict[tuple, float], k: int) -> None:
    ranked = sorted(expected.values(), reverse=True)
    floor = ranked[k - 1] if len(ranked) >= k else 0.0
    assert [s.score for s in found] == pytest.approx([v for v in ranked if v >= floor - EPS], abs=1e-9)
    assert {s.predicates for s in found} == {p for p, v in expected.items() if v >= floor - EPS}


@given(tables(), st.integers(1, 12), st.sampled_from([0.3, 0.6, 0.95, 1.0]), st.integers(0, 12), st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_the_best_are_those_of_an_enumeration(world, k: int, alpha: float, support: int, most: int) -> None:
    codes, errors = world
    found = top_slices(codes, errors, k=k, alpha=alpha, min_support=support, max_predicates=most)
    expected = every_slice(codes, errors, alpha, support, most) if errors.any() else {}
    check(found, expected, k)
    for s in found:
        rows = (codes[:, [c for c, _ in s.predicates]] == [v for _, v in s.predicates]).all(axis=1)
        assert s.size == rows.sum() and s.largest == errors[rows].max()
        assert s.error == pytest.approx(errors[rows].sum())


@given(tables(25), st.integers(1, 6), st.sampled_from([0.6, 0.95]), st.integers(1, 6), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_the_best_are_those_of_the_package_sliceline(world, k: int, alpha: float, support: int, most: int) -> None:
    codes, errors = np.where(world[0] < 0, world[0].max() + 1, world[0]), world[1]
    # The package prunes wrongly where there are more predicates than rows (here at most 25), and while it
    # knows fewer than k slices: see below.
    single = every_slice(codes, errors, alpha, support, 1) if errors.any() else {}
    assume(single)
    k = min(k, len(single))
    found = top_slices(codes, errors, k=k, alpha=alpha, min_support=support, max_predicates=most)
    theirs = sliceline(codes, errors, k=k, alpha=alpha, min_sup=support, max_l=most)
    ours = {s.predicates: s.score for s in found}
    # Of slices that tie with the k-th it leaves out those whose bound is that score, too.
    floor = found[k - 1].score
    assert {p for p, v in ours.items() if v > floor + EPS} <= set(theirs) <= set(ours)
    for predicates_, score in theirs.items():
        assert ours[predicates_] == pytest.approx(score, rel=1e-9)


def sliceline(codes: np.ndarray, errors: np.ndarray, **options) -> dict[tuple, float]:
    from sliceline.slicefinder import Slicefinder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it divides by the largest error of slices without errors
        finder = Slicefinder(verbose=False, **options).fit(codes, errors)
    return {
        tuple((c, int(v)) for c, v in enumerate(row) if v is not None): statistics["slice_score"]
        for row, statistics in zip(finder.top_slices_, finder.top_slices_statistics_, strict=True)
    }


def test_a_planted_conjunction_is_found() -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 6, (5000, 8))
    planted = (codes[:, 2] == 1) & (codes[:, 5] == 3)
    errors = (generator.random(5000) < np.where(planted, 0.7, 0.1)).astype(float)
    best = top_slices(codes, errors, min_support=50)[0]
    assert best.predicates == ((2, 1), (5, 3)) and best.size == planted.sum() and best.error == errors[planted].sum()


def test_order_of_rows_and_names_of_values_change_nothing() -> None:
    generator = np.random.default_rng(1)
    codes, errors = generator.integers(0, 4, (400, 5)), generator.integers(0, 3, 400) / 2
    order = generator.permutation(400)
    first = top_slices(codes, errors, k=5)
    assert top_slices(codes[order], errors[order], k=5) == first
    renamed = top_slices(codes.astype(np.int16) * 1000 + 7, errors, k=5)
    assert [tuple((c, v // 1000) for c, v in s.predicates) for s in renamed] == [s.predicates for s in first]


@pytest.mark.parametrize("errors", [np.zeros(4), np.array([])])
def test_without_errors_there_are_no_slices(errors: np.ndarray) -> None:
    assert top_slices(np.zeros((len(errors), 2), int), errors) == []


def test_no_columns_and_missing_values_give_no_slices() -> None:
    assert top_slices(np.zeros((3, 0), int), np.ones(3)) == []
    assert top_slices(np.full((30, 2), -1), np.arange(30.0)) == []


@pytest.mark.parametrize(
    ("errors", "options"),
    [
        ([1, -1.0], {}),
        ([1, np.nan], {}),
        ([1, np.inf], {}),
        ([1, 0, 0], {}),
        ([1, 0], {"alpha": 0}),
        ([1, 0], {"k": 0}),
        ([1, 0], {"max_predicates": 0}),
        ([1, 0], {"min_support": -1}),
    ],
)
def test_what_cannot_be_searched_is_refused(errors: list[float], options: dict) -> None:
    with pytest.raises(DataError):
        top_slices(np.zeros((2, 1), int), np.array(errors), **options)


# -- where the package is wrong (0.3.0), with the smallest examples found --------------------------


@pytest.mark.parametrize(
    ("why", "codes", "errors", "k", "alpha", "missed"),
    [
        # Its bound takes the number of predicates for that of rows: too low where there are more predicates.
        ("more predicates than rows", [[2, 0], [2, 1], [0, 0]], [1, 0, 0], 2, 0.6, ((0, 2), (1, 0))),
        # It prunes at the worst slice known even while fewer than k are known.
        ("fewer than k known", [[0, 0], [0, 0], [1, 0]], [0, 0, 1], 3, 0.95, ((0, 1), (1, 0))),
    ],
)
def test_the_package_misses_slices(why: str, codes: list, errors: list, k: int, alpha: float, missed: tuple) -> None:
    x, e = np.array(codes), np.array(errors, float)
    assert missed in every_slice(x, e, alpha, 1, 2)
    assert missed in {s.predicates for s in top_slices(x, e, k=k, alpha=alpha, min_support=1)}
    assert missed not in sliceline(x, e, k=k, alpha=alpha, min_sup=1, max_l=2), why


def test_the_package_misses_slices_of_wide_tables() -> None:
    """It numbers slices by floats, which 17 columns of 10 values overflow; slices that collide are dropped."""
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 9, (1500, 18))
    planted = (codes[:, 0] == 1) & (codes[:, 17] == 2)
    errors = np.where(planted, 1.0, generator.random(1500) < 0.05)
    assert top_slices(codes, errors, k=1, max_predicates=2)[0].predicates == ((0, 1), (17, 2))
    assert ((0, 1), (17, 2)) not in sliceline(codes, errors, k=1, alpha=0.95, min_sup=10, max_l=2)
