from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as sk

from pipeline import schema
from pipeline.evaluate import evaluate, gather

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
