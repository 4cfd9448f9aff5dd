from __future__ import annotations

import numpy as np
import pytest

from pipeline import masks
from pipeline.models.compact_segmenter import CompactSegmenter
from pipeline.models.roles import Segmenter

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def segmenter() -> CompactSegmenter:
    return CompactSegmenter()


@pytest.fixture(scope="module")
def disc() -> tuple[np.ndarray, np.ndarray]:
    """A red disc on a noisy green ground, and its mask."""
    y, x = np.mgrid[:200, :260]
    inside = (x - 120) ** 2 + (y - 90) ** 2 <= 50**2
    image = np.random.default_rng(0).integers(60, 110, (200, 260, 3)).astype(np.uint8)
    image[..., 1] += 60
    image[inside] = (210, 40, 30)
    return image, inside


def test_a_plain_object_is_cut_out(segmenter: CompactSegmenter, disc: tuple[np.ndarray, np.ndarray]) -> None:
    assert isinstance(segmenter, Segmenter)
    image, inside = disc
    (found,) = segmenter.segment([image], [np.array([[70, 40, 171, 141]])])
    (mask,) = (masks.decode(counts, 200, 260) for counts in found.masks)
    assert (mask & inside).sum() / (mask | inside).sum() > 0.9
    assert found.scores.dtype == np.float32 and found.scores[0] > 0.7


def test_masks_stay_inside_their_boxes_whatever_the_box(
    segmenter: CompactSegmenter, disc: tuple[np.ndarray, np.ndarray]
) -> None:
    inner, outer = [[100, 70, 140, 100], [5, 5, 6, 6]], [[-20, -20, 60.4, 50.6], [250, 190, 400, 300]]
    boxes = np.array([*inner, *outer, [30, 30, 30, 80]])
    (found,) = segmenter.segment([disc[0]], [boxes])
    drawn = [masks.decode(counts, 200, 260) for counts in found.masks]
    for (x1, y1, x2, y2), mask, area, score in zip(boxes, drawn, found.area, found.scores, strict=True):
        y, x = np.nonzero(mask)
        assert area == len(y)
        if len(y):
            assert round(x1) <= x.min() and x.max() < round(x2) and round(y1) <= y.min() and y.max() < round(y2)
        assert 0 <= score <= 1 and (score > 0) == bool(mask.any())
    assert not drawn[4].any()


def test_no_boxes_give_no_masks_and_images_are_independent(
    segmenter: CompactSegmenter, disc: tuple[np.ndarray, np.ndarray]
) -> None:
    black, box = np.zeros((40, 50, 3), np.uint8), np.array([[70, 40, 171, 141]])
    first, second = segmenter.segment([black, disc[0]], [np.zeros((0, 4)), box])
    assert first.masks == () and first.area.shape == first.scores.shape == (0,)
    assert second.masks == segmenter.segment([disc[0]], [box])[0].masks
