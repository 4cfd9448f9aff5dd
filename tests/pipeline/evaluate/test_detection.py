from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline import schema
from pipeline.boxes import to_xywh
from pipeline.evaluate import evaluate
from pipeline.evaluate.coco import METRICS

CLASSES = ["cat", "dog"]
IDS = ["i0", "i1", "i2"]
BOX = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(4, 16), st.integers(4, 16)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
PLACE = st.tuples(st.sampled_from(IDS), st.sampled_from(CLASSES), BOX)
# Few scores, so that there are ties; few places, so that boxes overlap.
SEEN = st.lists(st.tuples(PLACE, st.sampled_from([0.125, 0.25, 0.5, 0.75, 1.0])), max_size=30)
TRUTH = st.lists(st.tuples(PLACE, st.sampled_from([False, False, False, True])), max_size=15)


def coco(seen: pa.Table, truth: pa.Table) -> COCOeval:
    def entries(rows: pa.Table) -> list[dict[str, Any]]:
        xywh = to_xywh(schema.box_array(rows))
        return [
            {
                "id": k + 1,
                "image_id": IDS.index(r["image_id"]),
                "category_id": CLASSES.index(r["class_name"]),
                "bbox": b.tolist(),
                "area": float(b[2] * b[3]),
                "score": r["score"],
                "iscrowd": int(r["is_crowd"] or r["ignore"]),
            }
            for k, (r, b) in enumerate(zip(rows.to_pylist(), xywh, strict=True))
        ]

    with contextlib.redirect_stdout(io.StringIO()):
        people = COCO()
        people.dataset = {
            "images": [{"id": i} for i in range(len(IDS))],
            "categories": [{"id": i} for i in range(len(CLASSES))],
            "annotations": entries(truth),
        }
        people.createIndex()
        run = COCOeval(people, people.loadRes(entries(seen)), "bbox")
        run.evaluate()
        run.accumulate()
    return run


def defined(values: np.ndarray) -> float | None:
    known = values[values > -1]
    return float(known.mean()) if known.size else None


@settings(max_examples=30, deadline=None)
@given(SEEN.filter(len), TRUTH, st.booleans())
def test_equal_to_pycocotools_with_crowds_and_ties(tables, seen: list, truth: list, as_crowd: bool) -> None:
    found = tables.boxes([(*place, score) for place, score in seen])
    flag = {"is_crowd" if as_crowd else "ignore": [crowd for _, crowd in truth]}
    people = tables.truth([place for place, _ in truth], **flag)
    config = tables.config(CLASSES, evaluation={"bootstrap": 0})
    ours = evaluate(found, people, tables.splits(IDS), tables.members({}), config)["evaluation"]
    run = coco(found, people)
    precision, recall = run.eval["precision"][..., 0, -1], run.eval["recall"][..., 0, -1]
    for number, name in [*enumerate(CLASSES), (slice(None), "all")]:
        expected = {
            "AP": precision[:, :, number],
            "AP50": precision[0, :, number],
            "AP75": precision[5, :, number],
            "AP_small": run.eval["precision"][:, :, number, 1, -1],
            "AR1": run.eval["recall"][:, number, 0, 0],
            "AR100": recall[:, number],
        }
        for metric, values in expected.items():
            value = tables.metric(ours, metric, class_name=name)["value"]
            assert value == pytest.approx(defined(values), abs=1e-9), (metric, name)


def test_a_slice_is_as_if_its_images_were_all_there_are(tables) -> None:
    generator = np.random.default_rng(1)
    ids = [f"i{k}" for k in range(12)]
    rows = [(i, "cat", (x, y, x + 10, y + 10)) for i in ids for x, y in generator.integers(0, 40, (4, 2)).tolist()]
    truth = tables.truth(rows)
    found = tables.boxes([(i, c, np.array(b) + generator.integers(-3, 4, 4), generator.random()) for i, c, b in rows])
    config = tables.config(evaluation={"bootstrap": 20})
    part = ids[3:8]
    whole = evaluate(found, truth, tables.splits(ids), tables.members({"some": part, "none": ["elsewhere"]}), config)
    alone = evaluate(found, truth, tables.splits(part), tables.members({}), config)["evaluation"]
    for metric in METRICS:
        row = tables.metric(whole["evaluation"], metric, slice="some")
        assert row["value"] == tables.metric(alone, metric)["value"]
        assert row["images"] == 5 and row["support"] == 20
        assert row["value"] is None or row["low"] <= row["value"] <= row["high"]
        empty = tables.metric(whole["evaluation"], metric, slice="none")
        assert empty["value"] is None and empty["low"] is None and empty["support"] == 0


def test_confusion_and_curve(tables) -> None:
    truth = tables.truth([("a", "cat", (0, 0, 10, 10)), ("a", "dog", (20, 20, 30, 30)), ("b", "cat", (0, 0, 10, 10))])
    found = tables.boxes(
        [
            ("a", "cat", (0, 0, 10, 10), 0.9),
            ("a", "cat", (20, 20, 30, 30), 0.8),
            ("b", "dog", (50, 50, 60, 60), 0.7),
            ("a", "dog", (21, 20, 31, 30), 0.2),
        ]
    )
    splits = pa.concat_tables([tables.splits(["a", "b"]), tables.splits(["v"], "val")])
    val = tables.truth([("v", "cat", (0, 0, 9, 9)), ("v", "dog", (20, 20, 29, 29))])
    seen = tables.boxes([("v", "cat", (0, 0, 9, 9), 0.75), ("v", "dog", (20, 20, 29, 29), 0.5)])
    out = evaluate(
        pa.concat_tables([found, seen]),
        pa.concat_tables([truth, val]),
        splits,
        tables.members({}),
        tables.config(CLASSES, evaluation={"bootstrap": 0}),
    )
    cells = {(r["actual"], r["predicted"]): r["count"] for r in out["confusion"].to_pylist() if r["split"] == "test"}
    assert cells == {("cat", "cat"): 1, ("dog", "cat"): 1, ("background", "dog"): 1, ("cat", "background"): 1}
    curve = [r for r in out["curves"].to_pylist() if r["split"] == "test" and r["class_name"] == "cat"]
    assert len(curve) == 101 and {r["curve"] for r in curve} == {"precision_recall"}
    area = np.mean([r["y"] for r in curve])
    assert area == pytest.approx(tables.metric(out["evaluation"], "AP50", class_name="cat")["value"])


def test_costs_of_errors_are_rows_of_their_own(tables) -> None:
    truth = tables.truth([("a", "cat", (0, 0, 10, 10)), ("b", "cat", (0, 0, 10, 10)), ("b", "dog", (40, 40, 60, 60))])
    found = tables.boxes([("a", "cat", (0, 0, 10, 10), 0.9), ("b", "cat", (40, 40, 60, 60), 0.8)])
    config = tables.config(CLASSES, evaluation={"bootstrap": 5})
    out = evaluate(found, truth, tables.splits(["a", "b"]), tables.members({"one": ["a"]}), config)["evaluation"]
    wrong = tables.metric(out, "dAP_classification")
    # The dog is found at last, and nothing false is left: 51/101 and 1, from 51/101 and 0.
    assert wrong["value"] == pytest.approx(0.5) and wrong["support"] == 1 and wrong["low"] is None
    assert tables.metric(out, "dAP_missed")["value"] == pytest.approx((1 - 51 / 101) / 2)
    assert tables.metric(out, "dAP_missed")["support"] == 1
    assert tables.metric(out, "dAP_false_negatives")["support"] == 2
    alone = tables.metric(out, "dAP_classification", slice="one")
    assert alone["value"] == 0 and alone["support"] == 0
