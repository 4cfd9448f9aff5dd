from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.evaluate import evaluate


def at(x: float) -> tuple[float, float, float, float]:
    return (x, 0, x + 10, 10)


def test_counts_by_hand(tables) -> None:
    """The threshold is chosen on val (0.5 there), then counts on test follow from it."""
    val_truth = [("v", "cat", at(0)), ("v", "cat", at(20))]
    val_seen = [("v", "cat", at(0), 0.9), ("v", "cat", at(20), 0.5), ("v", "cat", at(60), 0.3)]
    truth = [("a", "cat", at(0)), ("a", "cat", at(20)), ("b", "cat", at(0)), ("a", "cat", at(80))]
    seen = [
        ("a", "cat", at(0), 0.9),
        ("a", "cat", at(40), 0.8),
        ("a", "cat", at(60), 0.5),
        ("b", "cat", at(0), 0.4),
        ("c", "cat", at(0), 0.7),
        ("a", "cat", at(80), 0.9),
    ]
    people = tables.truth(val_truth + truth, ignore=[False] * 5 + [True])
    splits = pa.concat_tables([tables.splits(["a", "b", "c"]), tables.splits(["v"], "val")])
    config = tables.config(evaluation={"bootstrap": 50})
    out = evaluate(tables.boxes(val_seen + seen), people, splits, tables.members({}), config)["evaluation"]
    assert tables.metric(out, "threshold", class_name="cat")["value"] == 0.5
    # a: 3 seen (one right; the one in the ignore region is not counted) of 2; b: 0 of 1; c: 1 of 0.
    expected = {"count_mae": 1.0, "count_bias": 1 / 3, "count_mape": 0.75, "precision": 0.25, "recall": 1 / 3}
    for metric, value in expected.items():
        row = tables.metric(out, metric)
        assert row["value"] == pytest.approx(value), metric
        assert row["support"] == 3 and row["images"] == (2 if metric == "count_mape" else 3)
    assert tables.metric(out, "f1")["value"] == pytest.approx(2 * 1 / (4 + 3))
    row = tables.metric(out, "count_mae")
    assert row["low"] <= 1 <= row["high"] and row["level"] == 0.95


def test_interval_of_a_mean_error_is_about_the_normal_one(tables) -> None:
    generator = np.random.default_rng(2)
    ids = [f"i{k:03d}" for k in range(300)]
    people, said = generator.integers(1, 8, 300), generator.integers(1, 8, 300)
    truth = [(i, "cat", at(20 * k)) for i, n in zip(ids, people, strict=True) for k in range(n)]
    seen = [(i, "cat", at(20 * k), 0.9) for i, n in zip(ids, said, strict=True) for k in range(n)]
    splits = pa.concat_tables([tables.splits(ids), tables.splits(ids[:1], "val")]).slice(0, 300)
    val = tables.splits(["v"], "val")
    config = tables.config(evaluation={"bootstrap": 400})
    out = evaluate(
        tables.boxes([*seen, ("v", "cat", at(0), 0.5)]),
        tables.truth([*truth, ("v", "cat", at(0))]),
        pa.concat_tables([splits, val]),
        tables.members({}),
        config,
    )["evaluation"]
    row, error = tables.metric(out, "count_mae"), np.abs(said - people)
    half = 1.96 * error.std() / np.sqrt(300)
    assert row["value"] == pytest.approx(error.mean())
    assert (row["low"], row["high"]) == pytest.approx((error.mean() - half, error.mean() + half), abs=half / 4)


def test_trust_stands_in_where_val_cannot_choose(tables) -> None:
    trust = tables.trust({"producer": "m@1#0", "class_name": "cat", "threshold": 0.75})
    seen = tables.boxes([("a", "cat", at(0), 0.8), ("a", "cat", at(20), 0.7)])
    truth = tables.truth([("a", "cat", at(0))])
    args = seen, truth, tables.splits(["a"]), tables.members({}), tables.config()
    assert tables.metric(evaluate(*args, trust=trust)["evaluation"], "precision")["value"] == 1
    without = evaluate(*args)["evaluation"]
    assert tables.metric(without, "threshold", class_name="cat")["value"] is None
    assert "precision" not in without.column("metric").to_pylist()
