"""Precision over recall, of many classes at once.

A class is a run of one flat array. Between two right detections precision can only fall and recall stays,
so that only the right ones count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def counts_to_reach(totals: Ints, recalls: Floats) -> Ints:
    """(K, R) how many of `totals` (K,) objects must be found, one at least, to reach each recall.

    More than can ever be found where there are no objects.
    """
    whole = np.maximum(totals, 1)[:, None]
    count = np.ceil(recalls * whole).astype(np.int64)
    # Products are rounded, but what COCO compares is the quotient.
    count -= (count - 1) / whole >= recalls
    count += count / whole < recalls
    return np.where(totals[:, None] > 0, np.maximum(count, 1), np.iinfo(np.int64).max)


def interpolated(precision: Floats, first: Ints, needed: Ints) -> Floats:
    """(K, R) best precision at a recall or beyond it, 0 where the recall is never reached.

    Args:
        precision: (p,) at each right detection, class after class. first: (K + 1,) where each class
            begins. needed: (K, R) of `counts_to_reach`.
    """
    reached = needed <= np.diff(first)[:, None]
    blocks = (first[:-1, None] + needed - 1)[reached]
    values = np.zeros(needed.shape)
    if len(blocks):
        values[reached] = np.maximum.reduceat(precision, blocks)
    return np.maximum.accumulate(values[:, ::-1], axis=1)[:, ::-1]
