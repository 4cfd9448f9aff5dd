"""What a score is worth: maps from raw scores to the share that is right, learnt on gold.

Two maps are tried, isotonic regression (Zadrozny & Elkan 2002) and temperature scaling (Guo et al. 2017),
and the scores as they are; the one with the least Brier score on images that it was not fitted on is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.intervals import wilson

Floats = NDArray[np.float64]
Method = Literal["raw", "isotonic", "temperature"]

METHODS: tuple[Method, ...] = ("raw", "temperature", "isotonic")
FOLDS = 5
BINS = 10
_SURE = 1e-6  # scores nearer to 0 and 1 have no finite logit
_POINTS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Map:
    """Straight lines between points: (k,) scores that do not fall, and (k,) shares that are right."""

    method: Method
    x: Floats
    y: Floats

    def __call__(self, score: NDArray[np.floating]) -> Floats:
        """(n,) probability of being right."""
        return np.interp(np.asarray(score, np.float64), self.x, self.y)


RAW = Map("raw", np.array([0.0, 1.0]), np.array([0.0, 1.0]))


def fit(method: Method, score: Floats, right: NDArray[np.bool_]) -> Map:
    """The map of (n,) scores and whether each was right; the identity when there are none."""
    if method == "raw" or not len(score):
        return RAW
    return isotonic(score, right) if method == "isotonic" else _temperature(score, right)


def isotonic(score: Floats, right: NDArray[np.bool_] | Floats) -> Map:
    """The map of (n,) scores and how far each was right, 0 to 1 (Zadrozny & Elkan 2002)."""
    from scipy.optimize import isotonic_regression

    x, inverse, weights = np.unique(score, return_inverse=True, return_counts=True)
    share = np.bincount(inverse, right) / weights
    y = np.asarray(isotonic_regression(share, weights=weights).x, np.float64)
    # Only the ends of each step are needed.
    ends = np.ones(len(x), bool)
    ends[1:-1] = (y[1:-1] != y[:-2]) | (y[1:-1] != y[2:])
    return Map("isotonic", x[ends], y[ends])


def _temperature(score: Floats, right: NDArray[np.bool_]) -> Map:
    from scipy.optimize import minimize_scalar
    from scipy.special import expit, log_expit

    logit, sign = _logit(score), np.where(right, 1.0, -1.0)

    def loss(log_inverse: float) -> float:
        return float(-log_expit(sign * logit * np.exp(log_inverse)).mean())

    inverse = np.exp(minimize_scalar(loss, bounds=(-6, 6), method="bounded").x)
    return Map("temperature", _POINTS, np.asarray(expit(_logit(_POINTS) * inverse), np.float64))


def _logit(score: Floats) -> Floats:
    inside = np.clip(score, _SURE, 1 - _SURE)
    return np.asarray(np.log(inside / (1 - inside)), np.float64)


def out_of_fold(method: Method, score: Floats, right: NDArray[np.bool_], fold: NDArray[np.int64]) -> Floats:
    """(n,) probabilities, each from a map that was fitted on the other folds."""
    said = np.empty(len(score))
    for part in np.unique(fold):
        inside = fold == part
        said[inside] = fit(method, score[~inside], right[~inside])(score[inside])
    return said


def brier(said: Floats, right: NDArray[np.bool_]) -> float:
    """Mean squared error of probabilities (Brier 1950)."""
    return float(np.mean((said - right) ** 2))


def expected_error(said: Floats, right: NDArray[np.bool_]) -> float:
    """Expected calibration error over BINS equally wide bins (Naeini et al. 2015)."""
    place = _bin(said)
    gap = np.bincount(place, said - right, BINS)
    return float(np.abs(gap).sum() / len(said))


def reliability(said: Floats, right: NDArray[np.bool_], level: float) -> list[tuple[float, float, float, float]]:
    """(mean probability, share right, and its limits) of every bin that holds answers (Wilson's interval)."""
    place = _bin(said)
    points = []
    for number in np.unique(place):
        inside = place == number
        good, total = int(right[inside].sum()), int(inside.sum())
        low, high = wilson(good, total, level)
        points.append((float(said[inside].mean()), good / total, float(low or 0.0), float(high or 0.0)))
    return points


def _bin(said: Floats) -> NDArray[np.int64]:
    return np.minimum((said * BINS).astype(np.int64), BINS - 1)
