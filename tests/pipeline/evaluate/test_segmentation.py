from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline import masks as rle
from pipeline import schema
from pipeline.evaluate import mask_agreement


def square(x: int, edge: int) -> np.ndarray:
    mask = np.zeros((100, 100), bool)
    mask[10 : 10 + edge, x : x + edge] = True
    return mask


def drawn(truth: pa.Table, shapes: list[np.ndarray]) -> pa.Table:
    rows = [
        {"annotation_id": a, "image_id": i, "batch": "b", "producer": "seg@1#0", "mask": rle.encode(m), "score": 1.0}
        | {"area": int(m.sum())}
        for a, i, m in zip(truth["annotation_id"].to_pylist(), truth["image_id"].to_pylist(), shapes, strict=True)
    ]
    return schema.table("masks").from_rows(rows)


def test_mean_iou_is_that_of_the_pixels(tables) -> None:
    theirs = [square(10, 40), square(20, 30), square(5, 20), square(0, 10)]
    ours = [square(15, 40), square(20, 30), square(60, 20), square(0, 10)]
    truth = tables.truth(
        [
            ("a", "cat", (0, 0, 50, 50)),
            ("a", "dog", (1, 0, 50, 50)),
            ("c", "cat", (2, 0, 50, 50)),
            ("c", "dog", (3, 0, 50, 50)),
        ],
        mask=[rle.encode(m) for m in theirs],
        ignore=[False, False, False, True],
    )
    config = tables.config(["cat", "dog"])
    found = mask_agreement(
        drawn(truth, ours),
        truth,
        tables.images(["a", "c"]),
        tables.splits(["a", "c"]),
        tables.members({"one": ["a"]}),
        config,
    )
    expected = [(o & t).sum() / (o | t).sum() for o, t in zip(ours, theirs, strict=True)]
    assert tables.metric(found, "mask_iou")["value"] == pytest.approx(np.mean(expected[:3]))
    assert tables.metric(found, "mask_iou", class_name="cat")["value"] == pytest.approx(np.mean([expected[0], 0]))
    assert tables.metric(found, "mask_iou", slice="one")["support"] == 2
    row = tables.metric(found, "mask_iou")
    assert row["low"] <= row["value"] <= row["high"] and row["support"] == 3


def test_without_masks_there_is_nothing_to_say(tables) -> None:
    truth = tables.truth([("a", "cat", (0, 0, 5, 5))])
    given = truth, tables.images(["a"]), tables.splits(["a"]), tables.members({}), tables.config()
    assert mask_agreement(schema.table("masks").empty(), *given).num_rows == 0
