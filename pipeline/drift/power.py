"""What a batch of this size would have shown: the smallest shift that the MMD test catches, by simulation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.drift.sides import Floats, Ints, numbered

UNIT = "standard deviations along the reference's leading direction"
LEAST_LOCATIONS = 20
POOL = 1000  # images that simulated batches are drawn from, so that a kernel between all of them can be held
_NULLS, _SHIFTED = 2000, 500
_LARGEST = 8.0  # standard deviations
_STEPS = 9


def leading_direction(vectors: Floats) -> tuple[Floats, float]:
    """(d,) first principal axis of (n, d) vectors, and their standard deviation along it."""
    centred = vectors - vectors.mean(axis=0)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    return axes[0] * np.sign(axes[0][np.abs(axes[0]).argmax()]), float(scale[0] / np.sqrt(max(1, len(vectors) - 1)))


class Simulation:
    """Batches and references drawn from a reference's own locations, with replacement.

    Pairs of an image with itself are left out, as no real batch holds the reference's images. Shifting a
    batch by s along a unit vector u multiplies a Gaussian kernel by factors of its two images, so that any
    shift costs one matrix product.

    Args:
        vectors: (n, d) one an image of the reference. location: (n,). width: of the kernel exp(-d^2 / width).
        here, there: locations of the batch and of the reference.
    """

    def __init__(
        self, vectors: Floats, location: Ints, here: int, there: int, width: float, alpha: float, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        direction, self.deviation = leading_direction(vectors)
        self.along = (vectors - vectors.mean(axis=0)) @ direction
        squares = np.einsum("ij,ij->i", vectors, vectors)
        apart = np.clip(squares[:, None] + squares[None] - 2 * vectors @ vectors.T, 0, None)
        self.kernel = np.exp(-apart / width)
        np.fill_diagonal(self.kernel, 0)
        self.width = width
        place = numbered([str(p) for p in location])
        self.batch, self.rest = (self._weights(rng, place, count) for count in (here, there))
        inside = self._within(self.batch) + self._within(self.rest)
        self.pairs = self.batch.sum(axis=0) * self.rest.sum(axis=0) - (self.batch * self.rest).sum(axis=0)
        null = inside - 2 * self._across(0.0, self.batch, self.rest) / self.pairs
        self.critical = float(np.quantile(null, 1 - alpha, method="higher"))
        self.inside = inside[:_SHIFTED]
        self.batch, self.rest, self.pairs = (x[..., :_SHIFTED] for x in (self.batch, self.rest, self.pairs))

    @staticmethod
    def _weights(rng: np.random.Generator, place: Ints, count: int) -> NDArray[np.float64]:
        """(n, draws) how often each image is in each draw of `count` locations."""
        locations = int(place.max()) + 1
        drawn = rng.multinomial(count, np.full(locations, 1 / locations), _NULLS)
        return drawn.T[place].astype(np.float64)

    def _within(self, weight: Floats) -> Floats:
        total = np.einsum("ns,ns->s", weight, self.kernel @ weight)
        pairs = weight.sum(axis=0) ** 2 - (weight**2).sum(axis=0)
        return np.divide(total, pairs, out=np.ones_like(total), where=pairs > 0)

    def _across(self, shift: float, batch: Floats, rest: Floats) -> Floats:
        tilt = np.exp(2 * shift * self.along / self.width)[:, None]
        total = np.einsum("ns,ns->s", batch / tilt, self.kernel @ (rest * tilt))
        return np.asarray(total * np.exp(-(shift**2) / self.width), np.float64)

    def power(self, shift: float) -> float:
        """Share of simulated batches, shifted by so many standard deviations, that the test calls drifted."""
        across = self._across(shift * self.deviation, self.batch, self.rest) / self.pairs
        return float((self.inside - 2 * across > self.critical).mean())


def smallest_shift(
    vectors: Floats, location: Ints, here: int, there: int, width: float, alpha: float, power: float, seed: int
) -> float | None:
    """Smallest shift of the mean, in UNIT, that the MMD test at `alpha` catches with this power.

    Args:
        vectors, location, here, there, width: as of `Simulation`; POOL vectors are enough.

    Returns:
        None where the reference has too few locations to draw from, where `alpha` is too small for so many
        draws, or where a shift of 8 is not caught.
    """
    if len(np.unique(location)) < LEAST_LOCATIONS or alpha * _NULLS < 10 or here < 2:
        return None
    made = Simulation(vectors, location, here, there, width, alpha, seed)
    if made.deviation <= 0 or made.power(_LARGEST) < power:
        return None
    low, high = 0.0, _LARGEST
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if made.power(middle) >= power else (middle, high)
    return high
