from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline import masks, schema
from pipeline.trust.judge import Answers, judge


def at(x: float) -> tuple[float, float, float, float]:
    return (x, 0, x + 10, 10)


def judged(kind, found: pa.Table, truth: pa.Table, gold: list[str], **more) -> dict[str, Answers]:
    return dict(judge(kind, found, truth, gold, ["cat", "dog"], 0.5, **more))


def test_boxes_by_overlap_and_class(tables) -> None:
    truth = tables.truth([("g", "cat", at(0)), ("h", "cat", at(0)), ("h", "dog", at(50))])
    seen = [("g", "cat", at(0), 0.9), ("g", "cat", at(1), 0.8), ("h", "dog", at(0), 0.7), ("h", "dog", at(48), 0.6)]
    found = judged("detection", tables.boxes(seen), truth, ["g", "h"])
    assert found["cat"].right.tolist() == [True, False] and found["cat"].objects.tolist() == [1, 1]
    assert found["dog"].image.tolist() == [1, 1] and found["dog"].right.tolist() == [False, True]


def test_what_lies_in_an_ignore_region_is_no_answer(tables) -> None:
    truth = tables.truth([("g", "cat", at(0)), ("g", "cat", at(50))], ignore=[False, True])
    seen = tables.boxes([("g", "cat", at(0), 0.9), ("g", "cat", (52, 0, 57, 5), 0.8)])
    found = judged("detection", seen, truth, ["g"])["cat"]
    assert found.right.tolist() == [True] and found.objects.tolist() == [1]


def drawn(x: int, width: int) -> str:
    picture = np.zeros((20, 100), bool)
    picture[:10, x : x + width] = True
    return masks.encode(picture)


def test_masks_by_their_own_overlap(tables) -> None:
    """The first mask fills its box as people's does, the second hardly; the third lies on an ignored one."""
    truth = tables.truth(
        [("g", "cat", at(0)), ("g", "cat", at(20)), ("g", "cat", at(40))],
        mask=[drawn(0, 10), drawn(20, 10), drawn(40, 10)],
        ignore=[False, False, True],
    )
    seen = tables.boxes(
        [("g", "cat", at(0), 0.9), ("g", "cat", at(20), 0.8), ("g", "cat", at(40), 0.7), ("g", "cat", at(0), 0.2)],
        mask=[drawn(0, 9), drawn(20, 2), drawn(40, 10), drawn(0, 10)],
    )
    sizes = schema.table("images").from_rows(
        [r | {"width": 100, "height": 20} for r in tables.images(["g"]).to_pylist()]
    )
    found = judged("masks", seen, truth, ["g"], images=sizes)
    assert found["cat"].right.tolist() == [True, False, False] and found["cat"].objects.tolist() == [2]
    assert len(found["dog"].score) == 0


def test_counts_by_equality(tables) -> None:
    truth = tables.truth([("g", "cat", at(0)), ("g", "cat", at(20)), ("h", "dog", at(0))])
    seen = tables.boxes([("g", "cat", None, 0.9), ("h", "cat", None, 0.8), ("h", "dog", None, 0.7)])
    seen = seen.append_column("count", pa.array([2, 1, 1]))
    found = judged("counts", seen, truth, ["g", "h"])
    assert found["cat"].right.tolist() == [True, False] and found["dog"].right.tolist() == [True]


def test_tags_by_class_where_people_named_one(tables) -> None:
    rows = [("g", "cat", None, 0.2), ("h", "cat", None, 0.3), ("i", "dog", None, 0.4), ("g", "dog", None, 0.1)]
    tags = tables.boxes(rows, name="tags", probability=[0.9, 0.8, 0.7, 0.1], rank=[1, 1, 1, 2])
    truth = tables.truth([("g", "cat", None), ("h", "dog", None)])
    found = judged("classification", schema.best_classes(tags), truth, ["g", "h", "i"])
    assert found["cat"].right.tolist() == [True, False] and found["cat"].score == pytest.approx([0.9, 0.8])
    assert found["dog"].objects.tolist() == [0, 1, 0] and len(found["dog"].score) == 0
