"""Slices found by searching the facts about images for the predicates under which a model errs most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import EvaluationConfig
from pipeline.ids import joined
from pipeline.slices.columns import Columns
from pipeline.slices.honest import LEAST_IMAGES, Flags, first_half, found_row, worse
from pipeline.slices.search import top_slices

_TRIED = 10  # times as many are searched for as wanted, since many say nearly the same
_ALIKE = 0.5  # Jaccard overlap above which two slices say the same
_SHARE = 0.02  # of the images searched: a slice has at least so many


def searched(
    model: str,
    ids: Sequence[str],
    error: NDArray[np.floating],
    columns: Columns,
    units: Sequence[str],
    config: EvaluationConfig,
) -> list[dict[str, Any]]:
    """Rows of `slices` for the conjunctions of facts on which `model` errs most, not yet corrected.

    Args:
        ids, error: n held-out images and the model's error on them, NaN for images that it has not seen.
        columns: facts about the same images. units: what is independent, as `honest.units` gives it.
    """
    seen = ~np.isnan(error)
    ids, units = ([name for name, s in zip(names, seen, strict=True) if s] for names in (ids, units))
    error, columns, first = error[seen], columns.of(seen), first_half(units)
    if not config.search or not first.any() or first.all():
        return []
    rows = []
    for inside, definition in _distinct(columns, error, first, config.search):
        if (inside & ~first).sum() >= LEAST_IMAGES:
            name = f"columns_{joined([definition])[:8]}"
            rows.append(found_row("searched", name, definition, model, ids, error, inside, units))
    return rows


def _distinct(columns: Columns, error: NDArray[np.floating], first: Flags, wanted: int) -> list[tuple[Flags, str]]:
    """The best slices of the first half, without those that overlap much with a better one."""
    support = max(LEAST_IMAGES, int(np.ceil(_SHARE * first.sum())))
    found = top_slices(columns.codes[first], error[first], k=_TRIED * wanted, min_support=support)
    kept: list[tuple[Flags, str]] = []
    for slice_ in found:
        inside = columns.inside(slice_.predicates)
        alike = (_overlap(inside[first], other[first]) for other, _ in kept)
        if worse(error[first], inside[first]) and all(a <= _ALIKE for a in alike):
            kept.append((inside, columns.sql(slice_.predicates)))
        if len(kept) == wanted:
            break
    return kept


def _overlap(one: Flags, other: Flags) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))
