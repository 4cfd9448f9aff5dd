"""Dimension by dimension: Kolmogorov-Smirnov tests, corrected for having made so many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.drift.sides import Blocks, Floats
from pipeline.intervals import holm


@dataclass(frozen=True)
class Dimensions:
    """Tests of d dimensions.

    Attributes:
        statistic, p_value, holm, q_value, shift: (d,) KS distance; its p-value; that corrected after Holm (1979)
            and after Benjamini & Hochberg (1995); difference of means in pooled standard deviations.
    """

    names: Sequence[str]
    statistic: Floats
    p_value: Floats
    holm: Floats
    q_value: Floats
    shift: Floats

    def rows(self, batch: str, subject: str) -> list[dict[str, Any]]:
        """Rows of `drift_dimensions`."""
        columns = (self.statistic, self.p_value, self.holm, self.q_value, self.shift)
        names = ("statistic", "p_value", "holm", "q_value", "shift")
        return [
            {"batch": batch, "subject": subject, "dimension": name} | dict(zip(names, map(float, values), strict=True))
            for name, *values in zip(self.names, *columns, strict=True)
        ]

    def words(self, level: float) -> str:
        """How many dimensions differ, and the one that differs most."""
        found = f"{(self.holm < level).sum()} by Holm, {(self.q_value < level).sum()} by Benjamini-Hochberg"
        return f"of {len(self.names)} dimensions, {found}; first {self.names[int(self.p_value.argmin())]}"


def by_dimension(values: Floats, names: Sequence[str], blocks: Blocks) -> Dimensions:
    """`scipy.stats.ks_2samp` of each column of (n, d) `values`.

    A location is one observation, the mean of its images: the test wants independent ones.
    """
    from scipy.stats import false_discovery_control, ks_2samp

    means = blocks.means(values)
    here, there = means[blocks.in_batch], means[~blocks.in_batch]
    found = ks_2samp(here, there, axis=0)
    p_value = np.clip(np.asarray(found.pvalue, np.float64), 0, 1)
    freedom = max(1, len(means) - 2)
    spread = np.sqrt((here.var(axis=0) * len(here) + there.var(axis=0) * len(there)) / freedom)
    gap = here.mean(axis=0) - there.mean(axis=0)
    shift = np.divide(gap, spread, out=np.zeros_like(gap), where=spread > 0)
    q_value = np.asarray(false_discovery_control(p_value, method="bh"), np.float64)
    return Dimensions(names, np.asarray(found.statistic, np.float64), p_value, holm(p_value), q_value, shift)
