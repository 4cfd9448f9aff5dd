"""Is an image unlike every image of the reference? Mahalanobis distance, and a t test of a new observation."""

from __future__ import annotations

import numpy as np

from pipeline.drift.sides import Flags, Floats

LEAST_SPREAD = 0.05  # of log novelty: a reference of equal images does not make 5 % a drift


def reference_mahalanobis(values: Floats, in_batch: Flags, left_out: Flags, resolution: Floats) -> Floats:
    """(n,) squared Mahalanobis distance of each image from the reference images that are not left out.

    Args:
        values: (n, k) measures; rows with NaN are passed over. in_batch: (n,). left_out: (n, n).
        resolution: (k,) deviations added to the reference's own, in quadrature.

    Returns:
        NaN where fewer than k + 2 reference images are left.
    """
    n, k = values.shape
    known = np.asarray(~np.isnan(values).any(axis=1), bool)
    reference = np.flatnonzero(known & ~in_batch)
    distance = np.full(n, np.nan)
    if len(reference) < k + 2:
        return distance
    centred = values - values[reference].mean(axis=0)
    own = centred[reference]
    use = (known[:, None] & ~left_out[:, reference]).astype(np.float64)
    count = use.sum(axis=1)
    enough: Flags = known & (count >= k + 2)
    count = np.maximum(count, 2)
    mean = use @ own / count[:, None]
    square = (use @ (own[:, :, None] * own[:, None, :]).reshape(len(own), k * k)).reshape(n, k, k)
    covariance = (square - count[:, None, None] * mean[:, :, None] * mean[:, None, :]) / (count - 1)[:, None, None]
    covariance[enough] += np.diag(resolution**2)
    offset = (centred - mean)[enough]
    distance[enough] = np.einsum("ni,ni->n", offset, np.linalg.solve(covariance[enough], offset[..., None])[..., 0])
    return distance


def prediction_test(batch: Floats, own: Floats, here: float, there: float) -> tuple[float, float]:
    """Student's t that the mean of `batch` is a new observation like those in `own`, and its one-sided p.

    Args:
        batch, own: logarithmic scores. here, there: independent observations that they are worth; there > 1.
    """
    from scipy.stats import t

    spread = max(float(np.std(own)) * np.sqrt(there / (there - 1)), LEAST_SPREAD)
    gap = float(batch.mean() - own.mean())
    statistic = gap / (spread * np.sqrt(1 / here + 1 / there))
    return float(statistic), float(t.sf(statistic, there - 1))
