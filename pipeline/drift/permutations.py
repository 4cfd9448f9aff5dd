"""Permutation tests that exchange whole blocks of rows, and the statistics that they are made of.

A statistic here needs only sums over blocks, so that thousands of exchanges are one matrix product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from pipeline.drift.sides import Flags, Floats, Ints, block_sums

_GRID = 512
_TIE = 1e-9
_HELD = 1 << 23  # numbers held at a time while sides are drawn
_ENOUGH = 10  # as extreme exchanges that make a small p-value exact enough
_WORK = 1e11  # multiplications spent on telling small p-values apart


@dataclass(frozen=True)
class Statistic(ABC):
    """A two-sample statistic of n rows.

    Attributes:
        values: (n, k) whatever is summed over the rows of a block. points: (n,) points that each row stands for.
    """

    values: Floats
    points: Floats

    def blocks(self, block: Ints) -> tuple[Floats, Floats]:
        """Sums over blocks: of the values, and of points."""
        count = int(block.max()) + 1
        return block_sums(self.values, block, count), np.bincount(block, self.points, count).astype(np.float64)

    @abstractmethod
    def of_sides(self, sums: Floats, sizes: Floats, side: Floats) -> Floats:
        """(b,) the statistic for each column of (blocks, b) `side`, 1 where a block is on the batch's side."""


class KernelMmd(Statistic):
    """Unbiased squared MMD; `values` are (n, n) kernel sums between the points of rows."""

    def blocks(self, block: Ints) -> tuple[Floats, Floats]:
        sums, sizes = super().blocks(block)
        return block_sums(sums.T, block, len(sizes)).T, sizes

    def of_sides(self, sums: Floats, sizes: Floats, side: Floats) -> Floats:
        from scipy.linalg.blas import dtrmm

        # Sums are symmetric, so one triangle says all, in half the multiplications.
        above = dtrmm(1.0, sums.T, side)
        within = 2 * np.einsum("bc,bc->b", side.T, above.T) - np.diag(sums) @ side
        rows = sums.sum(axis=1)
        across = rows @ side - within
        return _mmd(within, rows.sum() - within - 2 * across, across, sizes, side)


class FeatureMmd(Statistic):
    """Unbiased squared MMD of random features; `values` are (n, k) sums of the features of a row's points."""

    def of_sides(self, sums: Floats, sizes: Floats, side: Floats) -> Floats:
        everyone = sums.sum(axis=0)
        here = sums.T @ side
        within = np.einsum("kb,kb->b", here, here)
        across = everyone @ here - within
        return _mmd(within, float(everyone @ everyone) - within - 2 * across, across, sizes, side)


@dataclass(frozen=True)
class Ks(Statistic):
    """Kolmogorov-Smirnov distance on a grid; `values` are (n, 1) places of the first grid value that is not below.

    Attributes:
        grid: number of grid values.
    """

    grid: int

    def blocks(self, block: Ints) -> tuple[Floats, Floats]:
        count = int(block.max()) + 1
        cells = np.bincount(block * self.grid + self.values[:, 0].astype(np.int64), minlength=count * self.grid)
        below = cells.reshape(count, self.grid).cumsum(axis=1, dtype=np.float64)
        return below, np.bincount(block, self.points, count).astype(np.float64)

    def of_sides(self, sums: Floats, sizes: Floats, side: Floats) -> Floats:
        return np.asarray(np.abs(_gap(sums, sizes, side)).max(axis=0), np.float64)


class Shares(Statistic):
    """Sum over slices of the squared difference of shares, in units of the pooled share's variance.

    `values` are (n, s) membership; slices may overlap.
    """

    def of_sides(self, sums: Floats, sizes: Floats, side: Floats) -> Floats:
        share = sums.sum(axis=0) / sizes.sum()
        spread = share * (1 - share)
        gap = _gap(sums, sizes, side)[spread > 0]
        return np.asarray((gap**2 / spread[spread > 0, None]).sum(axis=0), np.float64)


class EachShare(Statistic):
    """(s, b) chi-square of each slice's own table of in and out, without Yates' correction."""

    def of_sides(self, sums: Floats, sizes: Floats, side: Floats) -> Floats:
        share = sums.sum(axis=0) / sizes.sum()
        spread = share * (1 - share)
        gap = _gap(sums, sizes, side)
        inverse = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
        return np.asarray(_harmonic(sizes, side) * gap**2 * inverse[:, None], np.float64)


class ChiSquare(Statistic):
    """Pearson's chi-square of the table of sides by categories; `values` are (n, c) counts."""

    def of_sides(self, sums: Floats, sizes: Floats, side: Floats) -> Floats:
        share = sums.sum(axis=0) / sizes.sum()
        gap = _gap(sums, sizes, side)[share > 0]
        return np.asarray(_harmonic(sizes, side) * (gap**2 / share[share > 0, None]).sum(axis=0), np.float64)


class Auc(Statistic):
    """Area under the ROC curve of a score, the batch being positive; `values` are (n, 1) midranks from 1."""

    def of_sides(self, sums: Floats, sizes: Floats, side: Floats) -> Floats:
        m = sizes @ side
        return np.asarray((sums[:, 0] @ side - m * (m + 1) / 2) / (m * (sizes.sum() - m)), np.float64)


def ks_parts(values: Floats) -> Ks:
    """Kolmogorov-Smirnov distance of (n,) values: exact up to _GRID distinct ones, else at quantiles."""
    grid = np.unique(values)
    if len(grid) > _GRID:
        grid = np.unique(np.quantile(values, np.linspace(0, 1, _GRID), method="inverted_cdf"))
    places = np.searchsorted(grid, values).astype(np.float64)
    return Ks(places[:, None], np.ones(len(values)), len(grid))


def share_parts(members: Floats) -> Shares:
    """The mix of (n, s) overlapping slices."""
    return Shares(members, np.ones(len(members)))


def auc_parts(scores: Floats) -> Auc:
    """How well (n,) scores tell the sides apart."""
    from scipy.stats import rankdata

    return Auc(rankdata(scores)[:, None], np.ones(len(scores)))


def permutation_test(
    statistic: Statistic, block: Ints, in_batch: Flags, permutations: int, draw: int, most: int = 0
) -> tuple[float, float, float]:
    """Exchange whole blocks between the sides.

    Args:
        block: (n,) block of each row, numbered from 0. in_batch: (blocks,) side of each block.
        permutations: all splits are enumerated if they are no more, otherwise so many are drawn.
        draw: seed.
        most: where fewer than 10 of those drawn are as extreme as what was observed, more are drawn until
            there are 10 (p = 10 / drawn: Besag & Clifford 1991) or until so many are drawn.

    Returns:
        The statistic, the p-value, and the least p-value that was possible.
    """
    parts = statistic.blocks(block)
    observed = float(statistic.of_sides(*parts, in_batch[:, None].astype(np.float64))[0])
    limit = observed - _TIE * max(1.0, abs(observed))
    splits = comb(len(in_batch), int(in_batch.sum()))
    if splits <= permutations:
        extreme = sum(int((statistic.of_sides(*parts, side) >= limit).sum()) for side in _every(in_batch))
        return observed, extreme / splits, 1 / splits
    most = max(permutations, min(most, int(_WORK / parts[0].size)))
    rng = np.random.default_rng(draw)
    drawn = extreme = 0
    for side in _drawn(in_batch, permutations, rng):
        extreme += int((statistic.of_sides(*parts, side) >= limit).sum())
        drawn += side.shape[1]
    for side in _drawn(in_batch, most - permutations, rng) if extreme < _ENOUGH else ():
        hits = np.cumsum(statistic.of_sides(*parts, side) >= limit)
        if extreme + hits[-1] >= _ENOUGH:
            drawn += int(np.searchsorted(hits, _ENOUGH - extreme)) + 1
            return observed, _ENOUGH / drawn, 1 / (1 + most)
        drawn, extreme = drawn + side.shape[1], extreme + int(hits[-1])
    return observed, (1 + extreme) / (1 + drawn), 1 / (1 + most)


def each_p_value(statistic: EachShare, block: Ints, in_batch: Flags, permutations: int, draw: int) -> Floats:
    """(s,) p-value of every slice on its own, from the same exchanges."""
    parts = statistic.blocks(block)
    observed = statistic.of_sides(*parts, in_batch[:, None].astype(np.float64))
    limit = observed - _TIE * np.maximum(1.0, observed)
    exact = comb(len(in_batch), int(in_batch.sum())) <= permutations
    extreme, drawn = np.zeros(len(observed)), 0
    for side in _every(in_batch) if exact else _drawn(in_batch, permutations, np.random.default_rng(draw)):
        extreme += (statistic.of_sides(*parts, side) >= limit).sum(axis=1)
        drawn += side.shape[1]
    return extreme / drawn if exact else (1 + extreme) / (1 + drawn)


def _every(in_batch: Flags) -> Iterator[Floats]:
    """All splits with as many blocks on the batch's side."""
    count, chosen = len(in_batch), int(in_batch.sum())
    side = np.zeros((count, comb(count, chosen)))
    for column, members in enumerate(combinations(range(count), chosen)):
        side[list(members), column] = 1
    yield side


def _drawn(in_batch: Flags, wanted: int, rng: np.random.Generator) -> Iterator[Floats]:
    """`wanted` random splits, in parts, each split in one piece of memory."""
    side = in_batch.astype(np.float64)
    width = max(1, _HELD // len(side))
    for top in range(0, wanted, width):
        rows = min(width, wanted - top)
        yield rng.permuted(np.broadcast_to(side, (rows, len(side))), axis=1).T


def _gap(sums: Floats, sizes: Floats, side: Floats) -> Floats:
    """(k, b) difference of means."""
    here, m = sums.T @ side, sizes @ side
    return np.asarray(here / m - (sums.sum(axis=0)[:, None] - here) / (sizes.sum() - m), np.float64)


def _harmonic(sizes: Floats, side: Floats) -> Floats:
    m = sizes @ side
    return np.asarray(m * (sizes.sum() - m) / sizes.sum(), np.float64)


def _mmd(within: Floats, rest: Floats, across: Floats, sizes: Floats, side: Floats) -> Floats:
    m = sizes @ side
    n = sizes.sum() - m
    return off_diagonal(within, m) + off_diagonal(rest, n) - 2 * across / (m * n)


def off_diagonal(total: Floats, count: Floats) -> Floats:
    """Mean kernel over pairs of different points (k(x, x) = 1); that of a single point is taken for 1."""
    pairs = count * (count - 1)
    return np.divide(total - count, pairs, out=np.ones_like(total), where=pairs > 0)
