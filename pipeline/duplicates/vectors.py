"""Pairs of vectors whose cosine is above a limit: all of them, at a fraction of the multiplications.

For an orthonormal P of k rows and the rest R, a.b = Pa.Pb + Ra.Rb <= Pa.Pb + |Ra||Rb| (Cauchy & Schwarz). The
right side is one product of k + 1 numbers, so one small matrix product screens all pairs, and only those that it
lets through are compared in full. P holds the leading directions of the vectors' second moments, k is where
screening and comparing together cost least on a sample of pairs. What is found does not depend on either.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.duplicates.hashes import Pairs

Vectors = NDArray[np.float32]
Positions = NDArray[np.int64]

ROWS, COLUMNS = 512, 4096  # of a block: its products stay in the cache
_SAMPLE = 4096  # vectors that the directions are found on
_SCREENS = (16, 32, 48, 64, 96, 128, 192, 256)
_FULL = 40  # comparing a pair in full costs so many times its dimensions, against screening it, as measured
_AT_ONCE = 4096  # pairs compared in full at a time


def near_vectors(vectors: Vectors, limit: float, fresh: Positions | None = None) -> Iterator[Pairs]:
    """Every pair of unit vectors with 1 - cosine < `limit` (in double precision), once, some pairs at a time.

    Args:
        vectors: (n, d) float32.
        fresh: positions; only pairs with at least one of them are looked for. All if left out.
    """
    n = len(vectors)
    first = np.arange(n) if fresh is None else fresh
    order = np.concatenate([first, np.setdiff1d(np.arange(n), first)])
    screen = Screen(vectors, limit, order)
    for start in range(0, len(first), ROWS):
        rows = np.arange(start, min(start + ROWS, len(first)))
        for part, columns in blocks(rows, np.arange(start, n)):
            found = screen.near(part, columns)
            yield screen.named(found[found[:, 0] < found[:, 1]])


def blocks(rows: Positions, columns: Positions) -> Iterator[tuple[Positions, Positions]]:
    """All pairs of positions, as blocks that `Screen.near` takes."""
    for top in range(0, len(rows), ROWS):
        for left in range(0, len(columns), COLUMNS):
            yield rows[top : top + ROWS], columns[left : left + COLUMNS]


class Screen:
    """Vectors made ready to be compared.

    Args:
        vectors: (n, d) float32.
        limit: of 1 - cosine.
        order: (n,) positions; the m-th one here is `vectors[order[m]]`.

    Attributes:
        screened: (n, k + 1) float32, so that the product of two rows is no less than that of the vectors.
    """

    def __init__(self, vectors: Vectors, limit: float, order: Positions) -> None:
        self.vectors = vectors
        self.order = order
        self.limit = limit
        basis = _directions(vectors)
        k = self._cheapest(_spread(vectors, 1024), basis)
        self.screened = np.empty((len(vectors), k + 1), np.float32)
        for top in range(0, len(vectors), COLUMNS):
            some = vectors[order[top : top + COLUMNS]].astype(np.float64)
            self.screened[top : top + COLUMNS] = _screened(some, basis[:, :k])
        self._products = np.empty(ROWS * COLUMNS, np.float32)
        self._hits = np.empty(ROWS * COLUMNS, bool)

    def near(self, rows: Positions, columns: Positions, screened: bool = True) -> Pairs:
        """(m, 2) the pairs of one of `rows` and one of `columns` that are near, in the screen's order.

        Args:
            rows, columns: at most 512 and 4096 positions.
            screened: False for pairs that are so alike that hardly any would be screened out.
        """
        if not len(rows) or not len(columns):
            return np.zeros((0, 2), np.int64)
        left, right = (self.screened[p] if screened else self.vectors[self.order[p]] for p in (rows, columns))
        shape, size = (len(rows), len(columns)), len(rows) * len(columns)
        products, hits = self._products[:size].reshape(shape), self._hits[:size].reshape(shape)
        np.matmul(left, right.T, out=products)
        slack = _slack(left.shape[1])
        np.greater(products, 1 - self.limit - slack, out=hits)
        flat = np.flatnonzero(hits)
        i, j = np.divmod(flat, len(columns))
        # The rests may also point away from each other.
        least = products.ravel()[flat] - (2 * left[i, -1] * right[j, -1] if screened else 0)
        i, j = rows[i], columns[j]
        keep = least > 1 - self.limit + slack
        doubtful = np.flatnonzero(~keep)
        keep[doubtful] = self._compared(i[doubtful], j[doubtful])
        return np.stack([i[keep], j[keep]], axis=1)

    def named(self, pairs: Pairs) -> Pairs:
        """Pairs as positions in `vectors`, the lower first."""
        return np.sort(self.order[pairs], axis=1)

    def _compared(self, i: Positions, j: Positions) -> NDArray[np.bool_]:
        near = np.empty(len(i), bool)
        for top in range(0, len(i), _AT_ONCE):
            part = slice(top, top + _AT_ONCE)
            a, b = (self.vectors[self.order[side[part]]].astype(np.float64) for side in (i, j))
            near[part] = 1 - np.einsum("ij,ij->i", a, b) < self.limit
        return near

    def _cheapest(self, sample: NDArray[np.float64], basis: NDArray[np.float64]) -> int:
        """How many directions to screen by, judged on all pairs of a sample."""
        d = len(basis)
        costs = {d: float(d)}
        for k in _SCREENS:
            if k < d and len(sample) > 1:
                short = _screened(sample, basis[:, :k]).astype(np.float32)
                bound = short @ short.T
                least = bound - 2 * np.outer(short[:, -1], short[:, -1])
                passed = (bound > 1 - self.limit) & (least <= 1 - self.limit)
                np.fill_diagonal(passed, False)
                costs[k] = k + 1 + _FULL * d * float(passed.sum()) / (len(sample) * (len(sample) - 1))
        return min(costs, key=lambda k: costs[k])


def _spread(vectors: Vectors, most: int) -> NDArray[np.float64]:
    step = max(1, len(vectors) // most)
    return vectors[::step][:most].astype(np.float64)


def _directions(vectors: Vectors) -> NDArray[np.float64]:
    """(d, d) orthonormal columns, those that hold most of the vectors' length first."""
    some = _spread(vectors, _SAMPLE)
    return np.ascontiguousarray(np.linalg.eigh(some.T @ some)[1][:, ::-1])


def _screened(some: NDArray[np.float64], basis: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, k + 1) coordinates of (n, d) vectors along the (d, k) basis, and the length of the rest."""
    along = some @ basis
    rest = np.sqrt(np.clip(np.square(some).sum(axis=1) - np.square(along).sum(axis=1), 0, None))
    return np.concatenate([along, rest[:, None]], axis=1)


def _slack(terms: int) -> float:
    """More than a product of two unit vectors of so many float32 numbers can be off."""
    return (terms + 8) * float(np.finfo(np.float32).eps)
