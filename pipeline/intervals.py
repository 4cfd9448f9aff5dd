"""Confidence intervals: of shares in closed form, of anything else by resampling images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Limits = tuple[float | None, float | None]


def clopper_pearson(right: int, total: int, confidence: float) -> Limits:
    """One-sided exact limits of a share, each of which holds with `confidence` (Clopper & Pearson 1934).

    Returns:
        The lower and the upper limit; (None, None) without observations.
    """
    from scipy.stats import beta

    if not total:
        return None, None
    low = float(beta.ppf(1 - confidence, right, total - right + 1)) if right else 0.0
    high = float(beta.ppf(confidence, right + 1, total - right)) if right < total else 1.0
    return low, high


def wilson(right: float, total: float, level: float) -> Limits:
    """Two-sided interval of a share (Wilson 1927); (None, None) without observations."""
    from scipy.stats import norm

    if not total:
        return None, None
    z = float(norm.ppf((1 + level) / 2))
    share = right / total
    centre = share + z * z / (2 * total)
    spread = z * float(np.sqrt(share * (1 - share) / total + z * z / (4 * total * total)))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def resamples(count: int, draws: int, seed: int | np.random.Generator) -> NDArray[np.int32]:
    """(draws, count) how often each of `count` images is in each bootstrap sample (Efron 1979).

    A generator in place of the seed goes on where it was.
    """
    generator = np.random.default_rng(seed)
    weights = np.zeros((draws, count), np.int32)
    if count:
        for row in weights:
            row[:] = np.bincount(generator.integers(count, size=count), minlength=count)
    return weights


def percentile(values: NDArray[np.floating], level: float) -> Limits:
    """Percentile interval of (D,) bootstrap values; (None, None) when fewer than half of them are defined."""
    low, high = percentiles(np.reshape(values, (1, -1)), level)[0].tolist()
    return (None, None) if np.isnan(low) else (low, high)


def percentiles(values: NDArray[np.floating], level: float) -> NDArray[np.float64]:
    """Percentile intervals of bootstrap values, NaN where a draw was undefined.

    Args:
        values: (n, D) draws of n quantities.

    Returns:
        (n, 2) limits, as of `np.nanquantile`; NaN where fewer than half of the draws are defined.
    """
    ordered = np.sort(np.asarray(values, np.float64), axis=1)  # NaNs come last
    defined = (~np.isnan(ordered)).sum(axis=1)
    limits = np.full((len(ordered), 2), np.nan)
    enough = np.flatnonzero((defined > 0) & (2 * defined >= ordered.shape[1]))
    for side, share in enumerate(((1 - level) / 2, (1 + level) / 2)):
        limits[enough, side] = _quantile(ordered[enough], defined[enough], share)
    return limits


def _quantile(
    ordered: NDArray[np.float64], defined: NDArray[np.int64], share: float | NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n,) quantile of the first (n,) `defined` of each row of (n, D) rising values, between two of them linearly."""
    place = share * (defined - 1)
    below = np.floor(place).astype(np.int64)
    rows = np.arange(len(ordered))
    low, high = ordered[rows, below], ordered[rows, np.minimum(below + 1, defined - 1)]
    return np.asarray(low + (high - low) * (place - below), np.float64)


def bca(
    value: NDArray[np.floating], draws: NDArray[np.floating], left_out: NDArray[np.floating], level: float
) -> NDArray[np.float64]:
    """Bias-corrected and accelerated bootstrap intervals (Efron 1987), as `scipy.stats.bootstrap` has them.

    Args:
        value: (n,) quantities. draws: (n, D) of each, NaN where undefined.
        left_out: (n, m) each without one of m images, NaN where undefined.

    Returns:
        (n, 2) limits; NaN where fewer than half of the draws, or fewer than two of the others, are defined.
        Where no image changes anything, the percentile interval.
    """
    from scipy.special import ndtr, ndtri

    ordered = np.sort(np.asarray(draws, np.float64), axis=1)  # NaNs come last
    defined = (~np.isnan(ordered)).sum(axis=1)
    at = np.asarray(value, np.float64)[:, None]
    below = ((ordered < at).sum(axis=1) + (ordered <= at).sum(axis=1)) / (2 * np.maximum(defined, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        least = 0.5 / np.maximum(defined, 1)
        bias = ndtri(np.clip(below, least, 1 - least))
        known = ~np.isnan(left_out)
        kept = known.sum(axis=1)
        mean = np.where(known, left_out, 0).sum(axis=1) / np.maximum(kept, 1)
        pull = np.where(known, mean[:, None] - left_out, 0.0)
        spread = (pull**2).sum(axis=1) ** 1.5
        skew = np.divide((pull**3).sum(axis=1), 6 * spread, out=np.zeros(len(spread)), where=spread > 0)
    limits = np.full((len(ordered), 2), np.nan)
    enough = np.flatnonzero((2 * defined >= ordered.shape[1]) & (defined > 0) & (kept >= 2))
    for side, share in enumerate(((1 - level) / 2, (1 + level) / 2)):
        moved = bias + ndtri(share)
        adjusted = np.where(spread > 0, np.clip(ndtr(bias + moved / (1 - skew * moved)), 0, 1), share)
        limits[enough, side] = _quantile(ordered[enough], defined[enough], adjusted[enough])
    return limits


def holm(p_values: NDArray[np.floating]) -> NDArray[np.float64]:
    """P-values corrected for having tested several hypotheses (Holm 1979)."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)) if len(p) else p
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1)
    return corrected
