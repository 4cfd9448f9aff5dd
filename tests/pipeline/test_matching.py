from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import boxes, matching

CORNERS = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 8), st.integers(1, 8))
ROWS = st.lists(st.tuples(st.integers(0, 2), CORNERS, st.integers(0, 5)), max_size=25)


def arrays(rows: list[tuple[int, tuple[int, int, int, int], int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    group = np.array([r[0] for r in rows], np.int64)
    return group, boxes.from_xywh([r[1] for r in rows]), np.array([r[2] / 5 for r in rows])


@settings(max_examples=60, deadline=None)
@given(ROWS, ROWS, st.sampled_from([0.1, 0.5, 0.9]), st.booleans())
def test_pairs_are_those_of_the_full_matrix(left: list, right: list, least: float, covered: bool) -> None:
    (ga, a, _), (gb, b, _) = arrays(left), arrays(right)
    matrix = boxes.coverage(a, b) if covered else boxes.iou(a, b)
    expected = np.argwhere((matrix >= least) & (ga[:, None] == gb[None, :]))
    i, j, overlap = matching.pairs(ga, a, gb, b, least, np.full(len(gb), covered))
    assert sorted(zip(i, j, strict=True)) == sorted(map(tuple, expected))
    assert np.allclose(overlap, matrix[i, j])


def test_pairs_do_not_depend_on_the_chunk_size(monkeypatch) -> None:
    generator = np.random.default_rng(0)
    group = np.sort(generator.integers(0, 5, 200))
    corner = generator.uniform(0, 50, (200, 2))
    some = np.concatenate([corner, corner + 20], axis=1)
    whole = matching.pairs(group, some, group, some, 0.3)
    monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", 7)
    for a, b in zip(whole, matching.pairs(group, some, group, some, 0.3), strict=True):
        assert np.array_equal(a, b)


@settings(max_examples=80, deadline=None)
@given(ROWS, st.sampled_from([0.0, 0.3, 0.5]))
def test_suppress_keeps_what_greedy_nms_keeps_in_each_group(rows: list, threshold: float) -> None:
    group, some, scores = arrays(rows)
    leader = matching.suppress(group, some, np.argsort(-scores, kind="stable"), threshold)
    kept = np.flatnonzero(leader == np.arange(len(rows)))
    members = [np.flatnonzero(group == g) for g in range(3)]
    expected = [m[boxes.nms(some[m], scores[m], threshold)] for m in members]
    assert kept.tolist() == sorted(np.concatenate(expected).tolist())
    assert np.array_equal(leader[leader], leader)
    assert (group[leader] == group).all() and (scores[leader] >= scores).all()


def test_a_duplicate_is_not_a_second_find_and_an_ignore_region_takes_many() -> None:
    seen = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 55, 55], [56, 56, 60, 60]], float)
    truth = np.array([[0, 0, 10, 10], [50, 50, 100, 100]], float)
    group = np.zeros(4, np.int64)
    found = matching.match(
        group, seen, np.array([0.5, 0.9, 0.8, 0.7]), group[:2], truth, np.array([False, True]), np.array([0.5, 0.95])
    )
    assert found.found_by.tolist() == [[-1, 0, 1, 1], [0, -1, 1, 1]]
    assert found.right.tolist() == [[False, True, False, False], [True, False, False, False]]
    assert found.rank.tolist() == [3, 0, 1, 2]


def test_empty_inputs() -> None:
    none, no_boxes = np.zeros(0, np.int64), np.zeros((0, 4))
    found = matching.match(none, no_boxes, np.zeros(0), none, no_boxes, np.zeros(0, bool), np.array([0.5]))
    assert found.found_by.shape == (1, 0) and found.found.shape == (1, 0)
    assert matching.suppress(none, no_boxes, none, 0.5).shape == (0,)
