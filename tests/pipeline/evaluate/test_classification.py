from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from pipeline import schema
from pipeline.evaluate import class_shares, evaluate, gather
from pipeline.predict import class_rows

CLASSES = ["a", "b", "c"]
ANSWERS = st.lists(
    st.tuples(st.sampled_from(CLASSES), st.sampled_from([*CLASSES, None]), st.floats(0.0, 1.0, width=32)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(ANSWERS)
def test_equal_to_sklearn(tables, rows: list) -> None:
    ids = [f"i{k:02d}" for k in range(len(rows))]
    truth = tables.truth([(i, r[0], None) for i, r in zip(ids, rows, strict=True)])
    said = [(i, r[1], None, r[2]) for i, r in zip(ids, rows, strict=True) if r[1] is not None]
    found = tables.boxes(said, name="predictions")
    config = tables.config(CLASSES, task="classification", evaluation={"bootstrap": 0})
    out = evaluate(found, truth, tables.splits(ids), tables.members({}), config, producers=["m@1#0"])
    actual, named = [r[0] for r in rows], [r[1] or "background" for r in rows]
    confidence = np.array([r[2] if r[1] else 0.0 for r in rows])
    right = np.array([a == n for a, n in zip(actual, named, strict=True)])
    table = out["evaluation"]
    assert tables.metric(table, "accuracy")["value"] == pytest.approx(sk.accuracy_score(actual, named))
    occurring = [c for c in CLASSES if c in actual]
    expected = sk.recall_score(actual, named, labels=occurring, average="macro", zero_division=0)
    assert tables.metric(table, "balanced_accuracy")["value"] == pytest.approx(expected)
    # The curve of reliability has a point for each bin that is not empty.
    points = np.array([(r["y"], r["x"]) for r in out["curves"].to_pylist()]).T
    np.testing.assert_allclose(points, calibration_curve(right, confidence, n_bins=15), atol=1e-12)
    expected = sk.brier_score_loss(right, confidence, pos_label=True)
    assert tables.metric(table, "brier")["value"] == pytest.approx(expected)
    p, r, f, n = sk.precision_recall_fscore_support(actual, named, labels=CLASSES, zero_division=np.nan)
    for k, name in enumerate(CLASSES):
        for metric, value in (("precision", p[k]), ("recall", r[k]), ("f1", f[k])):
            row = tables.metric(table, metric, class_name=name)
            assert row["value"] == (None if np.isnan(value) else pytest.approx(value)) and row["support"] == n[k]
    labels = [*CLASSES, "background"]
    cells = np.zeros((4, 4), int)
    for row in out["confusion"].to_pylist():
        cells[labels.index(row["actual"]), labels.index(row["predicted"])] = row["count"]
    assert (cells == sk.confusion_matrix(actual, named, labels=labels)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 9), st.integers(1, 40), st.integers(0, 999))
def test_with_shares_of_all_classes_equal_to_sklearn(tables, classes: int, images: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    names, ids = [f"c{k}" for k in range(classes)], [f"i{k:02d}" for k in range(images)]
    actual, given = generator.integers(0, classes, images), generator.dirichlet(np.ones(classes), images)
    truth = tables.truth([(i, names[k], None) for i, k in zip(ids, actual, strict=True)])
    ranked = class_rows("m@1#0", names, tables.images(ids), given)
    assert ranked.num_rows == images * min(5, classes)
    config = tables.config(names, task="classification", evaluation={"bootstrap": 0})
    models = gather(tables.boxes([]), ranked, schema.table("tags").empty())
    assert models.num_rows == images  # the best class of each
    out = evaluate(models, truth, tables.splits(ids), tables.members({}), config, shares=class_shares(ranked))
    most = min(5, classes - 1)
    expected = sk.top_k_accuracy_score(actual, given, k=most, labels=np.arange(classes))
    assert tables.metric(out["evaluation"], f"accuracy_top{most}")["value"] == pytest.approx(expected)
    if classes <= 5:
        expected = sk.brier_score_loss(actual, given, labels=np.arange(classes), scale_by_half=False)
        assert tables.metric(out["evaluation"], "brier_multiclass")["value"] == pytest.approx(expected)
    else:
        assert "brier_multiclass" not in out["evaluation"]["metric"].to_pylist()  # the rest of the shares is not known
    best = sk.top_k_accuracy_score(actual, given, k=1, labels=np.arange(classes))
    assert tables.metric(out["evaluation"], "accuracy")["value"] == pytest.approx(best)


def test_an_image_of_which_nothing_was_said_counts_as_wrong_and_one_class_is_no_share_of_all(tables) -> None:
    truth = tables.truth([("x", "a", None), ("y", "b", None)])
    config, where = tables.config(CLASSES, task="classification"), (tables.splits(["x", "y"]), tables.members({}))
    said = class_rows("m@1#0", CLASSES, tables.images(["x"]), np.array([[0.3, 0.5, 0.2]]))
    models = gather(tables.boxes([]), said, schema.table("tags").empty())
    out = evaluate(models, truth, *where, config, shares=class_shares(said))["evaluation"]
    assert tables.metric(out, "accuracy_top2")["value"] == 0.5
    assert tables.metric(out, "brier_multiclass")["value"] == pytest.approx((0.7**2 + 0.5**2 + 0.2**2 + 1) / 2)
    out = evaluate(models, truth, *where, config)["evaluation"]
    assert not {"accuracy_top2", "brier_multiclass"} & set(out["metric"].to_pylist())


@pytest.mark.peers
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 999))
def test_ece_is_that_of_torchmetrics(tables, images: int, seed: int) -> None:
    import torch

    from pipeline.torch_compat import import_torchvision

    import_torchvision()
    from torchmetrics.functional.classification import multiclass_calibration_error

    generator = np.random.default_rng(seed)
    actual, given = generator.integers(0, 3, images), generator.dirichlet(np.ones(3), images).astype(np.float32)
    ids = [f"i{k:02d}" for k in range(images)]
    truth = tables.truth([(i, CLASSES[k], None) for i, k in zip(ids, actual, strict=True)])
    said = [(i, CLASSES[p.argmax()], None, p.max()) for i, p in zip(ids, given, strict=True)]
    config = tables.config(CLASSES, task="classification", evaluation={"bootstrap": 0})
    out = evaluate(tables.boxes(said), truth, tables.splits(ids), tables.members({}), config)["evaluation"]
    expected = multiclass_calibration_error(
        torch.tensor(given), torch.tensor(actual), num_classes=3, n_bins=15, norm="l1"
    )
    assert tables.metric(out, "ece")["value"] == pytest.approx(float(expected), abs=1e-6)


def test_accuracy_has_the_wilson_interval_and_ece_is_the_gap(tables) -> None:
    ids = [f"i{k:02d}" for k in range(40)]
    truth = tables.truth([(i, "a", None) for i in ids])
    said = [(i, "a" if k < 30 else "b", None, 0.95 if k < 20 else 0.5) for k, i in enumerate(ids)]
    config = tables.config(CLASSES, task="classification")
    out = evaluate(tables.boxes(said), truth, tables.splits(ids), tables.members({}), config)
    row = tables.metric(out["evaluation"], "accuracy")
    expected = binomtest(30, 40).proportion_ci(0.95, method="wilson")
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    # 20 images at 0.95, all right: gap 0.05; 20 at 0.5, half right: no gap.
    assert tables.metric(out["evaluation"], "ece")["value"] == pytest.approx(0.025, abs=1e-6)
    points = {round(r["x"], 3): r["y"] for r in out["curves"].to_pylist()}
    assert points == {0.95: 1.0, 0.5: 0.5}


def test_tags_count_by_their_best_class_and_its_probability(tables) -> None:
    rows = {"probability": [0.9, 0.1, 0.6, 0.4], "rank": [1, 2, 1, 2]}
    tags = tables.boxes(
        [("x", "a", None, 0.3), ("x", "b", None, 0.2), ("y", "b", None, 0.3), ("y", "a", None, 0.1)],
        producer="clip@1#0",
        name="tags",
        **rows,
    )
    none = schema.table("detections").empty()
    models = gather(none, none, tags)
    assert models.column("score").to_pylist() == pytest.approx([0.9, 0.6])
    truth = tables.truth([("x", "a", None), ("y", "a", None)])
    config = tables.config(CLASSES, task="classification")
    out = evaluate(models, truth, tables.splits(["x", "y"]), tables.members({}), config)["evaluation"]
    assert tables.metric(out, "accuracy")["value"] == 0.5


def test_nothing_to_measure_gives_no_rows(tables) -> None:
    config = tables.config(CLASSES, task="classification")
    none = tables.boxes([])
    out = evaluate(none, tables.truth([]), tables.splits(["x"]), tables.members({}), config, producers=["m@1#0"])
    assert {name: t.num_rows for name, t in out.items()} == {"evaluation": 0, "confusion": 0, "curves": 0}
