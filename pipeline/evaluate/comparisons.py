"""Which of two models is better, on the same images: differences with intervals, and what chance could explain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations
from math import ceil, comb
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import binomtest

from pipeline import schema
from pipeline.config import ProjectConfig
from pipeline.evaluate.compare import Paired, paired, tested
from pipeline.evaluate.mask_ap import outlines
from pipeline.evaluate.rows import SPLITS, Resampling, members_by_slice, producers_of
from pipeline.evaluate.units import Spread, drawn
from pipeline.intervals import holm

LEAST_DRAWS, MOST_DRAWS = 2000, 20_000
LESS_IS_BETTER = ("count_mae",)
Floats = NDArray[np.float64]


def compare(
    models: pa.Table,
    ground_truth: pa.Table,
    splits: pa.Table,
    slices_of_images: pa.Table,
    config: ProjectConfig,
    producers: Iterable[str] = (),
    masks: pa.Table | None = None,
    images: pa.Table | None = None,
    evaluation: pa.Table | None = None,
    spread: Spread | None = None,
) -> pa.Table:
    """The table `comparisons`: every two models on test, on all images and on each declared slice.

    Detection: AP50, AP, with `masks` mask_AP50 and with `evaluation` count_mae, of both on the same bootstrap
    samples of images; the p-value is twice the smaller share of samples on either side of no difference, itself
    counted as one. There are 2,000 samples, and up to 20,000 where pairs and slices are so many that the corrected
    p-value could not get small. Classification: accuracy, and McNemar's exact test on the images of which the two say
    different things. Intervals of the difference are of the kind that `evaluation.interval` asks for. `corrected` is
    Holm's, over all rows of a metric.

    `better` names the model that is, where `corrected` is below 1 - level; else it is null.

    Args:
        masks, images: those tables, for masks; without them only boxes are compared.
        evaluation: that table, whose operating thresholds counts are taken at.
        spread: where draws are made, if not here one after the other.
    """
    own = Resampling.of(config.evaluation)
    found_in = members_by_slice(slices_of_images, schema.held_out(splits, SPLITS[1]))
    pairs = comb(len(producers_of(models, producers)), 2) if config.task == "detection" else 0  # McNemar's is exact
    resampling = replace(own, draws=_draws(pairs * len(found_in), own))
    where = (models, ground_truth, splits, slices_of_images, config)
    said = tested(*where, producers, evaluation)
    if masks is not None and images is not None:
        more = (splits, slices_of_images, config.ontology.names, SPLITS[1:])
        said += outlines(models, masks, ground_truth, images, *more)
    alike: dict[tuple[str, str], list[Paired]] = defaultdict(list)
    for one in paired(drawn(said, resampling, ["AP50", "AP"], spread)):
        alike[one.metric, one.slice].append(one)
    rows = [_row(a, b, resampling) for several in alike.values() for a, b in combinations(several, 2)]
    return _corrected([row for row in rows if row is not None], resampling.level)


def _draws(family: int, own: Resampling) -> int:
    """Samples for tests of `family` rows: a p-value is 2 / (1 + draws) at least, which its correction multiplies."""
    enough = ceil(4 * family / (1 - own.level))  # half of what is allowed at the least
    return max(own.draws, LEAST_DRAWS, min(enough, MOST_DRAWS))


def _row(a: Paired, b: Paired, resampling: Resampling) -> dict[str, Any] | None:
    difference = a.values - b.values
    if not np.isfinite(difference[0]):
        return None
    low, high = (None if np.isnan(end) else end for end in resampling.limits([difference])[0].tolist())
    if a.right is not None and b.right is not None:
        p_value: float | None = _mcnemar(a.right, b.right)
    else:
        p_value = _bootstrap(difference[1 : 1 + resampling.draws])
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
        "level": resampling.level,
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
    for metric in {row["metric"] for row in rows}:
        tested = [row for row in rows if row["metric"] == metric and row["p_value"] is not None]
        for row, corrected in zip(tested, holm(np.array([r["p_value"] for r in tested])).tolist(), strict=True):
            row["corrected"] = corrected
            if corrected < 1 - level:
                row["better"] = row["model"] if (row["difference"] > 0) != (metric in LESS_IS_BETTER) else row["other"]
    return schema.table("comparisons").from_rows(rows)
