"""What labels, scores and slices are made of on either side: shares, PSI and chi-square."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.drift.permutations import ChiSquare, EachShare, each_p_value
from pipeline.drift.sides import Blocks, Floats, Ints
from pipeline.intervals import holm

BINS = 10
_SMALL = 0.5  # added to every count, so that an empty category has a finite index


@dataclass(frozen=True)
class Mix:
    """What each of n images holds of c categories.

    Attributes:
        counts: (n, c), not negative. totals: (n,) what shares are of: the row's sum, or 1 where categories overlap.
    """

    categories: Sequence[str]
    counts: Floats
    totals: Floats

    @property
    def chi_square(self) -> ChiSquare:
        """Pearson's statistic of sides by categories, which are disjoint."""
        return ChiSquare(self.counts, self.totals)

    def of(self, images: Ints) -> Mix:
        """The same of some of the images."""
        return Mix(self.categories, self.counts[images], self.totals[images])

    def rows(
        self, batch: str, mix: str, subject: str, blocks: Blocks, permutations: int, draw: int
    ) -> list[dict[str, Any]]:
        """Rows of `drift_shares`: each category on its own, p-values corrected after Holm."""
        side = blocks.in_batch[blocks.number]
        here, there = self.counts[side].sum(axis=0), self.counts[~side].sum(axis=0)
        m, n = float(self.totals[side].sum()), float(self.totals[~side].sum())
        each = EachShare(self.counts, self.totals)
        p_values = holm(each_p_value(each, blocks.number, blocks.in_batch, permutations, draw))
        terms = psi(here, m, there, n)
        return [
            {
                "batch": batch, "mix": mix, "subject": subject, "category": name, "count": float(here[k]),
                "reference_count": float(there[k]), "share": float(here[k] / m), "reference_share": float(there[k] / n),
                "psi": float(terms[k]), "p_value": float(p_values[k]),
            }
            for k, name in enumerate(self.categories)
        ]  # fmt: skip


def psi(here: Floats, m: float, there: Floats, n: float) -> Floats:
    """(c,) terms (p - q) ln(p / q) of the population stability index (Siddiqi 2006).

    Shares are (count + 0.5) / (total + c / 2), so that counts of none or few give a finite and tame term.

    Args:
        here, there: (c,) counts. m, n: their totals.
    """
    p, q = (here + _SMALL) / (m + _SMALL * len(here)), (there + _SMALL) / (n + _SMALL * len(there))
    return np.asarray((p - q) * np.log(p / q), np.float64)


def label_mix(classes: Sequence[str], weights: Floats, owner: Any, images: int) -> Mix:
    """How much of each class each image holds; an annotation counts as its score, so that no threshold is needed.

    Args:
        classes, weights, owner: of each annotation: class, score, and number of its image, below `images`.
    """
    names, place = np.unique(np.asarray(classes, str), return_inverse=True)
    counts = np.zeros((images, len(names)))
    np.add.at(counts, (owner, place.reshape(-1)), weights)
    return Mix(names.tolist(), counts, counts.sum(axis=1))


def score_mix(scores: Floats, owner: Any, images: int) -> Mix:
    """Annotations of each image by their score, in ten parts of about equal size of both sides together."""
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, BINS + 1)[1:-1]))
    counts = np.zeros((images, len(edges) + 1))
    np.add.at(counts, (owner, np.searchsorted(edges, scores, side="right")), 1)
    ends = [f"{e:.3g}" for e in edges]
    ranges = zip(["0", *ends], [*ends, "1"], strict=True)
    names = [f"{a} to {b} ({k} of {len(ends) + 1})" for k, (a, b) in enumerate(ranges, start=1)]
    return Mix(names, counts, counts.sum(axis=1))


def slice_mix(names: Sequence[str], members: Floats) -> Mix:
    """(n, s) which slices each image is in; slices may overlap."""
    return Mix(names, members, np.ones(len(members)))
