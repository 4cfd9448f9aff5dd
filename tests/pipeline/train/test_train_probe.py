from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from pipeline.config import TrainingConfig
from pipeline.intervals import wilson
from pipeline.train import probe
from pipeline.train.probe import Labelled


def blobs(n: int, classes: int, seed: int = 0, spread: float = 0.5) -> Labelled:
    """Overlapping clusters on the unit sphere; the same centres for every seed."""
    centres = np.random.default_rng(99).normal(size=(classes, 16))
    random = np.random.default_rng(seed)
    which = random.integers(classes, size=n)
    vectors = centres[which] + random.normal(size=(n, 16)) * spread * 3
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Labelled(vectors.astype(np.float32), np.array([f"class_{i}" for i in which]))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_probabilities_are_scikit_learns(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "STRENGTHS", (1.0,))
    data, other = blobs(200, classes), blobs(50, classes, seed=1)
    centre, spread = data.vectors.mean(axis=0), np.sqrt(np.mean((data.vectors - data.vectors.mean(axis=0)) ** 2))
    scaled, others = (((d.vectors - centre) / spread).astype(float) for d in (data, other))
    reference = LogisticRegression(C=1.0 / 16, max_iter=1000).fit(scaled, data.labels)
    expected = reference.predict_proba(others)
    found = probe.fit(data, "e", 0)
    assert found.classes == tuple(reference.classes_)
    assert found.probabilities(other.vectors) == pytest.approx(expected, abs=1e-4)


def test_one_class_is_certain_and_one_example_is_enough() -> None:
    alone = Labelled(np.eye(4, dtype=np.float32)[:1], np.array(["a"]))
    assert probe.fit(alone, "e", 0).probabilities(np.eye(4, dtype=np.float32)).tolist() == [[1.0]] * 4
    one_each = Labelled(np.eye(4, dtype=np.float32)[:2], np.array(["a", "b"]))
    assert probe.accuracy(probe.fit(one_each, "e", 0), one_each) == 1.0


def test_out_of_fold_is_that_of_a_probe_that_saw_no_image_of_the_group() -> None:
    data = blobs(120, 3)
    groups = [f"g{k // 3}" for k in range(120)]
    # A class in four groups only is not judged.
    labels = np.where(np.arange(120) < 12, "rare", data.labels)
    data = Labelled(data.vectors, labels)
    found = probe.out_of_fold(data, groups, "e", 0)
    assert np.isnan(found[:12]).all() and np.isnan(found[:, 3]).all() and found.shape == (120, 4)
    np.testing.assert_allclose(found[12:, :3].sum(axis=1), 1)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    kept = np.arange(12, 120)
    for learnt, asked in folds.split(kept, labels[kept], np.array(groups)[kept]):
        expected = probe.fit(data.take(kept[learnt]), "e", 0).probabilities(data.vectors[kept[asked]])
        np.testing.assert_allclose(found[kept[asked], :3], expected)
        assert not {groups[k] for k in kept[learnt]} & {groups[k] for k in kept[asked]}


def test_the_learning_curve_rises_and_its_intervals_hold_the_value() -> None:
    config = TrainingConfig(budgets=[5, 20, 80, 5000], repeats=4)
    train, val, test = blobs(400, 3), blobs(300, 3, seed=1), blobs(300, 3, seed=2)
    rows = probe.learning_curve(train, {"val": val, "test": test}, config, 0.95, "e")
    points = {(r["split"], r["x"]): r for r in rows}
    all_labels = 400 / 3
    assert set(points) == {(s, x) for s in ("val", "test") for x in (5.0, 20.0, 80.0, all_labels)}
    for row in rows:
        assert 0 <= row["low"] < row["y"] < row["high"] <= 1
    for split in ("val", "test"):
        assert points[split, 5.0]["y"] < points[split, 80.0]["y"]
    last = points["test", all_labels]
    exact = probe.accuracy(probe.fit(train, "e", 0), test)
    assert last["y"] == pytest.approx(exact)
    assert (last["low"], last["high"]) == pytest.approx(wilson(exact * 300, 300, 0.95))


def test_draws_that_differ_widen_the_interval() -> None:
    same = probe._interval([0.8, 0.8, 0.8], 100, 0.95)
    spread = probe._interval([0.6, 0.8, 1.0], 100, 0.95)
    assert same[0] == pytest.approx(spread[0])
    assert spread[1] < same[1] and spread[2] > same[2]  # type: ignore[operator]


def test_the_curve_is_the_same_whatever_else_is_asked() -> None:
    train, val = blobs(200, 3), blobs(100, 3, seed=1)
    many = probe.learning_curve(train, {"val": val}, TrainingConfig(budgets=[5, 20], repeats=3), 0.95, "e")
    one = probe.learning_curve(train, {"val": val}, TrainingConfig(budgets=[20], repeats=3), 0.95, "e")
    assert [r for r in many if r["x"] == 20.0] == [r for r in one if r["x"] == 20.0]


def test_nothing_held_out_or_nothing_to_learn_from_gives_no_points() -> None:
    empty = Labelled(np.zeros((0, 16), np.float32), np.zeros(0, dtype=str))
    assert probe.learning_curve(blobs(20, 2), {"val": empty}, TrainingConfig(), 0.95, "e") == []
    assert probe.learning_curve(empty, {"val": blobs(20, 2)}, TrainingConfig(), 0.95, "e") == []
