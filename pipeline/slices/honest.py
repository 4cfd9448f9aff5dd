"""Slices that hold: found on one half of the held-out images, tested on the other, corrected for all tests.

A slice that is found and judged on the same images is often an accident: of many candidates one always
looks bad. Images of one location err together, so where there are many locations, whole ones are dealt to the
halves and tested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import EvaluationConfig
from pipeline.ids import seed
from pipeline.intervals import holm

# A slice needs this many images in each half to be worth a test.
LEAST_IMAGES = 5
_DRAWN, _MOST = 2000, 20_000
_ENOUGH = 20  # draws as large as what was observed that make a small p-value exact enough
_HELD = 1 << 22  # numbers held at a time while draws are made
# With fewer locations whole ones cannot be dealt out evenly, so images are.
_LEAST_LOCATIONS = 20

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


def units(ids: Sequence[str], locations: Mapping[str, str] | None = None) -> list[str]:
    """What each image is taken to be independent by: its location where there are 20 or more, else itself."""
    places = [(locations or {}).get(i, i) for i in ids]
    return places if len(set(places)) >= _LEAST_LOCATIONS else list(ids)


def first_half(units: Sequence[str]) -> Flags:
    """(n,) whether each image is in the half on which slices are looked for.

    Images of one unit stay together. Halves are drawn by name, so they do not change when other images come.
    """
    drawn = {name: seed("half", name) % 2 == 0 for name in set(units)}
    return np.array([drawn[name] for name in units], bool)


def worse(error: NDArray[np.floating], inside: Flags) -> bool:
    """Whether the mean error is larger inside than outside, both being there."""
    return bool(inside.any() and not inside.all() and error[inside].mean() > error[~inside].mean())


def p_worse(error: NDArray[np.floating], inside: Flags, draw_seed: int, units: Sequence[str]) -> float | None:
    """One-sided p-value that the mean error inside is no larger than outside; None where either side is empty.

    Where each image is a unit of its own, images are exchangeable: exact (hypergeometric) for errors of 0 or 1, else by
    permutations. Where units are locations, the larger p-value of two tests. One flips the signs of what each location
    adds to the difference (Hemerik, Goeman & Finos 2020, Robust testing in generalized linear models by sign flipping
    score contributions): it holds with many locations inside, however they differ in size and in how their images err,
    but sees too little spread where few lie inside and most locations err alike, as much as they can. The other deals
    out anew what share of each lies inside: it holds with few, too, where any location could have been the one inside.
    2,000 draws of each, and up to 20,000 until 20 are as large (Besag & Clifford 1991).

    Args:
        error, inside: (n,). units: n names.
    """
    from scipy.stats import hypergeom

    n, k = len(error), int(inside.sum())
    if not 0 < k < n:
        return None
    _, unit = np.unique(np.asarray(units, str), return_inverse=True)
    alone = int(unit.max()) + 1 == n
    if alone and np.isin(error, (0, 1)).all():
        return float(hypergeom.sf(int(error[inside].sum()) - 1, n, int(error.sum()), k))
    excess = np.asarray(error - error.mean(), np.float64)
    rng = np.random.default_rng(draw_seed)
    if alone:
        return _permuted(inside.astype(np.float64), excess, rng)
    scores, whole, held = (
        np.asarray(np.bincount(unit, of), np.float64) for of in ((inside - k / n) * excess, excess, inside)
    )
    return max(_flipped(scores, rng), _permuted(held / np.bincount(unit), whole, rng))


def _flipped(scores: Floats, rng: np.random.Generator) -> float:
    def draw(count: int) -> Floats:
        return np.asarray(rng.choice((-1.0, 1.0), (count, len(scores))) @ scores, np.float64)

    return _share_as_large(draw, float(scores.sum()), max(1, _HELD // len(scores)))


def _permuted(shares: Floats, excess: Floats, rng: np.random.Generator) -> float:
    def draw(count: int) -> Floats:
        return np.asarray(rng.permuted(np.tile(shares, (count, 1)), axis=1) @ excess, np.float64)

    return _share_as_large(draw, float(shares @ excess), max(1, _HELD // len(shares)))


def _share_as_large(draw: Callable[[int], Floats], observed: float, at_once: int) -> float:
    drawn = as_large = 0
    while drawn < _DRAWN or (as_large < _ENOUGH and drawn < _MOST):
        count = min(at_once, (_DRAWN if drawn < _DRAWN else _MOST) - drawn)
        # Sums in another order differ in the last digits; those are ties.
        hits = np.cumsum(draw(count) >= observed - 1e-9)
        if drawn >= _DRAWN and as_large + hits[-1] >= _ENOUGH:
            return _ENOUGH / (drawn + int(np.searchsorted(hits, _ENOUGH - as_large)) + 1)
        drawn, as_large = drawn + count, as_large + int(hits[-1])
    return (1 + as_large) / (1 + drawn)


def confirmed(rows: list[dict[str, Any]], config: EvaluationConfig) -> list[dict[str, Any]]:
    """`rows` with Holm's corrected p-values, confirmed where those are below 1 - level.

    The chance that any of `rows` is confirmed although none is worse than the rest is at most 1 - level, as far as the
    tests hold (`p_worse`).
    """
    tested = [row for row in rows if row["p_value"] is not None]
    corrected = holm(np.array([row["p_value"] for row in tested]))
    for row, p in zip(tested, corrected, strict=True):
        row |= {"p_value": float(p), "confirmed": bool(p < 1 - config.level)}
    return rows


def row(
    name: str,
    kind: str,
    definition: str,
    model: str,
    error: NDArray[np.floating],
    inside: Flags,
    members: list[str],
    units: Sequence[str],
) -> dict[str, Any]:
    """A row of the table `slices`, tested on images of which those `inside` are in the slice; not yet corrected."""
    return {
        "slice": name,
        "kind": kind,
        "definition": definition,
        "model": model,
        "metric": "image_error",
        "images": len(members),
        "value": float(error[inside].mean()) if inside.any() else None,
        "rest": float(error[~inside].mean()) if not inside.all() else None,
        "p_value": p_worse(error, inside, seed(model, name), units),
        "confirmed": False,
        "members": members,
    }


def found_row(
    kind: str, name: str, definition: str, model: str, ids: Sequence[str], error: Any, inside: Flags, units: list[str]
) -> dict[str, Any]:
    """A row of a slice that was found on the first half: tested on the other, its members of both."""
    members = [i for i, chosen in zip(ids, inside, strict=True) if chosen]
    other = ~first_half(units)
    return row(name, kind, definition, model, error[other], inside[other], members, np.asarray(units)[other].tolist())
