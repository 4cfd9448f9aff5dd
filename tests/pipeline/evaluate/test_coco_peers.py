"""The quicker rivals of pycocotools on random input: what they agree with us on, and where they do not."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from pipeline import schema
from pipeline.boxes import area, to_xywh
from pipeline.evaluate.coco import AREAS, MAX_DETECTIONS, curves, measure
from tests.pipeline.evaluate.test_coco import CLASSES, FAR, IDS, NEAR, TRUTH, drawn, scene_of

pytestmark = pytest.mark.peers


@settings(max_examples=100, deadline=None)
@given(TRUTH, NEAR, FAR)
def test_hotcoco_agrees_to_the_last_digit(tables, truth: list, near: list, far: list) -> None:
    from hotcoco import COCO, COCOeval

    found, people = drawn(tables, truth, near, far, True)
    people_coco = COCO.from_arrays(
        [{"id": i} for i in range(len(IDS))],
        [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
        numbers(people, "image_id", IDS),
        numbers(people, "class_name", CLASSES),
        to_xywh(schema.box_array(people)),
        area=area(schema.box_array(people)),
        iscrowd=people.column("is_crowd").to_numpy(zero_copy_only=False).astype(bool),
    )
    columns = [numbers(found, "image_id", IDS), to_xywh(schema.box_array(found)), found.column("score").to_numpy()]
    rows = np.column_stack([*columns, numbers(found, "class_name", CLASSES)]).astype(float).reshape(-1, 7)
    if not len(rows):
        return
    run = COCOeval(people_coco, people_coco.load_res(rows), "bbox")
    run.evaluate()
    run.accumulate()
    with contextlib.redirect_stdout(io.StringIO()):
        run.summarize()
    ranking = scene_of(found, people, IDS, CLASSES).ranking
    for rule in range(len(AREAS)):
        for place, most in enumerate(MAX_DETECTIONS):
            ours = curves(ranking, rule, most)
            np.testing.assert_array_equal(ours.precision, run.eval["precision"][:, :, :, rule, place])
    np.testing.assert_array_equal(np.nan_to_num([v for v, _ in measure(ranking).values()], nan=-1), run.stats)


def numbers(rows: pa.Table, column: str, known: list[str]) -> np.ndarray:
    return np.array([known.index(v) for v in rows.column(column).to_pylist()], np.int64)


@settings(max_examples=60, deadline=None)
@given(TRUTH, NEAR, FAR)
def test_faster_coco_eval_has_the_same_numbers(tables, truth: list, near: list, far: list) -> None:
    from faster_coco_eval import COCO, COCOeval_faster

    found, people = drawn(tables, truth, near, far, True)
    if not len(found) or not len(people):
        return  # it reads neither an empty list nor a file without annotations
    names = [{"id": k, "name": name} for k, name in enumerate(CLASSES)]
    images = [{"id": k, "width": 200, "height": 200} for k in range(len(IDS))]
    with contextlib.redirect_stdout(io.StringIO()):
        people_coco = COCO({"images": images, "categories": names, "annotations": entries(people, crowds=True)})
        run = COCOeval_faster(people_coco, people_coco.loadRes(entries(found)), "bbox", print_function=lambda _: None)
        run.evaluate()
        run.accumulate()
        run.summarize()
    ours = [v for v, _ in measure(scene_of(found, people, IDS, CLASSES).ranking).values()]
    np.testing.assert_allclose(np.nan_to_num(ours, nan=-1), run.stats[: len(ours)], rtol=0, atol=1e-12)


def entries(rows: pa.Table, crowds: bool = False) -> list[dict]:
    boxes, columns = to_xywh(schema.box_array(rows)), rows.to_pylist()
    found = []
    for k, (row, box) in enumerate(zip(columns, boxes, strict=True)):
        same = {"id": k + 1, "image_id": IDS.index(row["image_id"]), "category_id": CLASSES.index(row["class_name"])}
        rest = {"iscrowd": int(row["is_crowd"])} if crowds else {"score": row["score"]}
        found.append(same | rest | {"bbox": box.tolist(), "area": float(box[2] * box[3])})
    return found
