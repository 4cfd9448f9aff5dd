"""Windows cover an image; objects that seams cut come out whole, once."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.boxes import in_window, iou
from pipeline.models import seams


@given(st.integers(1, 900), st.integers(1, 900), st.integers(40, 300), st.integers(0, 39))
def test_windows_cover_every_pixel_and_overlap_enough(width: int, height: int, size: int, overlap: int) -> None:
    found = seams.windows(width, height, size, overlap)
    assert found[0].tolist() == [0, 0, width, height]
    seen = np.zeros((height, width), bool)
    for x, y, w, h in found[1:] if len(found) > 1 else found:
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
        seen[y : y + h, x : x + w] = True
    assert seen.all()
    for axis in (0, 1):
        starts = np.unique(found[1:, axis])
        assert (np.diff(starts) <= size - overlap).all()


def _grid_objects(rng: np.random.Generator, cells: int, edge: int) -> np.ndarray:
    """One box in each cell of a grid, so that none overlap, at least 8 pixels apart."""
    corners = []
    for row in range(cells):
        for column in range(cells):
            low = rng.uniform(4, edge * 0.45, 2)
            high = rng.uniform(edge * 0.55, edge - 4, 2)
            corners.append([column * edge + low[0], row * edge + low[1], column * edge + high[0], row * edge + high[1]])
    return np.array(corners)


def _seen(objects: np.ndarray, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a perfect detector says of each window."""
    boxes, owner = [np.zeros((0, 4))], []
    for number, window in enumerate(tiles):
        inside, share = in_window(objects, tuple(window))
        inside = inside[share > 0] + np.array([window[0], window[1]] * 2)
        boxes.append(inside)
        owner += [number] * len(inside)
    return np.concatenate(boxes), np.array(owner, np.int64)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(150, 0), (150, 30), (220, 60), (97, 13)]), st.booleans())
@example(127, (220, 60), False)  # a whole box near a border, and a half of it that has the better score
def test_objects_cut_by_seams_come_out_whole_and_once(seed: int, tiling: tuple[int, int], whole: bool) -> None:
    rng = np.random.default_rng(seed)
    objects = _grid_objects(rng, 5, 120)
    tiles = seams.windows(600, 600, *tiling)
    boxes, owner = _seen(objects, tiles)
    if not whole:  # the pass over the whole image saw nothing: all must come out of pieces
        boxes, owner = boxes[owner > 0], owner[owner > 0]
    merged = seams.merge(np.zeros(len(boxes), np.int64), boxes, rng.uniform(0.2, 1, len(boxes)), owner, tiles)
    assert len(merged.boxes) == len(objects)
    nearest = merged.boxes[iou(objects, merged.boxes).argmax(axis=1)]
    # A box that ends so near a seam may be cut there or not: nobody can tell.
    assert np.abs(nearest - objects).max() <= max(2.0, 0.01 * tiling[0])
    assert len(merged.source) == len(merged.boxes)


def test_groups_are_never_joined() -> None:
    tiles = seams.windows(200, 100, 110, 20)
    boxes, owner = _seen(np.array([[60.0, 20, 150, 60]]), tiles)
    boxes, owner = boxes[owner > 0], owner[owner > 0]
    apart = seams.merge(np.arange(len(boxes)), boxes, np.ones(len(boxes)), owner, tiles)
    assert np.array_equal(apart.boxes, boxes)
    joined = seams.merge(np.zeros(len(boxes), np.int64), boxes, np.ones(len(boxes)), owner, tiles)
    assert joined.boxes.tolist() == [[60, 20, 150, 60]]


def test_neighbours_of_one_window_stay_two() -> None:
    tiles = seams.windows(300, 100, 160, 40)
    boxes = np.array([[10.0, 10, 60, 60], [12.0, 10, 62, 60]])
    merged = seams.merge(np.zeros(2, np.int64), boxes, np.array([0.9, 0.8]), np.array([1, 1]), tiles)
    assert len(merged.boxes) == 2


def test_a_joined_object_has_its_best_half_s_score() -> None:
    tiles = seams.windows(200, 100, 110, 20)
    boxes, owner = _seen(np.array([[60.0, 20, 150, 60]]), tiles)
    boxes, owner = boxes[owner > 0], owner[owner > 0]
    merged = seams.merge(np.zeros(2, np.int64), boxes, np.array([0.3, 0.7]), owner, tiles)
    assert merged.source.tolist() == [1]


@pytest.mark.parametrize("size", [0, 500])
def test_an_image_that_fits_is_left_alone(size: int) -> None:
    tiles = seams.windows(300, 200, size, 10)
    assert len(tiles) == 1
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    assert len(seams.merge(np.zeros(2, np.int64), boxes, np.ones(2), np.zeros(2, np.int64), tiles).boxes) == 2
