"""Near pairs among more vectors than all pairs can be looked at: only within cells, at a measured recall.

An inverted file (Jegou, Douze & Schmid 2011): k-means divides the vectors into about 4 sqrt(n) cells. A vector
belongs to its nearest cell and visits its `probes` nearest; a pair is found when one visits the other's cell.
Within a cell, pairs are screened and compared as in `vectors`, so all that is found is near.

How many cells are visited is measured, not guessed: a sample of vectors is compared with all. On one half of the
sample the fewest probes are chosen that miss at most half of what may be missed; the recall that is reported is
the other half's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.duplicates.hashes import Pairs
from pipeline.duplicates.vectors import COLUMNS, Positions, Screen, Vectors, blocks
from pipeline.intervals import clopper_pearson

PROBES = (1, 2, 4, 8, 16, 32, 64)
_ROUNDS = 5  # of k-means
_TRAINED_ON = 25  # vectors a cell


@dataclass(frozen=True)
class Recall:
    """How many of the near pairs of sampled vectors the cells hold.

    Attributes:
        found, pairs: near pairs of the half of the sample that chose nothing.
        low: Clopper & Pearson's lower limit of found / pairs, at 95 %; 0 where there were no pairs.
        probes: cells that a vector visits.
    """

    found: int
    pairs: int
    low: float
    probes: int


class Cells:
    """Vectors in cells.

    Args:
        screen: the vectors, made ready to be compared.
        cells: how many; about 4 sqrt(n) if left out.
        seed: of the k-means and the sample.

    Attributes:
        nearest: (n, p) each vector's cells, the nearest first, in the screen's order.
    """

    def __init__(self, screen: Screen, cells: int | None = None, seed: int = 0) -> None:
        n = len(screen.screened)
        self.screen = screen
        self.count = max(1, min(n, cells or round(4 * n**0.5)))
        self._generator = np.random.default_rng(seed)
        centres = self._centres()
        self.nearest = np.empty((n, min(PROBES[-1], self.count)), np.int32)
        for top in range(0, n, COLUMNS):
            some = screen.screened[top : top + COLUMNS]
            self.nearest[top : top + COLUMNS] = _closest(some, centres, self.nearest.shape[1])

    def _centres(self) -> NDArray[np.float32]:
        """(cells, k + 1) means of a sample. The rest's length is a coordinate like any other."""
        points = self.screen.screened
        size = min(len(points), _TRAINED_ON * self.count)
        some = points[np.sort(self._generator.choice(len(points), size, replace=False))]
        centres = some[self._generator.choice(size, self.count, replace=False)].copy()
        for _ in range(_ROUNDS):
            owner = np.concatenate(
                [_closest(some[top : top + COLUMNS], centres, 1)[:, 0] for top in range(0, size, COLUMNS)]
            )
            order = np.argsort(owner, kind="stable")
            filled, first = np.unique(owner[order], return_index=True)
            sums = np.add.reduceat(some[order], first, axis=0)
            centres[filled] = sums / np.diff(np.append(first, size))[:, None]
        return centres

    def measure(self, recall: float, fresh: int, sample: int = 5000) -> Recall:
        """The fewest probes that find `recall` of the near pairs, and what they do find; all where none do.

        Args:
            fresh: only pairs with one of the first so many vectors count; the sample is drawn from these.
        """
        chosen = np.sort(self._generator.choice(fresh, min(sample, fresh), replace=False))
        parts = [self.screen.near(rows, columns) for rows, columns in blocks(chosen, np.arange(len(self.nearest)))]
        pairs = np.concatenate([p[p[:, 0] != p[:, 1]] for p in parts])
        needed = self._needed(pairs)
        half = np.searchsorted(chosen, pairs[:, 0]) % 2 == 0
        wide = self.nearest.shape[1]
        enough = [p for p in PROBES if half.any() and (needed[half] <= p).mean() >= (1 + recall) / 2]
        probes = min(enough[0] if enough else wide, wide)
        found, judged = int((needed[~half] <= probes).sum()), int((~half).sum())
        return Recall(found, judged, clopper_pearson(found, judged, 0.95)[0] or 0.0, probes)

    def _needed(self, pairs: Pairs) -> NDArray[np.int64]:
        """(m,) the fewest probes with which each pair is found; more than there are where none do."""
        nearest, home = self.nearest, self.nearest[:, 0]
        needed = np.full(len(pairs), nearest.shape[1] + 1)
        for a, b in (pairs.T, pairs.T[::-1]):
            visits = nearest[a] == home[b][:, None]
            needed = np.where(visits.any(axis=1), np.minimum(needed, visits.argmax(axis=1) + 1), needed)
        return needed

    def pairs(self, probes: int, fresh: int) -> Iterator[Pairs]:
        """Near pairs of which one visits the other's cell, and one is among the first `fresh`; some come twice."""
        n = len(self.nearest)
        by_home = np.argsort(self.nearest[:, 0], kind="stable")
        home = np.searchsorted(self.nearest[by_home, 0], np.arange(self.count + 1))
        visits = self.nearest[:, :probes].ravel()
        by_visit = np.argsort(visits, kind="stable")
        visit = np.searchsorted(visits[by_visit], np.arange(self.count + 1))
        for cell in range(self.count):
            members = by_home[home[cell] : home[cell + 1]]
            guests = by_visit[visit[cell] : visit[cell + 1]] // probes
            new, old = guests[guests < fresh], guests[guests >= fresh]
            for rows, others in (
                ((new, members), (old, members[members < fresh])) if n > fresh else ((guests, members),)
            ):
                for part, columns in blocks(rows, others):
                    found = self.screen.near(part, columns, screened=False)
                    yield self.screen.named(found[found[:, 0] != found[:, 1]])


def near_in_cells(
    vectors: Vectors, limit: float, recall: float, fresh: Positions | None = None, cells: int | None = None
) -> tuple[Recall, Iterator[Pairs]]:
    """Most pairs of unit vectors with 1 - cosine < `limit`, and the measured share that this is.

    Args:
        vectors, limit, fresh: as in `near_vectors`.
        recall: share of the pairs that is asked for.
    """
    n = len(vectors)
    first = np.arange(n) if fresh is None else fresh
    screen = Screen(vectors, limit, np.concatenate([first, np.setdiff1d(np.arange(n), first)]))
    found = Cells(screen, cells)
    measured = found.measure(recall, len(first))
    return measured, found.pairs(measured.probes, len(first))


def _closest(points: NDArray[np.float32], centres: NDArray[np.float32], count: int) -> NDArray[np.int32]:
    """(n, count) the nearest centres of each point, nearest first."""
    apart = np.square(centres).sum(axis=1) - 2 * (points @ centres.T)
    if count == 1:
        return apart.argmin(axis=1)[:, None].astype(np.int32)
    some = np.argpartition(apart, count - 1, axis=1)[:, :count]
    order = np.take_along_axis(apart, some, axis=1).argsort(axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1).astype(np.int32)
