"""Which of two models is better, on the same images: differences with intervals, and what chance could explain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import binomtest

from pipeline import schema
from pipeline.config import ProjectConfig
from pipeline.evaluate.compare import Paired, paired_values
from pipeline.intervals import holm, percentile

LEAST_DRAWS = 2000  # fewer cannot tell small p-values, which the correction needs
Floats = NDArray[np.float64]


def compare(
    models: pa.Table,
    ground_truth: pa.Table,
    splits: pa.Table,
    slices_of_images: pa.Table,
    config: ProjectConfig,
    producers: Iterable[str] = (),
) -> pa.Table:
    """The table `comparisons`: every two models on test, on all images and on each declared slice.

    Detection: AP50 of both on the same bootstrap samples of images; the p-value is twice the smaller share of
    samples on either side of no difference, itself counted as one. Classification: accuracy, and McNemar's exact
    test on the images of which the two say different things. `corrected` is Holm's, over all rows.

    `better` names the model that is, where `corrected` is below 1 - level; else it is null.
    """
    draws, level = max(config.evaluation.bootstrap, LEAST_DRAWS), config.evaluation.level
    by_slice: dict[str, list[Paired]] = defaultdict(list)
    for paired in paired_values(models, ground_truth, splits, slices_of_images, config, draws, producers):
        by_slice[paired.slice].append(paired)
    rows = [_row(a, b, level) for found in by_slice.values() for a, b in combinations(found, 2)]
    return _corrected([row for row in rows if row is not None], level)


def _row(a: Paired, b: Paired, level: float) -> dict[str, Any] | None:
    difference = a.values - b.values
    if not np.isfinite(difference[0]):
        return None
    low, high = percentile(difference[1:], level) if len(difference) > 1 else (None, None)
    if a.right is not None and b.right is not None:
        p_value: float | None = _mcnemar(a.right, b.right)
    else:
        p_value = _bootstrap(difference[1:])
    return {
        "model": a.model,
        "other": b.model,
        "slice": a.slice,
        "metric": a.metric,
        "value": float(a.values[0]),
        "other_value": float(b.values[0]),
        "difference": float(difference[0]),
        "low": low,
        "high": high,
        "level": level,
        "p_value": p_value,
        "images": a.images,
    }


def _bootstrap(difference: Floats) -> float | None:
    known = difference[~np.isnan(difference)]
    if not len(known):
        return None
    side = min((known <= 0).sum(), (known >= 0).sum())
    return min(1.0, 2 * (1 + float(side)) / (1 + len(known)))


def _mcnemar(right: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    only, theirs = int((right & ~other).sum()), int((other & ~right).sum())
    return float(binomtest(only, only + theirs).pvalue) if only + theirs else 1.0


def _corrected(rows: list[dict[str, Any]], level: float) -> pa.Table:
    tested = [row for row in rows if row["p_value"] is not None]
    for row, corrected in zip(tested, holm(np.array([r["p_value"] for r in tested])).tolist(), strict=True):
        row["corrected"] = corrected
        if corrected < 1 - level:
            row["better"] = row["model"] if row["difference"] > 0 else row["other"]
    return schema.table("comparisons").from_rows(rows)
