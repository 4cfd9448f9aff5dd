"""Slices that hold: found on one half of the held-out images, tested on the other, corrected for all tests.

A slice that is found and judged on the same images is often an accident: of many candidates one always
looks bad.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import EvaluationConfig
from pipeline.ids import seed
from pipeline.intervals import holm

PERMUTATIONS = 2000
# A slice needs this many images in each half to be worth a test.
LEAST_IMAGES = 5
# With fewer locations whole ones cannot be dealt out evenly, so images are.
_LEAST_LOCATIONS = 20

Flags = NDArray[np.bool_]


def first_half(ids: Sequence[str], locations: Mapping[str, str] | None = None) -> Flags:
    """(n,) whether each image is in the half on which slices are looked for.

    Images of one location stay together where there are 20 or more. Halves are drawn by name, so they do
    not change when other images come.
    """
    places = [(locations or {}).get(i, i) for i in ids]
    names = places if len(set(places)) >= _LEAST_LOCATIONS else ids
    return np.array([seed("half", name) % 2 == 0 for name in names], bool)


def worse(error: NDArray[np.floating], inside: Flags) -> bool:
    """Whether the mean error is larger inside than outside, both being there."""
    return bool(inside.any() and not inside.all() and error[inside].mean() > error[~inside].mean())


def p_worse(error: NDArray[np.floating], inside: Flags, draw_seed: int) -> float | None:
    """One-sided p-value that the mean error inside is no larger than outside.

    Exact (hypergeometric) where errors are 0 or 1, else by 2,000 permutations; None where either
    side is empty.
    """
    from scipy.stats import hypergeom

    n, k = len(error), int(inside.sum())
    if not 0 < k < n:
        return None
    if np.isin(error, (0, 1)).all():
        return float(hypergeom.sf(int(error[inside].sum()) - 1, n, int(error.sum()), k))
    generator = np.random.default_rng(draw_seed)
    observed = error[inside].sum()
    drawn = np.array([generator.permutation(error)[:k].sum() for _ in range(PERMUTATIONS)])
    # Sums in another order differ in the last digits; those are ties.
    return float((1 + (drawn >= observed - 1e-9).sum()) / (1 + PERMUTATIONS))


def confirmed(rows: list[dict[str, Any]], config: EvaluationConfig) -> list[dict[str, Any]]:
    """`rows` with Holm's corrected p-values, confirmed where those are below 1 - level."""
    tested = [row for row in rows if row["p_value"] is not None]
    corrected = holm(np.array([row["p_value"] for row in tested]))
    for row, p in zip(tested, corrected, strict=True):
        row |= {"p_value": float(p), "confirmed": bool(p < 1 - config.level)}
    return rows


def row(
    name: str, kind: str, definition: str, model: str, error: NDArray[np.floating], inside: Flags, members: list[str]
) -> dict[str, Any]:
    """A row of the table `slices`, tested on images of which those `inside` are in the slice."""
    return {
        "slice": name,
        "kind": kind,
        "definition": definition,
        "model": model,
        "metric": "image_error",
        "images": len(members),
        "value": float(error[inside].mean()) if inside.any() else None,
        "rest": float(error[~inside].mean()) if not inside.all() else None,
        "p_value": p_worse(error, inside, seed(model, name)),
        "confirmed": False,
        "members": members,
    }


def found_row(
    kind: str, name: str, definition: str, model: str, ids: Sequence[str], error: Any, inside: Flags, first: Flags
) -> dict[str, Any]:
    """A row of a slice that was found on the images `first`: tested on the others, its members of both."""
    members = [i for i, chosen in zip(ids, inside, strict=True) if chosen]
    return row(name, kind, definition, model, error[~first], inside[~first], members)
