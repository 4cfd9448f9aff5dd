from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.evaluate import evaluate, image_errors, paired_draws

CLASSES = ["a", "b"]


def test_draws_of_models_are_paired_and_agree_with_evaluation(tables) -> None:
    generator = np.random.default_rng(0)
    ids = [f"i{k:02d}" for k in range(30)]
    boxes = [(i, "a", (x, 0, x + 10, 10)) for i in ids for x in (0, 20, 40)]
    truth = tables.truth(boxes)
    moved = [(i, c, np.array(b)) for i, c, b in boxes]
    models = pa.concat_tables(
        [
            tables.boxes([(i, c, b + generator.integers(-3, 4, 4), generator.random()) for i, c, b in moved], p)
            for p in ("one@1#0", "two@1#0")
        ]
        + [tables.boxes([(*b, 0.5) for b in boxes], "perfect@1#0")]
    )
    config = tables.config(CLASSES, evaluation={"bootstrap": 60})
    members = tables.members({"some": ids[:7]})
    out = evaluate(models, truth, tables.splits(ids), members, config)["evaluation"]
    found = paired_draws(models, truth, tables.splits(ids), members, config).to_pylist()
    draws = {(r["model"], r["slice"]): r for r in found}
    for (model, name), row in draws.items():
        expected = tables.metric(out, "AP50", model=model, slice=name)
        assert row["value"] == pytest.approx(expected["value"]) and len(row["draws"]) == 60
        interval = np.quantile(row["draws"], [0.025, 0.975])
        assert interval == pytest.approx([expected["low"], expected["high"]])
    assert draws["perfect@1#0", "all"]["draws"] == pytest.approx([1.0] * 60)
    copied = models.set_column(3, "producer", pa.array(["copy@1#0"] * models.num_rows)).filter(
        pa.compute.equal(models.column("producer"), "one@1#0")
    )
    again = paired_draws(copied, truth, tables.splits(ids), members, config).to_pylist()[0]
    assert again["draws"] == draws["one@1#0", "all"]["draws"]


def test_image_errors_by_hand(tables) -> None:
    truth = tables.truth([("x", "a", (0, 0, 9, 9)), ("x", "a", (20, 0, 29, 9)), ("y", "b", (0, 0, 9, 9))])
    seen = tables.boxes([("x", "a", (0, 0, 9, 9), 0.9), ("x", "a", (50, 0, 59, 9), 0.9), ("y", "b", (0, 0, 9, 9), 0.8)])
    splits, config = tables.splits(["x", "y", "z"], "val"), tables.config(CLASSES, evaluation={"bootstrap": 0})
    evaluation = evaluate(seen, truth, splits, tables.members({}), config)["evaluation"]
    rows = {r["image_id"]: r for r in image_errors(seen, truth, splits, evaluation, config).to_pylist()}
    assert [(rows[i]["right"], rows[i]["wrong"]) for i in "xyz"] == [(1, 2), (1, 0), (0, 0)]
    assert [rows[i]["error"] for i in "xyz"] == pytest.approx([2 / 3, 0, 0])


def test_image_errors_of_classes(tables) -> None:
    truth = tables.truth([("x", "a", None), ("y", "b", None)])
    seen = tables.boxes([("x", "a", None, 0.9), ("y", "a", None, 0.8)])
    config = tables.config(CLASSES, task="classification")
    empty = evaluate(seen, truth, tables.splits([]), tables.members({}), config)["evaluation"]
    rows = image_errors(seen, truth, tables.splits(["x", "y"]), empty, config).to_pylist()
    assert [r["error"] for r in rows] == [0.0, 1.0]
    draws = paired_draws(seen, truth, tables.splits(["x", "y"]), tables.members({}), config).to_pylist()
    assert draws[0]["metric"] == "accuracy" and draws[0]["value"] == 0.5
