"""Masks' twelve numbers are pycocotools' own, whatever is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import masks, schema
from pipeline.evaluate import mask_precision
from pipeline.evaluate.coco import METRICS, measure
from pipeline.evaluate.mask_ap import ranking
from tests.pipeline.evaluate.test_coco import reference

IDS, CLASSES, SIZE = ["i0", "i1", "i2"], ["cat", "dog"], 128
SIDE = st.sampled_from([6, 20, 31, 33, 60, 97, 110])
SHAPE = st.tuples(st.sampled_from(IDS), st.sampled_from(CLASSES), st.integers(0, 16), st.integers(0, 16), SIDE, SIDE)
TRUTH = st.lists(st.tuples(SHAPE, st.sampled_from([False, False, True])), max_size=10)
SEEN = st.lists(st.tuples(SHAPE, st.integers(-3, 3), st.sampled_from([0.25, 0.5, 0.75])), max_size=14)


def drawn(shape: Any, shift: int = 0) -> tuple[str, tuple[int, int, int, int]]:
    """An ellipse with a hole, and its box."""
    _, _, x, y, w, h = shape
    rows, columns = np.mgrid[:SIZE, :SIZE]
    x, y = max(0, x + shift), max(0, y - shift)
    inside = ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1
    inside[y + h // 2, x + w // 2 - 1 : x + w // 2 + 1] = False
    return masks.encode(inside), (x, y, x + w, y + h)


def tables_of(tables: Any, truth: list, seen: list) -> tuple[pa.Table, pa.Table, pa.Table]:
    people = [(s, drawn(s), crowd) for s, crowd in truth]
    found = [(s, drawn(s, shift), score) for s, shift, score in seen]
    theirs = tables.truth([(s[0], s[1], box) for s, (_, box), _ in people], is_crowd=[c for *_, c in people])
    ours = tables.boxes([(s[0], s[1], box, score) for s, (_, box), score in found])
    with_masks = [
        rows.set_column(rows.column_names.index("mask"), "mask", pa.array([m for _, (m, _), _ in made], pa.string()))
        for rows, made in ((ours, found), (theirs, people))
    ]
    images = pa.table({"image_id": IDS, "height": [SIZE] * 3, "width": [SIZE] * 3})
    return with_masks[0], with_masks[1], images


def expected(ours: pa.Table, theirs: pa.Table) -> np.ndarray:
    return reference(ours, theirs, IDS, CLASSES, (SIZE, SIZE)).stats


@settings(max_examples=80, deadline=None)
@given(TRUTH, SEEN.filter(bool))
def test_numbers_are_those_of_pycocotools(tables, truth: list, seen: list) -> None:
    ours, theirs, images = tables_of(tables, truth, seen)
    numbers = [value for value, _ in measure(ranking(ours, theirs, images, IDS, CLASSES)).values()]
    np.testing.assert_array_equal(np.nan_to_num(numbers, nan=-1), expected(ours, theirs))


def test_rows_of_evaluation_have_intervals_and_every_class(tables) -> None:
    shapes = [((i, c, 4, 4, 60, 40), False) for i in IDS for c in CLASSES]
    seen = [(s, k % 2, 0.5) for k, (s, _) in enumerate(shapes)]
    ours, theirs, images = tables_of(tables, shapes, seen)
    drawn_masks = schema.table("masks").from_rows(
        [
            {"annotation_id": r["annotation_id"], "image_id": r["image_id"], "batch": "b", "producer": "sam@1#0",
             "mask": r["mask"], "area": masks.area(r["mask"]), "score": 0.9, "stability": None}
            for r in ours.to_pylist()
        ]
    )  # fmt: skip
    config = tables.config(CLASSES, evaluation={"bootstrap": 50})
    bare = ours.set_column(ours.column_names.index("mask"), "mask", pa.nulls(ours.num_rows, pa.string()))
    members = tables.members({"first": IDS[:1]})
    found = mask_precision(bare, drawn_masks, theirs, images, tables.splits(IDS), members, config)
    assert {r["metric"] for r in found.to_pylist()} == {f"mask_{m}" for m in METRICS}
    row = tables.metric(found, "mask_AP")
    assert row["value"] == pytest.approx(expected(ours, theirs)[0]) and row["low"] <= row["value"] <= row["high"]
    assert tables.metric(found, "mask_AP50", class_name="dog", slice="first")["support"] == 1
    nothing = drawn_masks.slice(0, 0)
    assert not mask_precision(bare, nothing, theirs, images, tables.splits(IDS), members, config).num_rows
