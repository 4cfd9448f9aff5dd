from __future__ import annotations

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import cohen_kappa_score

from pipeline import agreement, boxes, decisions
from tests.pipeline.decided import decision, table


@given(arrays(np.int64, st.tuples(st.integers(1, 30), st.integers(2, 5)), elements=st.integers(-1, 3)))
@settings(max_examples=200, deadline=None)
def test_alpha_equals_the_reference(answers: np.ndarray) -> None:
    ours = agreement.krippendorff_alpha(answers)
    data = np.where(answers < 0, np.nan, answers.astype(float)).T
    paired = [column[~np.isnan(column)] for column in data.T if (~np.isnan(column)).sum() >= 2]
    values = {v for column in paired for v in column}
    if len(values) < 2:
        assert ours is None
        return
    theirs = krippendorff.alpha(reliability_data=data, level_of_measurement="nominal")
    assert ours == pytest.approx(theirs, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
@settings(max_examples=200, deadline=None)
def test_kappa_equals_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    one, other = np.array(pairs).T
    ours = agreement.cohen_kappa(one, other)
    if len({*one, *other}) == 1:
        assert ours is None
    else:
        assert ours == pytest.approx(cohen_kappa_score(one, other), abs=1e-9)


def test_nothing_to_agree_on() -> None:
    assert agreement.krippendorff_alpha(np.full((3, 2), -1)) is None
    assert agreement.krippendorff_alpha(np.array([[0, -1], [-1, 1]])) is None
    assert agreement.cohen_kappa(np.zeros(0, np.int64), np.zeros(0, np.int64)) is None
    assert agreement.raw_agreement(np.array([[0, -1]])) is None
    assert agreement.measure([]).num_rows == 0
    alone = decisions.standing(table(decision("a", "yes", class_name="cat"), decision("b", "no", "ben")))
    assert agreement.measure(alone).num_rows == 0


def said(answers: dict[str, list[str | None]]) -> list[dict]:
    """Decisions of ann, ben and cal on labels a, b, …: a class, 'no', or None."""
    made = []
    for person, words in answers.items():
        for name, word in zip("abcdefgh", words, strict=False):
            if word is not None:
                more = {} if word == "no" else {"class_name": word, "box": (0.0, 0.0, 10.0, 10.0)}
                kind = "no" if word == "no" else "yes" if word == "cat" else "fix"
                made.append(decision(name, kind, person, asked_class="cat", minute=len(made), **more))
    return decisions.standing(table(*made))


def test_measures_of_all_of_a_class_and_of_each_pair() -> None:
    words = {
        "ann": ["cat", "cat", "no", "dog", "no", "cat"],
        "ben": ["cat", "no", "no", "cat", "no", None],
        "cal": [None, None, "no", "dog", "cat", None],
    }
    rows = agreement.measure(said(words)).to_pylist()
    value = {(r["class_name"], r["reviewers"], r["metric"]): r for r in rows}
    codes = {"cat": 0, "dog": 1, "no": 2}
    data = np.array([[np.nan if w is None else codes[w] for w in person[:5]] for person in words.values()])
    expected = krippendorff.alpha(reliability_data=data, level_of_measurement="nominal")
    whole = value["all", "all", "krippendorff_alpha"]
    assert whole["value"] == pytest.approx(expected) and (whole["items"], whole["disagreements"]) == (5, 3)
    assert whole["low"] <= whole["value"] <= whole["high"]
    assert value["cat", "all", "krippendorff_alpha"]["value"] == pytest.approx(expected)
    pair = value["all", "ann, ben", "cohen_kappa"]
    kappa = cohen_kappa_score(["cat", "cat", "no", "dog", "no"], ["cat", "no", "no", "cat", "no"])
    assert pair["value"] == pytest.approx(kappa) and pair["items"] == 5
    assert value["all", "ann, ben", "raw_agreement"]["value"] == pytest.approx(3 / 5)
    assert value["all", "all", "mean_iou"]["value"] == 1.0
    assert {r["reviewers"] for r in rows} == {"all", "ann, ben", "ann, cal", "ben, cal"}
    assert agreement.measure(said(words)).equals(agreement.measure(said(words)))


def test_boxes_are_compared_apart_from_classes() -> None:
    corners = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 20.0), (5.0, 0.0, 15.0, 10.0)]
    made = [
        decision("a", "fix", who, asked_class="cat", class_name="cat", box=box)
        for who, box in zip(("ann", "ben", "cal"), corners, strict=True)
    ]
    rows = agreement.measure(decisions.standing(table(*made))).to_pylist()
    found = {(r["reviewers"], r["metric"]): r["value"] for r in rows if r["class_name"] == "all"}
    expected = boxes.iou(corners, corners)[np.triu_indices(3, 1)].mean()
    assert found["all", "mean_iou"] == pytest.approx(expected)
    assert found["all", "raw_agreement"] == 1.0 and found["all", "krippendorff_alpha"] is None
