"""Comparisons of models against tests by other hands, and by how often they cry wolf."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom

from pipeline import masks as rle
from pipeline import schema
from pipeline.evaluate import compare, evaluate
from pipeline.evaluate.rows import Resampling
from pipeline.intervals import holm

CLASSES = ["a", "b"]


def test_classes_are_compared_by_the_images_on_which_two_models_differ(tables) -> None:
    ids = [f"i{k:02d}" for k in range(40)]
    truth = tables.truth([(i, "a", None) for i in ids])
    wrong = {"one@1#0": set(ids[:3]), "two@1#0": set(ids[2:14]), "same@1#0": set(ids[:3])}
    said = [tables.boxes([(i, "b" if i in bad else "a", None, 0.9) for i in ids], m) for m, bad in wrong.items()]
    config = tables.config(CLASSES, task="classification")
    rows = compare(pa.concat_tables(said), truth, tables.splits(ids), tables.members({"few": ids[:2]}), config)
    found = {(r["model"], r["other"], r["slice"]): r for r in rows.to_pylist()}
    assert len(found) == 6
    row = found["one@1#0", "two@1#0", "all"]
    # Two are right only in one, eleven only in the other.
    assert row["p_value"] == pytest.approx(2 * binom.cdf(2, 13, 0.5))
    assert row["difference"] == pytest.approx(37 / 40 - 28 / 40) and row["low"] < row["difference"] < row["high"]
    assert found["one@1#0", "same@1#0", "all"]["p_value"] == 1.0
    corrected = holm(np.array([r["p_value"] for r in rows.to_pylist()]))
    assert [r["corrected"] for r in rows.to_pylist()] == pytest.approx(corrected.tolist())
    assert all(r["better"] is None for r in found.values())  # 0.022 is not enough after six looks


def test_boxes_are_compared_on_the_same_samples(tables) -> None:
    generator = np.random.default_rng(0)
    ids = [f"i{k:02d}" for k in range(40)]
    boxes = [(i, "a", (x, 0, x + 10, 10)) for i in ids for x in (0, 20, 40)]
    truth = tables.truth(boxes)
    good = tables.boxes([(*b, 0.5) for b in boxes], "good@1#0")
    poor = [(i, c, np.array(b) + generator.integers(-4, 5, 4), generator.random()) for i, c, b in boxes]
    models = pa.concat_tables([good, tables.boxes(poor, "poor@1#0")])
    config, splits = tables.config(CLASSES), tables.splits(ids)
    rows = compare(models, truth, splits, tables.members({}), config).to_pylist()
    evaluation = evaluate(models, truth, splits, tables.members({}), config)["evaluation"]
    assert [row["metric"] for row in rows] == ["AP50", "AP"]
    for row in rows:
        for model, name in (("good@1#0", "value"), ("poor@1#0", "other_value")):
            assert row[name] == pytest.approx(tables.metric(evaluation, row["metric"], model=model)["value"])
        assert row["better"] == "good@1#0" and row["low"] > 0
        assert row["p_value"] == row["corrected"] == pytest.approx(2 / 2001)  # one look a metric


def test_counts_are_better_the_less_they_are_off(tables) -> None:
    ids = [f"i{k:02d}" for k in range(40)]
    boxes = [(i, c, (x, 0, x + 10, 10)) for i in ids for c, x in (("a", 0), ("b", 40))]
    truth = tables.truth(boxes)
    false = [(i, "a", (x, 60, x + 10, 70), 0.5) for i in ids for x in (0, 40)]
    models = [
        tables.boxes([(*b, 0.5) for b in boxes], "right@1#0"),
        tables.boxes([*((*b, 0.5) for b in boxes), *false], "twoextra@1#0"),
        tables.boxes([(*b, 0.5) for b in boxes if b[1] == "a"], "half@1#0"),  # no threshold for b: not counted
    ]
    splits = pa.concat_tables([tables.splits(ids[:20]), tables.splits(ids[20:], "val")])
    config, members = tables.config(CLASSES), tables.members({})
    evaluation = evaluate(pa.concat_tables(models), truth, splits, members, config)["evaluation"]
    rows = compare(pa.concat_tables(models), truth, splits, members, config, evaluation=evaluation).to_pylist()
    (row,) = (r for r in rows if r["metric"] == "count_mae")
    assert (row["model"], row["other"], row["better"]) == ("right@1#0", "twoextra@1#0", "right@1#0")
    for model, name in (("right@1#0", "value"), ("twoextra@1#0", "other_value")):
        assert row[name] == tables.metric(evaluation, "count_mae", model=model)["value"]
    assert row["difference"] == row["low"] == row["high"] == -2


def test_masks_are_compared_where_people_drew_some(tables) -> None:
    ids = [f"i{k:02d}" for k in range(20)]
    disc, half = np.zeros((100, 100), bool), np.zeros((100, 100), bool)
    disc[10:50, 10:50], half[10:50, 10:28] = True, True
    box = (10, 10, 50, 50)
    truth = tables.truth([(i, "a", box) for i in ids], mask=[rle.encode(disc)] * 15 + [None] * 5)
    models = [tables.boxes([(i, "a", box, 0.9) for i in ids], m) for m in ("one@1#0", "two@1#0")]
    drawn = schema.table("masks").from_rows(
        [
            {"annotation_id": a, "image_id": i, "batch": "b", "producer": "sam@1#0", "mask": rle.encode(mask),
             "area": int(mask.sum()), "score": 0.9}
            for table, mask in zip(models, (disc, half), strict=True)
            for a, i in zip(table["annotation_id"].to_pylist(), ids, strict=True)
        ]
    )  # fmt: skip
    config, members = tables.config(CLASSES), tables.members({"few": ids[:4]})
    found = compare(
        pa.concat_tables(models), truth, tables.splits(ids), members, config, (), drawn, tables.images(ids)
    ).to_pylist()
    boxes, masks = ([r for r in found if r["metric"].startswith("mask") == m] for m in (False, True))
    assert {r["difference"] for r in boxes} == {0} and {r["better"] for r in boxes} == {None}
    assert [(r["slice"], r["images"], r["difference"], r["better"]) for r in masks] == [
        ("all", 15, pytest.approx(1), "one@1#0"), ("few", 4, pytest.approx(1), "one@1#0"),
    ]  # fmt: skip


def test_two_equal_models_are_rarely_told_apart(tables) -> None:
    """100 pairs of detectors with the same, independent, errors."""
    generator, alarms = np.random.default_rng(1), 0
    ids = [f"i{k:02d}" for k in range(25)]
    truth = tables.truth([(i, "a", (0, 0, 10, 10)) for i in ids])
    config = tables.config(CLASSES)
    for _ in range(100):
        said = [
            tables.boxes([(i, "a", (0, 0, 10, 10 if generator.random() < 0.7 else 3), 0.5) for i in ids], m)
            for m in ("one@1#0", "two@1#0")
        ]
        rows = compare(pa.concat_tables(said), truth, tables.splits(ids), tables.members({}), config).to_pylist()
        alarms += rows[0]["better"] is not None
    assert alarms <= 11  # 5 expected; 11 are exceeded by chance once in 170


def test_of_many_rows_a_detector_can_be_better(tables) -> None:
    """Two samples of 2,001 make p 0.001, and times 60 slices 0.06."""
    ids = [f"i{k:02d}" for k in range(12)]
    boxes = [(i, "a", (0, 0, 10, 10)) for i in ids]
    said = [tables.boxes([(*b, 0.5) for b in chosen], m) for m, chosen in (("g@1#0", boxes), ("p@1#0", boxes[:1]))]
    members = tables.members({f"s{k}": ids for k in range(59)})
    found = compare(pa.concat_tables(said), tables.truth(boxes), tables.splits(ids), members, tables.config(CLASSES))
    rows = [r for r in found.to_pylist() if r["metric"] == "AP50"]
    draws = 4 * 60 / 0.05
    assert len(rows) == 60 and {r["better"] for r in rows} == {"g@1#0"}
    assert min(r["p_value"] for r in rows) == pytest.approx(2 / (1 + draws))
    assert max(r["corrected"] for r in rows) == pytest.approx(60 * 2 / (1 + draws))


@pytest.mark.parametrize("bca", [False, True])
@pytest.mark.parametrize("images", [1, 2, 7])
def test_weights_come_in_blocks(monkeypatch: pytest.MonkeyPatch, images: int, bca: bool) -> None:
    monkeypatch.setattr("pipeline.evaluate.rows._HELD", 40)
    resampling = Resampling(31, 0.95, bca)
    blocks = list(resampling.blocks(images, "test", "all"))
    assert max(b.size for b in blocks[:-1]) <= 40
    np.testing.assert_array_equal(np.concatenate(blocks), resampling.weights(images, "test", "all"))


def test_nothing_to_compare(tables) -> None:
    truth = tables.truth([("x", "a", (0, 0, 9, 9))])
    one = tables.boxes([("x", "a", (0, 0, 9, 9), 0.9)])
    config = tables.config(CLASSES)
    assert compare(one, truth, tables.splits(["x"]), tables.members({}), config).num_rows == 0
    row, _ = compare(one, truth, tables.splits(["x"]), tables.members({}), config, ["silent@1#0"]).to_pylist()
    assert row["p_value"] is None and row["difference"] == pytest.approx(1.0)  # one image cannot be resampled
