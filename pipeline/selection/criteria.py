"""What an image may be chosen for. Each criterion holds an upper bound of its value for every candidate."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_BLOCK = 2048
_HELD = 50_000_000  # similarities that are kept in memory, 4 bytes each; more are computed again when needed
_CACHED = 1 << 18  # similarities worked on at a time: they stay in the processor's cache
_FARTHEST = 2.0  # between unit vectors
# Digits of squared distances that count, so that equal images are equally far whatever they are computed beside.
_DIGITS = {np.dtype(np.float32): 6, np.dtype(np.float64): 12}

Vectors = NDArray[np.floating]
Rows = NDArray[np.float32] | list[NDArray[np.float32]]


class Criterion(Protocol):
    """Values of n candidates, which never grow while images are chosen.

    Attributes:
        value: (n,) float64, at least the present value.
        scale: the largest value at the start.
    """

    value: NDArray[np.float64]
    scale: float

    def refresh(self, rows: NDArray[np.int64]) -> None:
        """Make `value[rows]` exact."""

    def take(self, row: int) -> None:
        """Candidate `row` has been chosen."""


class Constant:
    """A value of each image that does not depend on what else is chosen, 0 or more."""

    def __init__(self, value: NDArray[np.float64]) -> None:
        self.value = np.asarray(value, np.float64)
        self.scale = float(self.value.max(initial=0.0))

    def refresh(self, rows: NDArray[np.int64]) -> None:
        """Nothing to do."""

    def take(self, row: int) -> None:
        """Nothing to do."""


class Distance:
    """Euclidean distance to the nearest image that is labelled or chosen; 2 where there is none yet.

    Args:
        candidates: (n, d) unit vectors. labelled: (m, d).
    """

    def __init__(self, candidates: Vectors, labelled: Vectors) -> None:
        self.vectors = candidates
        self.value = nearest_distance(candidates, labelled) if len(labelled) else np.full(len(candidates), _FARTHEST)
        self.scale = float(self.value.max(initial=0.0))
        self._squares = _squares(candidates)
        self._chosen: list[int] = []
        self._seen = np.zeros(len(candidates), np.int64)  # how many of the chosen it was compared with

    def refresh(self, rows: NDArray[np.int64]) -> None:
        """Compare with those chosen since these candidates were last looked at."""
        if not len(rows):
            return
        since = self._chosen[int(self._seen[rows].min()) :]
        for top in range(0, len(rows), _BLOCK):
            part = rows[top : top + _BLOCK]
            found = _nearest(*(v for at in (part, since) for v in (self.vectors[at], self._squares[at])))
            self.value[part] = np.minimum(self.value[part], found)
        self._seen[rows] = len(self._chosen)

    def take(self, row: int) -> None:
        """Later candidates are to be far from it, too."""
        self._chosen.append(row)


class Coverage:
    """By how much an image would raise the sum of similarities, (1 + cosine) / 2, of the represented images
    to the nearest of those labelled or chosen.

    Args:
        candidates: (n, d) unit vectors. represented: (r, d). labelled: (m, d).
    """

    def __init__(self, candidates: Vectors, represented: Vectors, labelled: Vectors) -> None:
        self.vectors = np.asarray(candidates, np.float32)
        self.represented = (np.asarray(represented, np.float32) / 2).T
        self.covered = np.zeros(len(represented), np.float32)
        for top in range(0, len(labelled), _BLOCK):
            near = np.asarray(labelled[top : top + _BLOCK], np.float32) @ self.represented + np.float32(0.5)
            self.covered = np.maximum(self.covered, near.max(axis=0))
        keep = len(candidates) * len(represented) <= _HELD
        self._similar = np.empty((len(candidates), len(represented)), np.float32) if keep else None
        self.value = np.empty(len(candidates))
        for top in range(0, len(candidates), _BLOCK):
            block = slice(top, min(top + _BLOCK, len(candidates)))
            held = None if self._similar is None else self._similar[block]
            similar = self._computed(self.vectors[block], held)
            self.value[block] = self._gain(similar) if len(labelled) else similar.sum(axis=1, dtype=np.float64)
        self.scale = float(self.value.max(initial=0.0))

    def refresh(self, rows: NDArray[np.int64]) -> None:
        """Sum anew over what is covered by now."""
        for top in range(0, len(rows), _BLOCK):
            part = rows[top : top + _BLOCK]
            self.value[part] = self._gain(self._of(part))

    def take(self, row: int) -> None:
        """Cover what is like it."""
        self.covered = np.maximum(self.covered, self._of(np.array([row]))[0])

    def _of(self, rows: NDArray[np.int64]) -> Rows:
        """Each one's similarities; those that are held are not copied."""
        return self._computed(self.vectors[rows]) if self._similar is None else [self._similar[row] for row in rows]

    def _computed(self, vectors: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        similar = np.matmul(vectors, self.represented, out=out)
        similar += np.float32(0.5)
        return similar

    def _gain(self, similar: Rows) -> NDArray[np.float64]:
        """(n,) of n rows of similarities."""
        gain = np.empty(len(similar))
        block = max(1, _CACHED // max(1, len(self.covered)))
        room = np.empty((min(block, len(similar)), len(self.covered)), np.float32)
        for top in range(0, len(similar), block):
            part = similar[top : top + block]
            raised = room[: len(part)]
            for row, above in zip(part, raised, strict=True):
                np.subtract(row, self.covered, out=above)
            gain[top : top + len(part)] = np.maximum(raised, 0, out=raised).sum(axis=1)
        return gain


class Deficits:
    """The largest share by which one of an image's slices lacks labelled images: 1 where none is labelled.

    Args:
        members: (slice, image_id). pool: n image_ids. labelled: image_ids. target: images to be labelled in each.
    """

    def __init__(self, members: pa.Table, pool: list[str], labelled: set[str], target: int) -> None:
        at = {image: i for i, image in enumerate(pool)}
        names, images = (members.column(c).to_pylist() for c in ("slice", "image_id"))
        found = sorted(set(names))
        number = {name: i for i, name in enumerate(found)}
        size, self._lacking = np.zeros(len(found)), np.zeros(len(found))
        self._inside = np.zeros((len(pool), len(found)), bool)
        for name, image in zip(names, images, strict=True):
            size[number[name]] += 1
            self._lacking[number[name]] -= image in labelled
            if image in at:
                self._inside[at[image], number[name]] = True
        self._target = np.maximum(np.minimum(size, target), 1)
        self._lacking += self._target
        self.value = self._values()
        self.scale = float(self.value.max(initial=0.0))

    def _values(self) -> NDArray[np.float64]:
        deficit = np.maximum(self._lacking, 0) / self._target
        return np.asarray(np.where(self._inside, deficit, 0.0).max(axis=1, initial=0.0))

    def refresh(self, rows: NDArray[np.int64]) -> None:
        """Nothing to do: `take` brings all values up to date."""

    def take(self, row: int) -> None:
        """Its slices lack one image less."""
        if self._inside[row].any():
            self._lacking -= self._inside[row]
            self.value = self._values()


def nearest_distance(points: Vectors, others: Vectors) -> NDArray[np.float64]:
    """(n,) Euclidean distance of each of (n, d) `points` to its nearest of (m, d) `others`."""
    nearest = np.full(len(points), np.inf)
    of_points, of_others = _squares(points), _squares(others)
    for top in range(0, len(points), _BLOCK):
        rows = slice(top, top + _BLOCK)
        for left in range(0, len(others), _BLOCK):
            columns = slice(left, left + _BLOCK)
            found = _nearest(points[rows], of_points[rows], others[columns], of_others[columns])
            nearest[rows] = np.minimum(nearest[rows], found)
    return nearest


def _squares(vectors: Vectors) -> Vectors:
    return np.asarray(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64), vectors.dtype)


def _nearest(points: Vectors, squares: Vectors, others: Vectors, other_squares: Vectors) -> NDArray[np.float64]:
    """Distances of each point to its nearest, of one block with one block."""
    if not len(others):
        return np.full(len(points), np.inf)
    apart = points @ others.T
    apart *= -2
    apart += other_squares
    least = (apart.min(axis=1) + squares).astype(np.float64)
    return np.asarray(np.sqrt(np.clip(np.round(least, _DIGITS[apart.dtype]), 0, None)))
