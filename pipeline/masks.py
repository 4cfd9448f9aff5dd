"""Masks: COCO compressed RLE counts (column-major); the size is the image row's.

The lengths of a mask's runs down its columns, one column after another, outside and inside in turn, beginning
outside. In the text each length from the fourth on is the difference from the one two before, in groups of five
bits, lowest first; a sixth bit says that more follow (pycocotools' maskApi.c). Text is made here, for many masks
at once and byte-equal to pycocotools', and read here, as pycocotools fills a picture of another size with whatever
lies in memory; areas, boxes and overlaps are pycocotools'.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco

from pipeline.errors import DataError

Ints = NDArray[np.int64]
_BITS, _MORE, _FIRST = 5, 0x20, 48
_PIXELS_AT_ONCE = 1_000_000  # what the processor's cache holds


def encode(mask: NDArray[np.bool_]) -> str:
    """RLE counts of one (height, width) mask."""
    return encode_many(np.asarray(mask, bool)[None])[0]


def encode_many(masks: NDArray[np.bool_]) -> list[str]:
    """RLE counts of (n, height, width) masks."""
    return encode_crops(list(masks), np.zeros((len(masks), 2)), *masks.shape[1:])


def encode_crops(
    crops: Sequence[NDArray[np.bool_]], corners: ArrayLike, height: ArrayLike, width: ArrayLike
) -> list[str]:
    """RLE counts of masks that are known inside a box only, outside of which nothing is.

    Args:
        crops: n arrays of shape (h, w), any of them empty.
        corners: (n, 2) x and y of each crop's upper left pixel in its image.
        height, width: of the images: one number, or (n,).

    Raises:
        ValueError: a crop lies partly outside its image.
    """
    n = len(crops)
    corner = np.asarray(corners, np.int64).reshape(n, 2)
    size = np.stack([np.broadcast_to(np.asarray(v, np.int64), n) for v in (height, width)], axis=1)
    shape = np.array([c.shape for c in crops], np.int64).reshape(n, 2)
    if (corner < 0).any() or (corner[:, ::-1] + shape > size).any():
        raise ValueError("a crop lies partly outside its image")
    texts: list[str] = []
    before = np.cumsum((shape[:, 0] + 1) * shape[:, 1])
    low = 0
    while low < n:
        limit = (before[low - 1] if low else 0) + _PIXELS_AT_ONCE
        high = max(low + 1, int(np.searchsorted(before, limit, "right")))
        part = slice(low, high)
        texts += _texts(*_runs(crops[part], corner[part], shape[part], size[part]))
        low = high
    return texts


def _runs(crops: Sequence[NDArray[np.bool_]], corner: Ints, shape: Ints, size: Ints) -> tuple[Ints, Ints]:
    """(r,) lengths of runs, mask after mask, and (n + 1,) where each mask begins.

    They are the gaps between the pixels at which a mask changes down its columns, in order of the columns.
    """
    rows, columns = shape[:, 0] + 1, shape[:, 1]
    at = np.concatenate([[0], np.cumsum(rows * columns)])
    changes = np.zeros(at[-1], bool)
    for crop, low, high in zip(crops, at[:-1].tolist(), at[1:].tolist(), strict=True):
        if crop.size:
            mask = np.asarray(crop, bool)
            change = changes[low:high].reshape(len(mask) + 1, -1)
            change[0], change[-1] = mask[0], mask[-1]
            np.not_equal(mask[1:], mask[:-1], out=change[1:-1])
    where = np.flatnonzero(changes)
    mask = np.repeat(np.arange(len(crops)), np.diff(np.searchsorted(where, at)))
    row, column = np.divmod(where - at[mask], np.maximum(columns[mask], 1))
    pixel = (corner[mask, 0] + column) * size[mask, 0] + corner[mask, 1] + row
    pixels = size[:, 0] * size[:, 1]
    most = int(pixels.max(initial=0)) + 1
    pixel = np.sort(mask * most + pixel)  # sorting values is far quicker than sorting by them
    # A run that goes on at the top of the next column ends and begins at one pixel: it does neither.
    twice = np.flatnonzero(pixel[1:] == pixel[:-1])
    kept = np.ones(len(pixel), bool)
    kept[twice] = kept[twice + 1] = False
    mask, pixel = np.divmod(pixel[kept], most)
    open_ = pixel < pixels[mask]  # the last run has no end of its own
    mask, pixel = mask[open_], pixel[open_]
    start = np.concatenate([[0], np.cumsum(np.bincount(mask, minlength=len(crops)) + 1)])
    ends = np.empty(start[-1], np.int64)
    ends[np.arange(len(mask)) + mask] = pixel
    ends[start[1:] - 1] = pixels
    lengths = np.diff(ends, prepend=0)
    lengths[start[:-1]] = ends[start[:-1]]
    return lengths, start


def _texts(lengths: Ints, start: Ints) -> list[str]:
    """COCO's text of each mask of `_runs`."""
    place = np.arange(len(lengths)) - np.repeat(start[:-1], np.diff(start))
    later = np.flatnonzero(place > 2)
    value = lengths.copy()
    value[later] -= lengths[later - 2]
    # As many groups as leave room for the sign.
    size = np.abs(value + (value < 0))
    groups = np.ones(len(value), np.int64)
    while (more := size >= np.int64(1) << (_BITS * groups - 1)).any():
        groups += more
    at = np.concatenate([[0], np.cumsum(groups)])
    out = np.empty(at[-1], np.uint8)
    for group in range(int(groups.max(initial=0))):
        which = np.flatnonzero(groups > group)
        bits = (value[which] >> (_BITS * group)) & (_MORE - 1)
        out[at[which] + group] = bits + np.where(groups[which] > group + 1, _MORE, 0) + _FIRST
    whole = out.tobytes().decode("ascii")
    return [whole[low:high] for low, high in pairwise(at[start].tolist())]


def decode(counts: str, height: int, width: int) -> NDArray[np.bool_]:
    """(height, width) mask of RLE counts, column-major in memory.

    Raises:
        DataError: the counts are not those of an image of this size.
    """
    lengths = _lengths(counts)
    if lengths is None or (lengths < 0).any() or lengths.sum() != height * width:
        filled = "are not run lengths" if lengths is None else f"fill {lengths.sum()} pixels"
        what = f"a mask's RLE counts {filled}, not the {width} x {height} of its image"
        raise DataError(what, "check the size of the image that the mask was drawn on")
    pixels = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return pixels.reshape((height, width), order="F")


def _lengths(counts: str) -> Ints | None:
    """(r,) run lengths of a text; None if it is none."""
    raw = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - _FIRST
    last = np.flatnonzero((raw & _MORE) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    if not len(last) or last[-1] + 1 != len(raw) or (raw < 0).any() or (raw >= 2 * _MORE).any():
        return None
    if (last - first).max() * _BITS > 50:
        return None
    group = np.arange(len(raw)) - np.repeat(first, last + 1 - first)
    value = np.add.reduceat((raw & (_MORE - 1)) << (_BITS * group), first)
    value -= np.where(raw[last] & (_MORE >> 1), np.int64(1) << (_BITS * (group[last] + 1)), 0)
    value[1::2], value[2::2] = np.cumsum(value[1::2]), np.cumsum(value[2::2])
    return value


def area(counts: str) -> int:
    """Pixels inside. One at a time: pycocotools overflows past 255 masks under NumPy 2.4."""
    return int(coco.area(_rle(counts, 0, 0)))  # the sum of the runs inside, whatever the size


def box(counts: str, height: int, width: int) -> NDArray[np.float64]:
    """Tight (4,) xyxy box; zeros for an empty mask."""
    x, y, w, h = coco.toBbox(_rle(counts, height, width))
    return np.array([x, y, x + w, y + h], np.float64)


def iou(
    a: Sequence[str], b: Sequence[str], height: int, width: int, crowd: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """(n, m) mask IoU; of (m,) `crowd` masks the share of `a` inside them, as in COCO."""
    if not a or not b:
        return np.zeros((len(a), len(b)))
    left = [_rle(c, height, width) for c in a]
    right = [_rle(c, height, width) for c in b]
    crowded = [0] * len(right) if crowd is None else crowd.astype(int).tolist()
    return np.asarray(coco.iou(left, right, crowded), np.float64).reshape(len(a), len(b))


def from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> str:
    """RLE counts of COCO polygons (flat x, y lists), their union taken."""
    rles = coco.frPyObjects([list(map(float, p)) for p in polygons], height, width)
    return coco.merge(rles)["counts"].decode("ascii")


def rim(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of an (h, w) mask that have one beside them that is not of it."""
    around = np.pad(inside, 1)
    core = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return np.asarray(inside & ~core, bool)


def outlines(counts: str, height: int, width: int) -> tuple[list[list[float]], list[list[float]]]:
    """The borders of a mask as flat x, y lists along the edges of its pixels: of its parts, and of its holes.

    Pixels that touch at a corner only are in different parts. Without holes, `from_polygons` of the parts is
    the mask again.
    """
    inside = np.pad(decode(counts, height, width), 1)
    ways: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # Clockwise about the mask: each side of a pixel that has none beside it, as (dx, dy) from its first corner.
    for (dy, dx), (y0, x0), step in (
        ((-1, 0), (0, 0), (1, 0)),
        ((0, 1), (0, 1), (0, 1)),
        ((1, 0), (1, 1), (-1, 0)),
        ((0, -1), (1, 0), (0, -1)),
    ):
        ys, xs = np.nonzero(inside & ~np.roll(inside, (-dy, -dx), (0, 1)))
        for y, x in zip((ys - 1 + y0).tolist(), (xs - 1 + x0).tolist(), strict=True):
            ways.setdefault((x, y), []).append(step)
    parts: list[list[float]] = []
    holes: list[list[float]] = []
    while ways:
        loop, doubled = _loop(ways)
        (parts if doubled > 0 else holes).append(loop)
    return parts, holes


def _loop(ways: dict[tuple[int, int], list[tuple[int, int]]]) -> tuple[list[float], int]:
    """Follow one border, taking its steps out of `ways`: its corners, and twice its signed area."""
    start = next(iter(ways))
    place, last = start, (0, 0)
    corners: list[float] = []
    doubled = 0
    while True:
        steps = ways[place]
        right = (-last[1], last[0])  # where pixels touch at a corner, turning right stays with the same one
        step = right if right in steps else steps[0]
        steps.remove(step)
        if not steps:
            del ways[place]
        if step != last:
            corners += [float(place[0]), float(place[1])]
        doubled += place[0] * step[1] - place[1] * step[0]
        place, last = (place[0] + step[0], place[1] + step[1]), step
        if place == start and (start not in ways or (-last[1], last[0]) not in ways[start]):
            return corners, doubled


def _rle(counts: str, height: int, width: int) -> dict[str, object]:
    return {"size": [height, width], "counts": counts.encode("ascii")}
