"""Pairs of 64-bit hashes that differ in few bits: all of them, without comparing all.

Multi-index hashing (Norouzi, Punjani & Fleet, Fast Exact Search in Hamming Space with Multi-Index Hashing,
2014): cut the hash into limit + m chunks, and two hashes within `limit` bits agree in at least m of them. So
only those that agree in some m chunks are compared: neighbours after sorting by these chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Pairs = NDArray[np.int64]  # (m, 2) positions, the lower first

_BITS = 64
_BLOCK = 2048
# Costs as measured, in units of comparing two hashes side by side: of sorting one, and of comparing two in a run.
_SORT, _RUN = 40, 7
_AT_ONCE = 1 << 20  # pairs compared at a time


def near_hashes(hashes: Hashes, limit: int, chunks: int | None = None) -> Iterator[Pairs]:
    """Every pair of hashes that differ in at most `limit` bits, once, some pairs at a time.

    Args:
        hashes: (n,) uint64.
        chunks: how many a hash is cut into, more than `limit`; 0: compare all with all. Chosen by n if left out.
    """
    cut = _best(len(hashes), limit) if chunks is None else chunks
    yield from _indexed(hashes, limit, cut) if cut else _brute(hashes, limit)


def _best(n: int, limit: int) -> int:
    """The number of chunks that costs least if bits are fair coins; 0: compare all with all."""
    pairs = n * (n - 1) / 2
    costs = {0: pairs}
    for agree in (1, 2, 3, 4):
        cut = limit + agree
        if cut <= _BITS:
            keys = comb(cut, agree)
            costs[cut] = keys * (_SORT * n + _RUN * pairs / 2 ** (_BITS * agree / cut))
    return min(costs, key=lambda cut: costs[cut])


def _brute(hashes: Hashes, limit: int) -> Iterator[Pairs]:
    n = len(hashes)
    for top in range(0, n, _BLOCK):
        for left in range(top, n, _BLOCK):
            bits = np.bitwise_count(hashes[top : top + _BLOCK, None] ^ hashes[None, left : left + _BLOCK])
            pairs = np.argwhere(bits <= limit) + np.array([top, left])
            yield pairs[pairs[:, 0] < pairs[:, 1]]


def _indexed(hashes: Hashes, limit: int, cut: int) -> Iterator[Pairs]:
    masks = _masks(cut)
    for chosen in combinations(range(cut), cut - limit):
        mask = np.bitwise_or.reduce(masks[list(chosen)])
        keys = hashes & mask
        order = np.argsort(keys, kind="stable")
        for a, b in _within_runs(keys[order]):
            i, j = order[a], order[b]
            apart = hashes[i] ^ hashes[j]
            near = np.bitwise_count(apart) <= limit
            near[near] = _first_agreed(apart[near], masks, chosen)
            if near.any():
                yield np.sort(np.stack([i[near], j[near]], axis=1), axis=1)


def _masks(cut: int) -> Hashes:
    """(cut,) masks of chunks as equal as can be."""
    edges = np.arange(cut + 1) * _BITS // cut
    return np.array([sum(1 << bit for bit in range(a, b)) for a, b in pairwise(edges.tolist())], np.uint64)


def _within_runs(keys: Hashes) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs of positions in the same run of equal sorted keys."""
    start = np.arange(len(keys))
    for step in range(1, len(keys)):
        start = start[start + step < len(keys)]
        start = start[keys[start] == keys[start + step]]
        if not len(start):
            return
        for first in range(0, len(start), _AT_ONCE):
            some = start[first : first + _AT_ONCE]
            yield some, some + step


def _first_agreed(apart: Hashes, masks: Hashes, chosen: tuple[int, ...]) -> NDArray[np.bool_]:
    """Whether `chosen` are the first chunks in which a pair agrees: of all keys that it shares, one reports it."""
    agreed = (apart[:, None] & masks[None, : chosen[-1] + 1]) == 0
    return np.asarray(agreed.sum(axis=1) == len(chosen), bool)
