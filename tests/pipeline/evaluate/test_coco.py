"""Equal to pycocotools to the last digit: both numbers and arrays, whatever is drawn."""

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

from pipeline import masks, schema
from pipeline.boxes import to_xywh
from pipeline.evaluate.coco import AREAS, MAX_DETECTIONS, METRICS, Ranking, curves, measure
from pipeline.evaluate.resampled import resampled
from pipeline.evaluate.scene import Objects, Scene

CLASSES = ["cat", "dog", "emu"]
IDS = ["i0", "i1", "i2", "i3"]
# Sides around the limits of COCO's areas: 32 and 96 are in two ranges each.
SIDE = st.sampled_from([8, 16, 30, 31, 32, 33, 48, 64, 95, 96, 97, 120])
BOX = st.tuples(st.integers(0, 60), st.integers(0, 60), SIDE, SIDE).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
PLACE = st.tuples(st.sampled_from(IDS), st.sampled_from(CLASSES[:2]), BOX)
# Few scores, so that there are ties; detections beside objects, so that many match.
SCORE = st.sampled_from([0.125, 0.25, 0.5, 0.75, 1.0])
SHIFT = st.tuples(*[st.integers(-4, 4)] * 4)
TRUTH = st.lists(st.tuples(PLACE, st.sampled_from([False, False, False, True])), max_size=15)
NEAR = st.lists(st.tuples(st.integers(0, 14), SHIFT, SCORE), max_size=25)
FAR = st.lists(st.tuples(PLACE, SCORE), max_size=10)


def reference(
    seen: pa.Table, truth: pa.Table, ids: list[str], classes: list[str], size: tuple[int, int] | None = None
) -> COCOeval:
    """pycocotools, fed with the same rows; of their masks where `size`, (height, width) of every image, is given."""

    def entries(rows: pa.Table) -> list[dict[str, Any]]:
        return [
            {
                "id": k + 1,
                "image_id": ids.index(r["image_id"]),
                "category_id": classes.index(r["class_name"]),
                "bbox": b.tolist(),
                "area": float(b[2] * b[3]),
                "score": r["score"],
                "iscrowd": int(r["is_crowd"] or r["ignore"]),
            }
            | (_drawn(r["mask"], size) if size else {})
            for k, (r, b) in enumerate(zip(rows.to_pylist(), to_xywh(schema.box_array(rows)), strict=True))
            if r["image_id"] in ids
        ]

    with contextlib.redirect_stdout(io.StringIO()):
        people = COCO()
        people.dataset = {
            "images": [{"id": i, "height": h, "width": w} for i in range(len(ids)) for h, w in [size or (0, 0)]],
            "categories": [{"id": i} for i in range(len(classes))],
            "annotations": entries(truth),
        }
        people.createIndex()
        found = entries(seen)
        for entry in found if size else []:
            del entry["bbox"]  # else loadRes takes the box's area for the mask's
        answers = people.loadRes(found) if found else COCO()
        if not found:
            answers.dataset = {**people.dataset, "annotations": []}
            answers.createIndex()
        run = COCOeval(people, answers, "segm" if size else "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def _drawn(mask: str, size: tuple[int, int]) -> dict[str, Any]:
    return {"segmentation": {"size": list(size), "counts": mask}, "area": masks.area(mask)}


def scene_of(seen: pa.Table, truth: pa.Table, ids: list[str], classes: list[str]) -> Scene:
    return Scene.of(Objects.read(seen, ids, classes), Objects.read(truth, ids, classes), len(ids), classes, 0.5)


def assert_equal(ranking: Ranking, run: COCOeval) -> None:
    for rule in range(len(AREAS)):
        for place, most in enumerate(MAX_DETECTIONS):
            ours = curves(ranking, rule, most)
            np.testing.assert_array_equal(ours.precision, run.eval["precision"][:, :, :, rule, place])
            np.testing.assert_array_equal(ours.recall, run.eval["recall"][:, :, rule, place])
    numbers = [value for value, _ in measure(ranking).values()]
    np.testing.assert_array_equal(np.nan_to_num(numbers, nan=-1), run.stats)


def drawn(tables: Any, truth: list, near: list, far: list, as_crowd: bool) -> tuple[pa.Table, pa.Table]:
    people = tables.truth([p for p, _ in truth], **{"is_crowd" if as_crowd else "ignore": [c for _, c in truth]})
    beside = [
        (image, name, tuple(np.add(box, shift)), score)
        for k, shift, score in near
        if k < len(truth)
        for (image, name, box) in [truth[k][0]]
    ]
    return tables.boxes(beside + [(*place, score) for place, score in far]), people


@settings(max_examples=200, deadline=None)
@given(TRUTH, NEAR, FAR, st.booleans())
def test_arrays_and_numbers_are_those_of_pycocotools(tables, truth: list, near: list, far: list, crowd: bool) -> None:
    found, people = drawn(tables, truth, near, far, crowd)
    assert_equal(scene_of(found, people, IDS, CLASSES).ranking, reference(found, people, IDS, CLASSES))


@settings(max_examples=60, deadline=None)
@given(TRUTH, NEAR, FAR, st.sets(st.sampled_from(IDS), min_size=1))
def test_a_subset_is_as_if_there_were_no_other_images(tables, truth: list, near: list, far: list, part: set) -> None:
    found, people = drawn(tables, truth, near, far, True)
    ids = sorted(part)
    ranking = scene_of(found, people, IDS, CLASSES).ranking.on(np.array([IDS.index(i) for i in ids]))
    assert_equal(ranking, reference(found, people, ids, CLASSES))


def crowded(tables: Any, images: int, objects: int, seed: int) -> tuple[pa.Table, pa.Table, list[str]]:
    """Many boxes an image, more than a hundred of one class, scores with and without ties."""
    generator = np.random.default_rng(seed)
    ids = [f"i{k:02d}" for k in range(images)]
    corner = generator.integers(0, 300, (images, objects, 2))
    boxes = np.concatenate([corner, corner + generator.integers(10, 160, corner.shape)], axis=2)
    moved = boxes + generator.integers(-4, 5, boxes.shape)
    names = generator.choice(CLASSES[:2], (images, objects), p=[0.9, 0.1])
    score = generator.random((images, objects)).round(2)
    there = [(ids[i], names[i, k], boxes[i, k]) for i in range(images) for k in range(objects * 3 // 4)]
    said = [(ids[i], names[i, k], moved[i, k], score[i, k]) for i in range(images) for k in range(objects)]
    return tables.boxes(said), tables.truth(there, is_crowd=(generator.random(len(there)) < 0.05).tolist()), ids


def test_more_than_a_hundred_boxes_in_an_image_are_cut_as_in_pycocotools(tables) -> None:
    found, people, ids = crowded(tables, 4, 200, 0)
    assert_equal(scene_of(found, people, ids, CLASSES).ranking, reference(found, people, ids, CLASSES))


def test_objects_are_as_large_as_their_masks(tables) -> None:
    """COCO's files give the area of the mask; a thin thing in a large box is small."""
    whole = np.zeros((100, 100), bool)
    whole[np.arange(10, 60), np.arange(10, 60)] = True
    drawn = [masks.encode(whole), None]
    truth = tables.truth([("i0", "cat", (10, 10, 60, 60)), ("i1", "cat", (0, 0, 50, 50))], mask=drawn)
    seen = Objects.read(truth, IDS, CLASSES, by_mask=True)
    assert seen.area.tolist() == [50, 2500]
    assert Objects.read(truth, IDS, CLASSES).area.tolist() == [2500, 2500]


def test_blocks_of_pairs_do_not_change_the_matching(tables, monkeypatch) -> None:
    from pipeline import matching

    found, people, ids = crowded(tables, 6, 40, 1)
    whole = scene_of(found, people, ids, CLASSES).ranking
    monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", 500)
    parts = scene_of(found, people, ids, CLASSES).ranking
    for name in ("level", "place", "right"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


@settings(max_examples=60, deadline=None)
@given(TRUTH, NEAR, FAR)
def test_samples_of_ones_are_the_plain_numbers(tables, truth: list, near: list, far: list) -> None:
    ranking = scene_of(*drawn(tables, truth, near, far, True), IDS, CLASSES).ranking
    ones = resampled(ranking, np.ones((2, len(IDS)), np.int32))
    for name, (_, by_class) in measure(ranking).items():
        np.testing.assert_allclose(ones[name][:, 1], by_class, atol=1e-12)


def test_weights_leave_out_and_repeat_images(tables) -> None:
    """A weight of 0 leaves an image out; where copies of an image tie, only the order among them is open."""
    found, people, ids = crowded(tables, 12, 12, 2)
    ranking = scene_of(found, people, ids, CLASSES).ranking
    left = resampled(ranking, 1 - np.eye(len(ids), dtype=np.int32))
    for k in range(len(ids)):
        for name, (_, by_class) in measure(ranking.on(np.delete(np.arange(len(ids)), k))).items():
            np.testing.assert_allclose(left[name][:, k], by_class, atol=1e-12)
    twice = resampled(ranking, np.full((1, len(ids)), 2))
    for name, (_, by_class) in measure(ranking).items():
        np.testing.assert_allclose(twice[name][:, 0], by_class, atol=1e-12 if name.startswith("AR") else 0.05)


def test_draws_do_not_depend_on_the_chunk_size(tables, monkeypatch) -> None:
    from pipeline.evaluate import resampled as module

    found, people, ids = crowded(tables, 30, 30, 4)
    ranking = scene_of(found, people, ids, CLASSES).ranking
    weights = np.random.default_rng(0).multinomial(len(ids), np.ones(len(ids)) / len(ids), 9)
    whole = resampled(ranking, weights)
    monkeypatch.setattr(module, "_CELLS_AT_ONCE", 900)
    for name, values in resampled(ranking, weights).items():
        np.testing.assert_allclose(values, whole[name], atol=1e-12)


def test_only_what_is_asked_for_is_resampled(tables) -> None:
    found, people, ids = crowded(tables, 5, 10, 5)
    ranking = scene_of(found, people, ids, CLASSES).ranking
    weights = np.ones((1, len(ids)), np.int32)
    some = resampled(ranking, weights, ["AP50", "AP75", "AR10"])
    assert list(some) == ["AP50", "AP75", "AR10"]
    every = resampled(ranking, weights)
    assert set(every) == set(METRICS)
    for name, values in some.items():
        np.testing.assert_array_equal(values, every[name])


@pytest.mark.parametrize("rows", [0, 1, 5, 300, 1000, 1024])
def test_accumulating_in_blocks_is_accumulating(rows: int) -> None:
    from pipeline.evaluate.resampled import _accumulate

    values = np.random.default_rng(rows).integers(0, 9, (rows, 3)).astype(float)
    for operation in (np.add, np.maximum):
        for way in (1, -1):
            ours = values.copy()
            _accumulate(operation, ours[::way])
            np.testing.assert_array_equal(ours[::way], operation.accumulate(values[::way], axis=0))
