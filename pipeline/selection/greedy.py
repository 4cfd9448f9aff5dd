"""Lazy greedy choice (Minoux 1978) for a sum of criteria that only shrink as more is chosen.

A value computed earlier bounds the present one from above. So only the images with the highest bounds are
computed anew, some at a time, until the highest of all is up to date: it is the best.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.selection.criteria import Criterion

_FIRST, _MOST = 16, 4096  # images looked at again at a time


def choose(criteria: Sequence[Criterion], weights: Sequence[float], n: int) -> tuple[list[int], NDArray[np.float64]]:
    """Greedily take at most `n` images by the weighted sum of scaled criteria. Ties go to the lower position.

    Returns:
        Positions in order of choice, and (n, criteria) what each criterion gave, divided by its scale.
    """
    size = len(criteria[0].value)
    factors = [w / c.scale if c.scale > 0 else 0.0 for c, w in zip(criteria, weights, strict=True)]
    current = np.zeros(size, np.int64)  # how many had been chosen when the image was last looked at
    left = np.ones(size, bool)
    order: list[int] = []
    parts = []
    for step in range(min(n, size)):
        bound = np.where(left, _sum(criteria, factors), -np.inf)
        some, sure = _FIRST, -np.inf  # the best of those that are up to date
        while current[best := int(np.argmax(bound))] < step:
            rows = _highest(bound, some)
            rows = rows[(current[rows] < step) & left[rows] & (bound[rows] >= sure)]
            for criterion in criteria:
                criterion.refresh(rows)
            current[rows] = step
            bound[rows] = _sum(criteria, factors, rows)
            sure = max(sure, float(bound[rows].max()))
            some = min(2 * some, _MOST)
        order.append(best)
        parts.append([c.value[best] / c.scale if c.scale > 0 else 0.0 for c in criteria])
        left[best] = False
        for criterion in criteria:
            criterion.take(best)
    return order, np.array(parts, np.float64).reshape(len(order), len(criteria))


def _sum(
    criteria: Sequence[Criterion], factors: Sequence[float], rows: NDArray[np.int64] | slice = slice(None)
) -> NDArray[np.float64]:
    return np.asarray(sum(f * c.value[rows] for c, f in zip(criteria, factors, strict=True)), np.float64)


def _highest(bound: NDArray[np.float64], some: int) -> NDArray[np.int64]:
    """Positions of all whose bound is among the `some` highest."""
    if some >= len(bound):
        return np.arange(len(bound))
    limit = np.partition(bound, len(bound) - some)[len(bound) - some]
    return np.flatnonzero(bound >= limit)
