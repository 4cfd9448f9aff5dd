from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline import champion
from pipeline.config import EvaluationConfig, SliceConfig
from pipeline.evaluate import paired_draws

CONFIG = EvaluationConfig(slices=[SliceConfig(name="dark", where="true")], guard_drop=0.05)


def draws(**values: tuple[float, float | None]) -> pa.Table:
    """Each model's value on all images and on the slice `dark`, with draws that stray together."""
    common = np.random.default_rng(0).normal(0, 0.2, 100)
    rows = []
    for model, (overall, dark) in values.items():
        for name, value in (("all", overall), ("dark", dark)):
            drawn = [None] * 100 if value is None else (value + common).tolist()
            rows.append({"model": model, "slice": name, "metric": "AP50", "value": value, "draws": drawn})
    return pa.Table.from_pylist(
        rows,
        pa.schema(
            [
                ("model", pa.string()),
                ("slice", pa.string()),
                ("metric", pa.string()),
                ("value", pa.float64()),
                ("draws", pa.list_(pa.float64())),
            ]
        ),
    )


def chosen(table: pa.Table, previous: str | None) -> dict:
    return champion.choose(table, previous, CONFIG).to_pylist()[0]


def test_the_first_champion_is_the_best() -> None:
    row = chosen(draws(a=(0.5, 0.5), b=(0.7, 0.1)), None)
    assert (row["model"], row["promoted"], row["previous"], row["value"]) == ("b", True, None, 0.7)


def test_a_better_model_takes_over_although_single_draws_vary_widely() -> None:
    """Draws vary by 0.2, but together: paired, the difference is certain."""
    row = chosen(draws(a=(0.5, 0.5), b=(0.6, 0.46)), "a")
    assert (row["model"], row["promoted"], row["previous"]) == ("b", True, "a") and "0.100" in row["reason"]


def test_a_loss_on_a_guarded_slice_keeps_the_champion_and_names_the_slice() -> None:
    row = chosen(draws(a=(0.5, 0.5), b=(0.9, 0.4)), "a")
    assert (row["model"], row["promoted"]) == ("a", False)
    assert "b refused" in row["reason"] and "'dark'" in row["reason"] and "-0.100" in row["reason"]


def test_the_next_best_gets_its_chance() -> None:
    row = chosen(draws(a=(0.5, 0.5), b=(0.9, 0.4), c=(0.6, 0.6)), "a")
    assert (row["model"], row["promoted"]) == ("c", True) and "b refused" in row["reason"]


def test_a_slice_without_objects_guards_nothing_and_a_lost_champion_is_replaced() -> None:
    assert chosen(draws(a=(0.5, None), b=(0.6, None)), "a")["model"] == "b"
    row = chosen(draws(a=(0.5, 0.5)), "gone")
    assert row["model"] == "a" and "gone has no value" in row["reason"]


def test_no_better_model_no_change() -> None:
    row = chosen(draws(a=(0.5, 0.5), b=(0.5, 0.9)), "a")
    assert (row["model"], row["promoted"], row["reason"]) == ("a", False, "no model is better on test")
    assert champion.choose(draws(a=(0.5, 0.5)).slice(0, 0), "a", CONFIG).num_rows == 0


def test_an_uncertain_loss_is_refused_on_real_draws(tables) -> None:
    """On three dark images one wrong answer more is a possible loss of far more than 0.05."""
    ids = [f"i{k:02d}" for k in range(60)]
    truth = tables.truth([(i, "a", None) for i in ids])
    old = tables.boxes([(i, "a" if k % 2 else "b", None, 0.9) for k, i in enumerate(ids)], "old@1#0")
    new = tables.boxes([(i, "b" if k == 1 else "a", None, 0.9) for k, i in enumerate(ids)], "new@1#0")
    guarded = {"slices": [{"name": "dark", "where": "true"}]}
    config = tables.config(["a", "b"], task="classification", evaluation=guarded)
    for dark, expected in ((ids[:3], "old@1#0"), (ids[2:5], "new@1#0")):
        models, members = pa.concat_tables([old, new]), tables.members({"dark": dark})
        table = paired_draws(models, truth, tables.splits(ids), members, config)
        row = champion.choose(table, "old@1#0", config.evaluation).to_pylist()[0]
        assert row["model"] == expected, row["reason"]
        assert row["value"] == pytest.approx(0.5 if expected == "old@1#0" else 59 / 60)
