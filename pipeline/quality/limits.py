"""Which values of a measure are flagged: fixed limits of project.yaml, and those learned from the images.

A learned limit lies `outlier` robust standard deviations (1.4826 MAD) from the median, as Leys et al. 2013
(Detecting outliers: do not use standard deviation around the mean) recommend; sizes and sharpness are compared
as logarithms. The deviation is never taken for smaller than the rule's `floor`, so that nearly equal images do
not flag their own rounding, and nothing is learned from fewer than MIN_BATCH images.

Limits are learned twice. Those of a batch flag in `quality.issues` as soon as the batch is measured, and never
change with later batches, so that nothing made from them does. Those of the whole project find also a batch that
is odd as a whole: tables `quality_limits` and `quality_issues`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import CurationConfig, Issue, QualityConfig

ISSUES: tuple[str, ...] = get_args(Issue)
MIN_BATCH = 10
FIXED, LEARNED = "project.yaml", "learned"

Values = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Rule:
    """What is learned for a flag: on which sides of the median of which measure.

    Attributes:
        floor: least robust standard deviation, in the measure's unit after `scale`.
        scale, back: monotone transform under which the measure is compared, and its inverse.
    """

    issue: str
    measure: str
    low: bool
    high: bool
    floor: float
    scale: Callable[[Any], Any] = lambda x: x
    back: Callable[[Any], Any] = lambda x: x


RULES = (
    Rule("blurry", "sharpness", True, False, 0.2, np.log1p, np.expm1),
    Rule("dark", "brightness", True, False, 0.02),
    Rule("bright", "brightness", False, True, 0.02),
    Rule("low_information", "entropy", True, False, 0.2),
    Rule("odd_size", "area", True, True, 0.1, np.log, np.exp),
    Rule("odd_aspect", "aspect_ratio", True, True, 0.05, np.log, np.exp),
)


@dataclass(frozen=True)
class Limit:
    """Values below `low` or above `high` are flagged. `median` and `images`: what it was learned from."""

    issue: str
    measure: str
    source: str
    low: float = -math.inf
    high: float = math.inf
    median: float | None = None
    images: int = 0

    def beyond(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(n,) which values are flagged."""
        return np.asarray((values < self.low) | (values > self.high))


def fixed(config: QualityConfig) -> list[Limit]:
    """The limits of project.yaml."""
    return [
        Limit("blurry", "sharpness", FIXED, low=config.blurry),
        Limit("blurry", "thumbnail_sharpness", FIXED, low=config.blurry_thumbnail),
        Limit("dark", "brightness", FIXED, low=config.dark),
        Limit("dark", "highlights", FIXED, low=config.dark_highlights),
        Limit("bright", "brightness", FIXED, high=config.bright),
        Limit("bright", "shadows", FIXED, high=config.bright_shadows),
        Limit("low_information", "entropy", FIXED, low=config.entropy),
        Limit("near_uniform", "contrast", FIXED, low=config.near_uniform),
        Limit("odd_size", "shortest_edge", FIXED, low=config.shortest_edge),
        Limit("odd_aspect", "aspect_ratio", FIXED, low=1 / config.aspect, high=config.aspect),
        Limit("grayscale", "colourfulness", FIXED, low=config.grayscale),
    ]


def learned(values: Values, config: QualityConfig) -> list[Limit]:
    """Limits at `outlier` robust deviations from the median, for the flags that project.yaml lets be learned."""
    found = []
    for rule in RULES:
        n = len(values[rule.measure])
        if n < MIN_BATCH or rule.issue not in config.learned:
            continue
        compared = rule.scale(values[rule.measure])
        centre = float(np.median(compared))
        deviation = max(1.4826 * float(np.median(np.abs(compared - centre))), rule.floor)
        reach = config.outlier * deviation
        limit = Limit(rule.issue, rule.measure, LEARNED, median=float(rule.back(centre)), images=n)
        if rule.low:
            limit = replace(limit, low=float(rule.back(centre - reach)))
        if rule.high:
            limit = replace(limit, high=float(rule.back(centre + reach)))
        found.append(limit)
    return found


def flag(measured: pa.Table, config: CurationConfig) -> pa.Table:
    """The `quality` table of a batch: the measures with their `issues`.

    Args:
        measured: what QualityWorker returns for the whole batch.
    """
    values = _values(measured)
    raised = {issue: np.zeros(measured.num_rows, bool) for issue in ISSUES}
    for limit in fixed(config.quality) + learned(values, config.quality):
        raised[limit.issue] |= limit.beyond(values[limit.measure])
    hits = np.stack([raised[issue] for issue in ISSUES], axis=1)
    issues = [[name for name, hit in zip(ISSUES, row, strict=True) if hit] for row in hits.tolist()]
    kept = measured.drop_columns(["width", "height"])
    return schema.table("quality").conform(kept.append_column("issues", pa.array(issues, schema.STRINGS)))


def project_limits(quality: pa.Table, images: pa.Table, config: CurationConfig) -> dict[str, pa.Table]:
    """The tables `quality_limits` and `quality_issues`.

    Args:
        quality, images: rows of all batches; images that were not measured are left out.
    """
    sizes = images.select(["image_id", "batch", "width", "height"])
    rows = quality.drop_columns("issues").join(sizes, ["image_id", "batch"], join_type="inner")
    rows = rows.sort_by([("image_id", "ascending"), ("batch", "ascending")]).combine_chunks()
    values = _values(rows)
    limits = fixed(config.quality) + learned(values, config.quality)
    beyond = [limit.beyond(values[limit.measure]) for limit in limits]
    told = [_told(limit, int(hits.sum())) for limit, hits in zip(limits, beyond, strict=True)]
    flagged = list(_flagged(rows, values, limits, beyond))
    issues = pa.concat_tables(flagged) if flagged else schema.table("quality_issues").empty()
    order = [("image_id", "ascending"), ("batch", "ascending"), ("issue", "ascending")]
    return {
        "quality_limits": schema.table("quality_limits").from_rows(told),
        "quality_issues": issues.sort_by(order),  # type: ignore[arg-type]
    }


def _told(limit: Limit, flagged: int) -> dict[str, Any]:
    """The row of `quality_limits`."""
    return {
        "issue": limit.issue,
        "measure": limit.measure,
        "source": limit.source,
        "low": limit.low if math.isfinite(limit.low) else None,
        "high": limit.high if math.isfinite(limit.high) else None,
        "median": limit.median,
        "images": limit.images,
        "flagged": flagged,
    }


def _flagged(
    rows: pa.Table, values: Values, limits: list[Limit], beyond: list[NDArray[np.bool_]]
) -> Iterator[pa.Table]:
    """Rows of `quality_issues`; of several limits of one flag, the first that an image is beyond is named."""
    told = {issue: np.zeros(rows.num_rows, bool) for issue in ISSUES}
    for limit, hits in zip(limits, beyond, strict=True):
        new = np.flatnonzero(hits & ~told[limit.issue])
        told[limit.issue] |= hits
        if not len(new):
            continue
        value = values[limit.measure][new]
        yield schema.table("quality_issues").from_columns(
            {
                **{c: rows.column(c).take(pa.array(new)) for c in ("image_id", "batch")},
                **{c: pa.array([getattr(limit, c)] * len(new)) for c in ("issue", "measure", "source")},
                "value": pa.array(value),
                "limit": pa.array(np.where(value < limit.low, limit.low, limit.high)),
            }
        )


def _values(rows: pa.Table) -> Values:
    """(n,) of each measure that a limit is about, by name."""
    width, height = (rows.column(c).to_numpy().astype(np.float64) for c in ("width", "height"))
    wanted = {limit.measure for limit in fixed(QualityConfig())} | {rule.measure for rule in RULES}
    columns = {c: rows.column(c).to_numpy().astype(np.float64) for c in wanted if c in rows.column_names}
    return columns | {"area": width * height, "shortest_edge": np.minimum(width, height)}
