"""The two sides of a comparison: a batch's images and the reference's, and what of them is independent."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.ids import fingerprint, joined

MIN_LOCATIONS = 20
# What takes every pair of images looks at so many of the batch and of the reference each, and at so many vectors.
MAX_IMAGES, MAX_VECTORS = 1500, 6000

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Sides:
    """The images under test: the batch's first, then the reference's.

    Attributes:
        contents, reference: hashes of the batch's image_ids, and of the reference's.
        ids: n image_ids. in_batch: (n,). location: (n,) numbers. window: (n, 4) x, y, width, height.
        photo: (n,) numbers.
    """

    batch: str
    contents: str
    reference: str
    ids: list[str]
    in_batch: Flags
    location: Ints
    photo: Ints
    window: Ints

    @classmethod
    def of(cls, batch: str, images: pa.Table, reference: Collection[str]) -> Sides:
        """All images of both sides."""
        own = set(images.filter(images.column("batch").to_numpy(zero_copy_only=False) == batch)["image_id"].to_pylist())
        others = set(reference) - own
        at = {image: i for i, image in reversed(list(enumerate(images.column("image_id").to_pylist())))}
        chosen = [image for image in sorted(own) + sorted(others) if image in at]
        rows = images.take(pa.array([at[i] for i in chosen], pa.int64()))
        window = [rows.column(c).to_numpy().astype(np.int64) for c in ("tile_x", "tile_y", "width", "height")]
        return cls(
            batch,
            joined(own),
            joined(others),
            chosen,
            np.array([i in own for i in chosen], bool),
            numbered(rows.column("location").to_pylist()),
            numbered(rows.column("parent_id").to_pylist()),
            np.stack(window, axis=1),
        )

    def some(self, places: Ints) -> Sides:
        """The images at these places only."""
        return replace(
            self,
            ids=[self.ids[i] for i in places],
            in_batch=self.in_batch[places],
            location=self.location[places],
            photo=self.photo[places],
            window=self.window[places],
        )

    def sample(self) -> Ints:
        """Sorted places of the images: all, or MAX_IMAGES of a side that has more, by hash."""
        chosen = []
        for side in (self.in_batch, ~self.in_batch):
            places = np.flatnonzero(side)
            if len(places) > MAX_IMAGES:
                marks = [fingerprint("drift", self.ids[i]) for i in places]
                places = np.sort(places[np.argsort(marks)[:MAX_IMAGES]])
            chosen.append(places)
        return np.sort(np.concatenate(chosen))

    @property
    def by_location(self) -> bool:
        """Whether the reference has locations enough to make each one observation."""
        return len(np.unique(self.location[~self.in_batch])) >= MIN_LOCATIONS

    def neighbourhoods(self) -> Flags:
        """(n, n) whether image j is left out when image i is scored."""
        if self.by_location:
            return np.asarray(self.location[:, None] == self.location[None], bool)
        low = np.maximum(self.window[:, None, :2], self.window[None, :, :2])
        end = self.window[:, :2] + self.window[:, 2:]
        high = np.minimum(end[:, None], end[None])
        same = self.photo[:, None] == self.photo[None]
        return np.asarray(same & (high > low).all(axis=2), bool)

    def observations(self, chosen: Flags) -> float:
        """How many independent observations the chosen images are worth."""
        if self.by_location:
            return float(len(np.unique(self.location[chosen])))
        worth = 0.0
        for photo in np.unique(self.photo[chosen]):
            windows = self.window[chosen & (self.photo == photo)]
            worth += covered_area(windows) / float((windows[:, 2] * windows[:, 3]).mean())
        return worth


@dataclass(frozen=True)
class Blocks:
    """What is exchanged whole between the sides: locations. One on both sides (a camera that went on) is two blocks.

    Attributes:
        number: (n,) block of each row, from 0. in_batch: (blocks,) side of each. shared: locations on both sides.
    """

    number: Ints
    in_batch: Flags
    shared: int

    @classmethod
    def of(cls, location: Ints, in_batch: Flags) -> Blocks:
        _, first, number = np.unique(2 * location + in_batch, return_index=True, return_inverse=True)
        shared = len(np.intersect1d(location[in_batch], location[~in_batch]))
        return cls(np.asarray(number, np.int64).reshape(-1), in_batch[first], shared)

    def means(self, values: Floats) -> Floats:
        """(blocks, k) means of the rows (n, k) of each block."""
        counts = np.bincount(self.number, minlength=len(self.in_batch)).astype(np.float64)
        return block_sums(values, self.number, len(counts)) / counts[:, None]

    @property
    def words(self) -> str:
        here, there = int(self.in_batch.sum()), int((~self.in_batch).sum())
        return f"{here} locations against {there}" + (f"; {self.shared} are on both sides" if self.shared else "")


def block_sums(values: Floats | NDArray[np.float32], block: Ints, count: int) -> Floats:
    """(count, k) sums of the rows (n, k) of each block; not a copy where each row is a block."""
    from scipy.sparse import csr_array

    n = len(block)
    if n == count and (block == np.arange(n)).all():
        return np.asarray(values, np.float64)
    member = csr_array((np.ones(n), (block, np.arange(n))), shape=(count, n))
    return np.asarray(member @ values, np.float64)


def numbered(names: list[str]) -> Ints:
    """(n,) numbers from 0, equal where names are."""
    return np.asarray(np.unique(np.asarray(names, str), return_inverse=True)[1], np.int64).reshape(-1)


def covered_area(windows: Ints) -> float:
    """Area of the union of (n, 4) windows x, y, width, height."""
    xs = np.unique(np.concatenate([windows[:, 0], windows[:, 0] + windows[:, 2]]))
    ys = np.unique(np.concatenate([windows[:, 1], windows[:, 1] + windows[:, 3]]))
    covered = np.zeros((len(ys) - 1, len(xs) - 1), bool)
    for x, y, width, height in windows:
        covered[
            np.searchsorted(ys, y) : np.searchsorted(ys, y + height),
            np.searchsorted(xs, x) : np.searchsorted(xs, x + width),
        ] = True
    return float(np.diff(ys) @ covered @ np.diff(xs))


def thinned(owner: Ints, in_batch: Flags) -> Ints:
    """Positions of the vectors of so many images a side that they are at most MAX_VECTORS a side.

    Image ids are hashes and sorted, so the first images are a sample of them all.

    Args:
        owner: (k,) the image of each vector. in_batch: (n,) side of each image.
    """
    keep = np.zeros(len(owner), bool)
    for side in (in_batch[owner], ~in_batch[owner]):
        images, counts = np.unique(owner[side], return_counts=True)
        fitting = images[np.cumsum(counts) <= MAX_VECTORS]
        keep |= side & np.isin(owner, fitting)
    return np.flatnonzero(keep)
