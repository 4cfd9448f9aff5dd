from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco

from pipeline import masks
from pipeline.errors import DataError

MASK = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=20))


def counts_by_hand(text: str) -> list[int]:
    """Run lengths of COCO's compressed counts, decoded by its specification."""
    runs: list[int] = []
    at = 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            chunk = ord(text[at]) - 48
            value |= (chunk & 0x1F) << shift
            more = bool(chunk & 0x20)
            at, shift = at + 1, shift + 5
            if not more and chunk & 0x10:
                value |= -1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs


@given(MASK)
@settings(deadline=None)
def test_masks_survive_the_round_trip(mask: np.ndarray) -> None:
    text = masks.encode(mask)
    np.testing.assert_array_equal(masks.decode(text, *mask.shape), mask)
    assert masks.area(text) == mask.sum()
    runs = counts_by_hand(text)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    np.testing.assert_array_equal(flat.reshape(mask.shape, order="F"), mask)


@given(MASK)
@settings(deadline=None)
def test_the_box_is_tight(mask: np.ndarray) -> None:
    found = masks.box(masks.encode(mask), *mask.shape)
    if not mask.any():
        assert found.tolist() == [0, 0, 0, 0]
        return
    ys, xs = np.nonzero(mask)
    assert found.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


FRAME = st.tuples(st.integers(1, 24), st.integers(1, 24))
CROP = FRAME.flatmap(
    lambda size: st.tuples(
        st.just(size), st.integers(0, size[0]), st.integers(0, size[1]), st.integers(0, 24), st.integers(0, 24)
    )
)


@settings(deadline=None, max_examples=200)
@given(st.lists(CROP, max_size=6), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))
def test_crops_are_encoded_byte_for_byte_as_by_pycocotools(places: list, seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    crops, corners, sizes, expected = [], [], [], []
    for (height, width), y, x, tall, wide in places:
        crop = generator.random((min(tall, height - y), min(wide, width - x))) < share
        whole = np.zeros((height, width), np.uint8, order="F")
        whole[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        crops.append(crop)
        corners.append((x, y))
        sizes.append((height, width))
        expected.append(coco.encode(whole)["counts"].decode())
    height, width = np.array(sizes, int).reshape(-1, 2).T
    texts = masks.encode_crops(crops, np.array(corners).reshape(-1, 2), height, width)
    assert texts == expected
    rles = [{"size": list(size), "counts": t.encode()} for size, t in zip(sizes, texts, strict=True)]
    for text, size, theirs_ in zip(texts, sizes, rles, strict=True):
        np.testing.assert_array_equal(masks.decode(text, *size), coco.decode(theirs_).astype(bool))


def test_long_runs_have_long_texts() -> None:
    """Heights up to the millions: runs of one to five groups, and differences of either sign."""
    generator = np.random.default_rng(0)
    for digits in range(1, 7):
        height = 10**digits
        crop = np.zeros((height // 2, 1), bool)
        crop[np.sort(generator.integers(0, len(crop), 7))] = True
        whole = np.zeros((height, 3), np.uint8, order="F")
        whole[height // 4 : height // 4 + len(crop), 1:2] = crop
        (text,) = masks.encode_crops([crop], [(1, height // 4)], height, 3)
        assert text == coco.encode(whole)["counts"].decode()
        np.testing.assert_array_equal(masks.decode(text, height, 3), whole)


def test_large_noise_and_many_pieces_do_not_depend_on_how_they_are_worked_on(monkeypatch) -> None:
    generator = np.random.default_rng(0)
    found = generator.random((40, 90, 70)) < 0.5
    texts = masks.encode_many(found)
    assert texts == [coco.encode(np.asfortranarray(m, np.uint8))["counts"].decode() for m in found]
    for text, mask in zip(texts, found, strict=True):
        np.testing.assert_array_equal(masks.decode(text, 90, 70), mask)
    monkeypatch.setattr(masks, "_PIXELS_AT_ONCE", 10_000)
    assert masks.encode_many(found) == texts


def test_what_lies_outside_the_image_is_refused() -> None:
    for corner in ((-1, 0), (0, -1), (3, 0), (0, 4)):
        with pytest.raises(ValueError, match="outside"):
            masks.encode_crops([np.ones((2, 3), bool)], [corner], 5, 5)


def test_a_mask_of_another_size_is_refused() -> None:
    """pycocotools 2.0.11 makes a (6, 6) picture out of these 24 pixels and of what lies in memory behind them."""
    text = masks.encode(np.ones((4, 6), bool))
    for size in ((6, 6), (2, 2)):
        with pytest.raises(DataError, match="fill 24 pixels"):
            masks.decode(text, *size)


@pytest.mark.parametrize("text", ["", "o", "0o", "é", " ", "0~", "o" * 20 + "0"])
def test_what_is_no_mask_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="are not run lengths"):
        masks.decode(text, 4, 6)


def test_runs_of_negative_length_are_refused() -> None:
    with pytest.raises(DataError, match="fill 24 pixels"):
        masks.decode("i0O", 4, 6)  # 25 outside, -1 inside


def test_areas_of_more_masks_than_pycocotools_can_count_at_once() -> None:
    texts = masks.encode_many(np.ones((300, 9, 9), bool))
    assert [masks.area(text) for text in texts] == [81] * 300
    # Under NumPy 2 a list of more than 255 masks overflows a counter there.
    with pytest.raises(OverflowError):
        coco.area([{"size": [9, 9], "counts": t.encode()} for t in texts])


def test_iou_is_that_of_pixels_with_more_than_255_masks() -> None:
    generator = np.random.default_rng(0)
    found = generator.random((300, 8, 8)) < 0.5
    texts = [masks.encode(m) for m in found]
    ours = masks.iou(texts, texts[:3], 8, 8)
    both = (found[:, None] & found[None, :3]).sum(axis=(2, 3))
    either = (found[:, None] | found[None, :3]).sum(axis=(2, 3))
    np.testing.assert_allclose(ours, both / either)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 2), (2, 0)])
def test_iou_of_no_masks(n: int, m: int) -> None:
    text = masks.encode(np.ones((4, 4), bool))
    assert masks.iou([text] * n, [text] * m, 4, 4).shape == (n, m)


def test_polygons_fill_what_they_enclose_and_are_united() -> None:
    square = [4.0, 6.0, 20.0, 6.0, 20.0, 30.0, 4.0, 30.0]
    other = [10.0, 20.0, 38.0, 20.0, 38.0, 34.0, 10.0, 34.0]
    expected = np.zeros((40, 40), bool)
    expected[6:30, 4:20] = expected[20:34, 10:38] = True
    np.testing.assert_array_equal(masks.decode(masks.from_polygons([square, other], 40, 40), 40, 40), expected)
    triangle = masks.from_polygons([[10, 10, 190, 30, 90, 180]], 200, 200)
    assert masks.area(triangle) == pytest.approx(0.5 * abs(180 * 170 - 80 * 20), rel=0.01)
