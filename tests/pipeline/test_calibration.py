from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss

from pipeline import calibration

answers = st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=80)


def arrays(rows: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([r[0] / 20 for r in rows]), np.array([r[1] for r in rows], bool)


@settings(max_examples=80, deadline=None)
@given(answers)
def test_isotonic_is_scikit_learns(rows: list[tuple[int, bool]]) -> None:
    score, right = arrays(rows)
    ours = calibration.fit("isotonic", score, right)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(score, right)
    at = np.linspace(0, 1, 41)
    assert ours(at) == pytest.approx(theirs.predict(at), abs=1e-9)
    assert (np.diff(ours.x) > 0).all() and (np.diff(ours.y) >= -1e-12).all()


def test_temperature_finds_the_one_that_was_used() -> None:
    generator = np.random.default_rng(0)
    logit = generator.normal(0, 3, 40_000)
    right = generator.random(40_000) < 1 / (1 + np.exp(-logit / 2.5))
    score = 1 / (1 + np.exp(-logit))
    learnt = calibration.fit("temperature", score, right)
    assert learnt(np.array([0.9])) == pytest.approx(1 / (1 + np.exp(-np.log(9) / 2.5)), abs=0.01)
    assert calibration.expected_error(learnt(score), right) < 0.01 < calibration.expected_error(score, right)


def test_brier_and_expected_error_against_their_definitions() -> None:
    generator = np.random.default_rng(1)
    said, right = generator.random(300), generator.random(300) < 0.5
    assert calibration.brier(said, right) == pytest.approx(brier_score_loss(right, said))
    bins = [(said >= k / 10) & (said < (k + 1) / 10) for k in range(10)]
    gaps = [b.mean() * abs(said[b].mean() - right[b].mean()) for b in bins if b.any()]
    assert calibration.expected_error(said, right) == pytest.approx(sum(gaps))


@settings(max_examples=40, deadline=None)
@given(answers)
def test_reliability_holds_every_answer_once(rows: list[tuple[int, bool]]) -> None:
    score, right = arrays(rows)
    points = calibration.reliability(score, right, 0.9)
    assert all(low - 1e-9 <= y <= high + 1e-9 and 0 <= x <= 1 for x, y, low, high in points)
    assert [p[0] for p in points] == sorted(p[0] for p in points)
    assert len(points) == len(np.unique(np.minimum((score * 10).astype(int), 9)))


def test_no_answer_is_scored_by_a_map_that_saw_it() -> None:
    """With one answer a fold, each is scored from the others alone."""
    score, right = np.array([0.2, 0.2, 0.2]), np.array([True, False, False])
    said = calibration.out_of_fold("isotonic", score, right, np.arange(3))
    assert said == pytest.approx([0.0, 0.5, 0.5])


def test_nothing_to_learn_from_leaves_scores_alone() -> None:
    nothing = np.zeros(0)
    for method in calibration.METHODS:
        assert calibration.fit(method, nothing, nothing.astype(bool))(np.array([0.3])) == pytest.approx([0.3])
