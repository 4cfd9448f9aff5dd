"""How strongly gold speaks for a precision: exact tails where answers are independent, bets where they cluster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.intervals import Limits, clopper_pearson

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Shares of the largest stake that cannot go bankrupt. Half of the capital is on the largest: it is
# the one that wins when all is right, which small gold depends on.
LARGEST_STAKE = 0.999
_STAKES = np.array([LARGEST_STAKE, *np.geomspace(0.02, 0.8, 9)])
_CAPITAL = np.array([0.5, *[0.5 / 9] * 9])
_STEPS = 40  # of bisection: to 1e-12


def p_values(accepted: Ints, right: Ints, most: Ints, target: float) -> Floats:
    """That precision is `target` or less, for each of G thresholds.

    Args:
        accepted, right: (m, G) answers of each of m independent units (images, locations) that a
            threshold accepts, and those of them that are right.
        most: (G,) the largest number of a unit that the threshold accepts. Where it is 1, the
            accepted answers are independent and the tail is exact binomial.

    Returns:
        (G,) p-values; 1 where nothing is accepted.
    """
    from scipy.stats import binom

    total, good = accepted.sum(axis=0), right.sum(axis=0)
    exact: Floats = np.where(total > 0, binom.sf(good - 1, np.maximum(total, 1), target), 1.0)
    for place in np.flatnonzero(most > 1):
        capital = log_capital(accepted[:, place], right[:, place], int(most[place]), target)
        exact[place] = min(1.0, float(np.exp(-capital)))
    return exact


def log_capital(accepted: Ints, right: Ints, most: int, target: float) -> float:
    """Logarithm of the capital won by betting on every unit that precision exceeds `target`.

    A unit pays right - target * accepted, which has no positive mean unless precision, the ratio of
    means, exceeds the target; nobody loses more than target * most. A bettor with a fixed stake then
    has a capital whose mean is at most 1, and so has the mixture of several; 1 / capital is a
    p-value by Markov's inequality (Waudby-Smith & Ramdas 2023). The order of the units is of no
    consequence.

    Args:
        accepted, right: (m,) of each unit, accepted <= most.
    """
    won, count = np.unique(right - target * accepted, return_counts=True)
    stakes = _STAKES / (target * most)
    growth = count @ np.log1p(won[:, None] * stakes[None])
    return float(np.logaddexp.reduce(np.log(_CAPITAL) + growth))


def limits(accepted: Ints, right: Ints, most: int, confidence: float) -> Limits:
    """One-sided limits of sum(right) / sum(accepted) in the population, each with `confidence`.

    Args:
        accepted, right: (m,) of each unit. most: the largest number accepted of a unit; where it is
            1, the limits are Clopper-Pearson's, else the bets above are inverted.

    Returns:
        (None, None) where nothing is accepted.
    """
    total, good = int(accepted.sum()), int(right.sum())
    if not total:
        return None, None
    if most <= 1:
        return clopper_pearson(good, total, confidence)
    low = _lower(accepted, right, most, confidence)
    return low, 1 - _lower(accepted, accepted - right, most, confidence)


def _lower(accepted: Ints, right: Ints, most: int, confidence: float) -> float:
    """Largest share that the bets refute, by bisection."""
    needed = -np.log(1 - confidence)
    low, high = 0.0, right.sum() / accepted.sum()
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle > 0 and log_capital(accepted, right, most, middle) >= needed:
            low = middle
        else:
            high = middle
    return float(low)


def least_units(target: float, delta: float) -> int:
    """Answers that must all be right before `target` can be certified at confidence 1 - `delta`."""
    if not 0 < target < 1 or not 0 < delta < 1:
        return 1
    return int(np.ceil(np.log(delta) / np.log(target) - 1e-9))


def units_needed(share: float, target: float, delta: float, power: float = 0.8) -> int | None:
    """Independent answers after which a precision of `share` is certified with probability `power`.

    Normal approximation to the binomial test, but no fewer than must all be right. None where
    `share` does not exceed `target`.
    """
    from scipy.stats import norm

    if share <= target:
        return None
    spread = norm.isf(delta) * np.sqrt(target * (1 - target)) + norm.isf(1 - power) * np.sqrt(share * (1 - share))
    return max(least_units(target, delta), int(np.ceil((spread / (share - target)) ** 2)))
