from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fuse.answers import dawid_skene, votes

Answers = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def answers(items: int, skill: list[float], classes: int, seed: int = 0) -> Answers:
    """Item, labeller and answer of some nine in ten pairs, and the truth."""
    generator = np.random.default_rng(seed)
    true = generator.integers(0, classes, items)
    item, labeller = (a.ravel() for a in np.meshgrid(np.arange(items), np.arange(len(skill)), indexing="ij"))
    kept = (generator.random(len(item)) < 0.9) | (labeller == 0)
    item, labeller = item[kept], labeller[kept]
    right = generator.random(len(item)) < np.array(skill)[labeller]
    other = (true[item] + generator.integers(1, classes, len(item))) % classes
    return item, labeller, np.where(right, true[item], other), true


def test_votes_are_shares() -> None:
    item, answer = np.array([0, 0, 0, 2]), np.array([1, 1, 0, 2])
    assert votes(item, answer, 3, 3) == pytest.approx(np.array([[1 / 3, 2 / 3, 0], [0, 0, 0], [0, 0, 1]]))


@pytest.mark.peers
@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([0.3, 0.5, 0.7, 0.9]), min_size=2, max_size=5), st.integers(2, 4), st.integers(0, 99))
def test_skills_are_crowd_kits(skill: list[float], classes: int, seed: int) -> None:
    from crowdkit.aggregation import DawidSkene

    item, labeller, answer, _ = answers(400, skill, classes, seed)
    theirs = DawidSkene(n_iter=100).fit(pd.DataFrame({"task": item, "worker": labeller, "label": answer}))
    ours = dawid_skene(item, labeller, answer, 400, len(skill), classes)
    for (worker, said), row in theirs.errors_.iterrows():
        assert ours.confusion[worker, :, said] == pytest.approx(row[list(range(classes))].to_numpy(), abs=1e-9)
    assert ours.prior == pytest.approx(theirs.priors_[list(range(classes))].to_numpy(), abs=1e-9)


def test_skills_beat_votes_where_one_labeller_is_better_than_the_rest() -> None:
    item, labeller, answer, true = answers(1500, [0.95, 0.55, 0.5, 0.5], 3, seed=1)
    skills = dawid_skene(item, labeller, answer, 1500, 4, 3)
    probable = skills.classes_of(item, labeller, answer, 1500)
    assert probable.sum(axis=1) == pytest.approx(np.ones(1500))
    by_skill = (probable.argmax(axis=1) == true).mean()
    by_vote = (votes(item, answer, 1500, 3).argmax(axis=1) == true).mean()
    assert by_skill > by_vote + 0.05
    assert np.diagonal(skills.confusion[0]) == pytest.approx([0.95] * 3, abs=0.09)


def test_no_answers() -> None:
    none = np.zeros(0, np.int64)
    skills = dawid_skene(none, none, none, 0, 2, 3)
    assert np.isfinite(skills.confusion).all() and skills.prior == pytest.approx([1 / 3] * 3)
    assert skills.classes_of(none, none, none, 0).shape == (0, 3)
