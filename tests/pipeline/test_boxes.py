from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from pipeline import boxes

EDGE = st.integers(0, 40)
BOXES = st.lists(
    st.tuples(EDGE, EDGE, st.integers(1, 30), st.integers(1, 30)).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])),
    max_size=12,
)
PAIRS = (
    (boxes.to_xywh, boxes.from_xywh),
    (boxes.to_voc, boxes.from_voc),
    (lambda b: boxes.to_cxcywhn(b, 70, 90), lambda b: boxes.from_cxcywhn(b, 70, 90)),
)


@pytest.mark.parametrize(("there", "back"), PAIRS)
@given(found=BOXES)
@settings(deadline=None)
def test_conversions_undo_each_other(there, back, found) -> None:
    np.testing.assert_allclose(back(there(found)), boxes.as_boxes(found), atol=1e-9)


def test_conventions_by_hand() -> None:
    box = [[10, 20, 30, 60]]
    assert boxes.to_xywh(box).tolist() == [[10, 20, 20, 40]]
    assert boxes.to_voc(box).tolist() == [[11, 21, 30, 60]]  # the last pixel inside, counted from 1
    assert boxes.to_cxcywhn(box, 100, 200).tolist() == [[0.2, 0.2, 0.2, 0.2]]


@given(BOXES, BOXES)
@settings(deadline=None)
def test_overlaps_agree_with_pycocotools_and_with_pixels(a, b) -> None:
    ours, share = boxes.iou(a, b), boxes.coverage(a, b)
    assert ours.shape == share.shape == (len(a), len(b))
    if a and b:
        xywh = [boxes.to_xywh(x) for x in (a, b)]
        np.testing.assert_allclose(ours, coco.iou(*xywh, [0] * len(b)), atol=1e-9)
        np.testing.assert_allclose(share, coco.iou(*xywh, [1] * len(b)), atol=1e-9)
        grid = np.zeros((2, 80, 80), bool)
        for canvas, (x1, y1, x2, y2) in zip(grid, (a[0], b[0]), strict=True):
            canvas[y1:y2, x1:x2] = True
        assert boxes.intersection(a, b)[0, 0] == (grid[0] & grid[1]).sum()
        assert boxes.area(a)[0] == grid[0].sum()


@given(BOXES, st.integers(0, 999), st.floats(0.05, 0.95))
@settings(deadline=None)
def test_nms_keeps_what_no_better_box_suppresses(found, seed, threshold) -> None:
    scores = np.random.default_rng(seed).integers(0, 4, len(found)) / 4  # with ties
    kept = boxes.nms(found, scores, threshold)
    overlap = boxes.iou(found, found)
    order = sorted(range(len(found)), key=lambda i: (-scores[i], i))
    expected: list[int] = []
    for i in order:
        if all(overlap[j, i] <= threshold for j in expected):
            expected.append(i)
    assert kept.tolist() == expected


@given(BOXES, EDGE, EDGE, st.integers(1, 40), st.integers(1, 40))
@settings(deadline=None)
def test_a_window_sees_the_part_inside_it(found, x, y, width, height) -> None:
    inside, share = boxes.in_window(found, (x, y, width, height))
    window = [[x, y, x + width, y + height]]
    np.testing.assert_allclose(share, boxes.coverage(found, window).reshape(-1) if found else [])
    np.testing.assert_allclose(boxes.area(inside), boxes.intersection(found, window).reshape(-1) if found else [])
    assert (inside >= 0).all() and (inside <= [width, height] * 2).all()


def test_degenerate_boxes_have_no_area_and_no_overlap() -> None:
    flat = [[5, 5, 5, 9], [9, 9, 3, 3]]
    assert boxes.area(flat).tolist() == [0, 0]
    assert boxes.iou(flat, flat).tolist() == [[0, 0], [0, 0]]
    assert boxes.coverage(flat, [[0, 0, 20, 20]]).tolist() == [[0], [0]]
