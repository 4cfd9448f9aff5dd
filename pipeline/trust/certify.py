"""A threshold for one labeller's answers: what is counted, what is tested, what is safe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import TrustConfig
from pipeline.trust import evidence, thresholds

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


# The cap is as large as leaves gold this many times the evidence that suffices when all is right.
_ROOM = 3.0
_FINE = 200  # quantiles at which the start of the grid is sought


@dataclass(frozen=True)
class Design:
    """Answers on design images: their scores lay the grid, and they tell how many one image has.

    Attributes:
        unit: (n,) image or location, below `units`. score: (n,). own: (n,) whether of the class itself.
    """

    unit: Ints
    score: Floats
    own: Flags
    units: int

    def counts(self, grid: Floats) -> Ints:
        """(units, g) answers of the class at or above each score."""
        return _counts(self.unit[self.own], self.score[self.own], self.units, grid)

    def quantiles(self, size: int) -> Floats:
        """At most `size` falling scores that let equal shares through."""
        return thresholds.grid(self.score, 1 / size, size)


def expected(counts: Ints, most: int, units: int, target: float) -> Floats:
    """(g,) nats that so many units of gold are expected to say for precision above `target` if all is right.

    Args:
        counts: (u, g) answers of design units at each score. most: the cap.
    """
    if not len(counts):
        return np.full(counts.shape[1], units * -np.log(target))
    paid = (1 - target) / target * np.minimum(counts, most) / most
    return np.asarray(units * np.log1p(evidence.LARGEST_STAKE * paid).mean(axis=0), np.float64)


def caps(counts: Ints, units: int, target: float, delta: float) -> tuple[Ints, Floats]:
    """How many answers of one image (or location) a certificate covers, at each of g scores.

    The more it covers, the more a single image can lose, and the more images it takes to certify
    anything. So the cap is the largest that leaves room, else the one that says most.

    Returns:
        (g,) caps and (g,) evidence expected, as a share of what is needed.
    """
    largest = max(1, int(counts.max(initial=1)))
    options = np.unique(np.round(np.geomspace(1, largest, 24)).astype(np.int64))
    said = np.stack([expected(counts, int(most), units, target) / _needed(int(most), delta) for most in options])
    ample = said >= _ROOM
    last = len(options) - 1 - np.argmax(ample[::-1], axis=0)
    place = np.where(ample.any(axis=0), last, np.argmax(said, axis=0))
    return options[place], said[place, np.arange(said.shape[1])]


def _needed(most: int, delta: float) -> float:
    """Nats that certify: exact for one answer a unit, and half of the capital is not on the largest stake else."""
    return float(-np.log(delta) + (np.log(2) if most > 1 else 0.0))


@dataclass(frozen=True)
class Tally:
    """Of each unit and grid score: (u, g) answers that are accepted, and those of them that are right.

    With the unit `box` all answers are one row, since only their sums count. Otherwise of each image (or
    location) only the best (g,) `most` answers are accepted.
    """

    accepted: Ints
    right: Ints
    most: Ints

    @classmethod
    def of(cls, unit: Ints, score: Floats, right: Flags, units: int, grid: Floats, most: Ints | None) -> Tally:
        """Ties in score go by the order of the answers."""
        accepted = _counts(unit, score, units, grid)
        if most is None:
            return cls(accepted, _counts(unit[right], score[right], units, grid), np.ones(len(grid), np.int64))
        accepted = np.minimum(accepted, most)
        order = np.lexsort((-score, unit))
        running = np.concatenate([[0], np.cumsum(right[order])]).astype(np.int64)
        start = np.searchsorted(unit[order], np.arange(units))[:, None]
        return cls(accepted, running[start + accepted] - running[start], most)


@dataclass(frozen=True)
class Trial:
    """What gold says at every score of a grid.

    Attributes:
        grid: (g,) falling scores. p_values: (g,) that precision is no better than the target.
        chosen: place of the most lenient safe score; None if none is.
    """

    grid: Floats
    tally: Tally
    p_values: Floats
    chosen: int | None


def certify(unit: Ints, score: Floats, right: Flags, units: int, design: Design, config: TrustConfig) -> Trial:
    """Try thresholds on the answers of gold.

    Args:
        unit: (n,) image or location of each answer, below `units`; of no account for the unit `box`.
        score: (n,) values that float32 holds. right: (n,).
        units: how many images (or locations) gold has, those without answers included.
    """
    target, delta = config.target, config.delta
    if config.unit == "box":
        room = len(score) * np.log(target) / np.log(delta)
        grid = thresholds.grid(design.score, thresholds.start(room), config.grid)
        tally = Tally.of(np.zeros(len(score), np.int64), score, right, 1, grid, None)
    else:
        fine = design.quantiles(_FINE)
        _, rooms = caps(design.counts(fine), units, target, delta)
        room = float(rooms.max(initial=0.0))
        enough = np.flatnonzero(rooms >= thresholds.margin(room))
        first = (enough[0] + 1) / len(fine) if len(enough) else 1.0
        grid = thresholds.grid(design.score, first, config.grid)
        tally = Tally.of(unit, score, right, units, grid, caps(design.counts(grid), units, target, delta)[0])
    p_values = evidence.p_values(tally.accepted, tally.right, tally.most, config.target)
    return Trial(grid, tally, p_values, thresholds.choose(p_values, delta, config.method, room))


def _counts(unit: Ints, score: Floats, units: int, grid: Floats) -> Ints:
    """(units, g) how many scores of each unit are at or above each of the falling grid scores."""
    place = np.searchsorted(-grid, -score, side="left")
    there = place < len(grid)
    counts = np.bincount(unit[there] * len(grid) + place[there], minlength=units * len(grid))
    return np.cumsum(counts.reshape(units, len(grid)), axis=1, dtype=np.int64)
