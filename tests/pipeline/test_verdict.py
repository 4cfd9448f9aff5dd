from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from pipeline import costs, schema, verdict
from pipeline.config import PriceConfig, ProjectConfig

CROWNS, COMPACT, FCOS = "crowns@1#0", "compact@1#0", "fcos@1#0"
PRICES = PriceConfig(human_box=0.1, human_image=0.02, cpu_hour=3.6)


def config(tables: Any, **more: Any) -> ProjectConfig:
    labelling = {"labellers": [{"name": "crowns", "path": "x.py:Y"}, {"name": "compact", "kind": "profile"}]}
    return tables.config(["cat"], labelling=labelling, prices=PRICES.model_dump(), **more)


def measured(*rows: tuple[str, float | None, float | None], metric: str = "AP50", name: str = "all") -> pa.Table:
    """Rows of evaluation: (model, value, low)."""
    return schema.table("evaluation").from_rows(
        [
            {
                "model": m,
                "split": "test",
                "slice": name,
                "class_name": "all",
                "metric": metric,
                "value": v,
                "low": low,
                "high": None if low is None else 2 * (v or 0) - low,
                "level": 0.95,
                "support": 9,
                "images": 3,
            }
            for m, v, low in rows
        ]
    )


def trained(*names: tuple[str, int | None]) -> pa.Table:
    return schema.table("models").from_rows(
        [
            {
                "model": m,
                "kind": "fcos",
                "snapshot": "",
                "path": "",
                "sha256": "",
                "config": "{}",
                "seconds": 1.0,
                "labels_per_class": n,
                "device": "cpu",
                "history": "[]",
            }
            for m, n in names
        ]
    )


def spent(asset: str, seconds: float, images: int, producer: str = "code") -> pa.Table:
    return costs.entry(
        stage="s",
        asset=asset,
        batch="b",
        producer=producer,
        started_at=datetime(2026, 11, 23, tzinfo=UTC),
        seconds=seconds,
        device="cpu",
        images=images,
        rows=1,
        prices=PRICES,
    )


def decide(tables: Any, evaluation: pa.Table, project: ProjectConfig | None = None, **more: Any) -> dict[str, dict]:
    """Rows by model; 'x' and 'y' are annotated and hold three boxes together."""
    bill = [spent("detections", 20.0, 100), spent("predictions", 10.0, 100)]
    truth = tables.truth([("x", "cat", (0, 0, 9, 9)), ("x", "cat", (20, 0, 29, 9)), ("y", "cat", (0, 0, 9, 9))])
    given = {
        "trust": schema.table("trust").empty(),
        "costs": costs.compact(bill, PRICES),
        "models": trained((FCOS, None)),
        "ground_truth": truth,
        "slices_of_images": tables.members({"all": ["x", "y"], "dense": ["x"]}),
        "annotated": ["x", "y"],
        "scale": verdict.Scale(1000, ["x", "y"]),
        **more,
    }
    rows = verdict.decide(evaluation, config=project or config(tables), **given)
    assert schema.table("verdict").duplicate_keys(rows) == 0
    return {r["model"]: r for r in rows.to_pylist()}


def taken(rows: dict[str, dict]) -> str:
    chosen = [m for m, r in rows.items() if r["recommended"]]
    assert len(chosen) == 1
    return chosen[0]


def test_options_and_their_costs(tables) -> None:
    rows = decide(tables, measured((CROWNS, 0.3, 0.2), (COMPACT, 0.1, 0.05), (FCOS, 0.6, 0.55)))
    assert {m: r["option"] for m, r in rows.items()} == {
        CROWNS: "labeller",
        COMPACT: "foundation",
        FCOS: "trained",
        "human": "people",
    }
    assert rows[CROWNS]["seconds_per_1000"] == pytest.approx(200)
    assert rows[CROWNS]["cost_per_1000"] == pytest.approx(0.2)
    assert rows[FCOS]["cost_per_1000"] == pytest.approx(0.1)
    assert rows["human"]["cost_per_1000"] == pytest.approx(1000 * (0.02 + 1.5 * 0.1)) and rows["human"]["value"] == 1
    assert taken(rows) == FCOS and "cheapest" in rows[FCOS]["reason"] and "not surely 0.5" in rows[CROWNS]["reason"]


def test_what_is_not_sure_leaves_it_to_people(tables) -> None:
    rows = decide(tables, measured((CROWNS, 0.3, 0.2), (FCOS, 0.6, 0.45)))
    assert taken(rows) == "human" and "the best, fcos, has" in rows["human"]["reason"]
    # Without an interval the value itself has to do.
    assert taken(decide(tables, measured((CROWNS, 0.3, None), (FCOS, 0.6, None)))) == FCOS


def test_among_nearly_equal_ones_the_cheapest_is_taken(tables) -> None:
    near, apart = measured((COMPACT, 0.78, 0.7), (FCOS, 0.8, 0.7)), measured((COMPACT, 0.7, 0.6), (FCOS, 0.8, 0.7))
    cheap = costs.compact([spent("detections", 1.0, 100), spent("predictions", 10.0, 100)], PRICES)
    assert taken(decide(tables, near, costs=cheap)) == COMPACT
    assert taken(decide(tables, near)) == FCOS
    rows = decide(tables, apart, costs=cheap)
    assert taken(rows) == FCOS and "more than 0.05 below" in rows[COMPACT]["reason"]
    # Equal or unknown cost: no training if none is needed.
    unknown = decide(tables, near, costs=schema.table("costs").empty())
    assert taken(unknown) == COMPACT and unknown[COMPACT]["cost_per_1000"] is None


def test_the_project_says_what_suffices(tables) -> None:
    strict = config(tables, evaluation={"sufficient": 0.9})
    assert taken(decide(tables, measured((FCOS, 0.8, 0.7)), strict)) == "human"
    assert taken(decide(tables, measured((FCOS, 0.95, 0.92)), strict)) == FCOS


def graded(tables: Any, *rows: tuple[str, str, str, bool, float, float], **more: Any) -> pa.Table:
    """(model, class, slice, certified, coverage, recall)."""
    names = ("producer", "class_name", "slice", "certified", "coverage", "recall")
    return tables.trust(*[dict(zip(names, row, strict=True)) | more for row in rows])


def test_what_gold_certifies_is_told_in_numbers_and_words(tables) -> None:
    trust = graded(tables, (CROWNS, "cat", "all", True, 0.4, 0.2), (CROWNS, "cat", "dense", False, 0.0, 0.0))
    both = pa.concat_tables(
        [measured((CROWNS, 0.3, 0.2), (FCOS, 0.4, 0.3)), measured((CROWNS, 0.3, 0.2), name="dense")]
    )
    table = verdict.decide(
        both, trust, schema.table("costs").empty(), trained((FCOS, None)), tables.truth([]), tables.members({}), [],
        verdict.Scale(), config(tables),
    )  # fmt: skip
    rows = {(r["slice"], r["model"]): r for r in table.to_pylist()}
    sure = rows["all", CROWNS]
    assert (sure["certified_coverage"], sure["certified_recall"]) == pytest.approx((0.4, 0.2))
    assert sure["reason"].endswith("certified above 90%: 40% of its answers")
    assert rows["dense", CROWNS]["certified_coverage"] == 0 and "nothing certified" in rows["dense", CROWNS]["reason"]
    assert rows["all", FCOS]["certified_coverage"] is None and "certified" not in rows["all", FCOS]["reason"]


def test_classes_count_with_their_answers(tables) -> None:
    first = graded(tables, (FCOS, "cat", "all", True, 0.5, 0.5), candidates=30, gold=10)
    second = graded(tables, (FCOS, "dog", "all", False, 0.9, 0.9), candidates=70, gold=10, more_gold=25)
    found = verdict.certified(pa.concat_tables([first, second]), FCOS, "all", "all")
    assert (found["certified_coverage"], found["certified_recall"]) == pytest.approx((0.15, 0.25))
    assert found["promise"].endswith("15% of its answers in 1 of 2 classes")
    none = verdict.certified(second, FCOS, "dog", "all")
    assert none["certified_coverage"] == 0 and none["promise"].endswith("25 more gold images may do")


def test_fixed_costs_are_spread_over_the_images(tables) -> None:
    """Gold of two images with three boxes, and training; over 1,000 images now, and over a million."""
    bill = [spent("detections", 20.0, 100), spent("predictions", 10.0, 100), spent("models", 500.0, 9)]
    rows = decide(tables, measured((CROWNS, 0.3, 0.2), (FCOS, 0.6, 0.55)), costs=costs.compact(bill, PRICES))
    by_hand = 2 * 0.02 + 3 * 0.1
    assert rows[CROWNS]["fixed_cost"] == pytest.approx(by_hand)
    assert rows[FCOS]["fixed_cost"] == pytest.approx(by_hand + 0.5)
    assert rows[FCOS]["cost_per_1000_now"] == pytest.approx(0.1 + by_hand + 0.5)
    assert rows[FCOS]["cost_per_1000_at_1m"] == pytest.approx(0.1 + (by_hand + 0.5) / 1000)
    assert rows[FCOS]["milliseconds"] == pytest.approx(100)
    human = rows["human"]
    assert human["cost_per_1000_now"] == human["cost_per_1000_at_1m"] == human["cost_per_1000"]


def test_every_slice_gets_its_own_verdict(tables) -> None:
    both = pa.concat_tables([measured((FCOS, 0.6, 0.55)), measured((FCOS, 0.2, 0.1), name="dense")])
    truth = tables.truth([("x", "cat", (0, 0, 9, 9))] * 1)
    table = verdict.decide(
        both,
        schema.table("trust").empty(),
        schema.table("costs").empty(),
        trained((FCOS, None)),
        truth,
        tables.members({"all": ["x", "y"], "dense": ["x"]}),
        ["x", "y"],
        verdict.Scale(),
        config(tables),
    )
    rows = {(r["slice"], r["model"]): r for r in table.to_pylist()}
    assert rows["all", FCOS]["recommended"] and rows["dense", "human"]["recommended"]
    assert rows["dense", "human"]["cost_per_1000"] == pytest.approx(120)
    assert rows["all", "human"]["cost_per_1000"] == pytest.approx(70)


def test_classification_is_about_accuracy_and_learning_curves_are_left_out(tables) -> None:
    project = tables.config(["cat"], task="classification", prices=PRICES.model_dump(), trust={"target": 0.8})
    evaluation = measured(("clip@1#0", 0.6, 0.5), ("probe@1#0", 0.9, 0.85), ("probe@1#1", 0.7, 0.6), metric="accuracy")
    work = (("embeddings", 10.0), ("tags", 1.0), ("predictions", 2.0))
    bill = costs.compact([spent(asset, seconds, 100) for asset, seconds in work], PRICES)
    models = trained(("probe@1#0", None), ("probe@1#1", 10))
    rows = decide(tables, evaluation, project, models=models, costs=bill)
    assert {m: r["option"] for m, r in rows.items()} == {
        "clip@1#0": "foundation",
        "probe@1#0": "trained",
        "human": "people",
    }
    assert taken(rows) == "probe@1#0" and rows["probe@1#0"]["seconds_per_1000"] == pytest.approx(120)
    assert rows["human"]["cost_per_1000"] == pytest.approx(20)


def test_undefined_quality_and_nothing_measured(tables) -> None:
    rows = decide(tables, measured((FCOS, None, None)))
    assert taken(rows) == "human" and "undefined" in rows[FCOS]["reason"]
    assert "no automatic option has been measured" in rows["human"]["reason"]
    assert list(decide(tables, measured())) == ["human"]


def test_a_single_class_is_not_told_twice(tables) -> None:
    config = tables.config(["cat"])
    rows = [
        {"model": "m@1#0", "split": "test", "slice": "all", "class_name": c, "metric": "AP50", "value": 0.8}
        | {"low": 0.7, "high": 0.9, "level": 0.95, "support": 9, "images": 9}
        for c in ("all", "cat")
    ]
    empty = {name: schema.table(name).empty() for name in ("trust", "costs", "models", "ground_truth")}
    found = verdict.decide(
        schema.table("evaluation").from_rows(rows), *empty.values(), tables.members({}), [], verdict.Scale(), config
    )
    assert set(found.column("class_name").to_pylist()) == {"all"}
