"""The choice of a threshold, with a guarantee: Learn-then-Test (Angelopoulos et al. 2021).

Each score of a grid stands for the hypothesis "precision at this score is no better than the target".
Those that are rejected while the chance of any false rejection stays at delta are safe to use, and the
lowest of them is used. Two ways to keep that chance:

- `fixed_sequence`: from strict to lenient, each tested with what earlier ones have not lost. All of delta
  enters at the strict end; or, where gold is ample, 30 % of it further on, so that a labeller whose most
  confident answers are its worst is not stopped at once (the fallback procedure, Wiens 2003).
- `holm`: every score against a share of delta (Holm 1979); no order is assumed.

Both hold whatever precision does along the scores, provided that the grid was not made from the answers
it is tested on. So it is laid over the scores of other images.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.intervals import holm as corrected

Floats = NDArray[np.float64]
Method = Literal["fixed_sequence", "holm"]

_SECOND_ENTRY, _SECOND_SHARE = 0.4, 0.3  # place along the grid, and share of delta that enters there
_AMPLE = 4.0  # times the evidence that suffices when all is right, from which a second entry pays
_MARGIN = 2.0  # the strictest score should let through this many times the answers that suffice when all are right


def margin(room: float) -> float:
    """How many times the evidence that suffices the strictest score should have, if `room` times is all there is."""
    return min(_MARGIN, max(1.05, float(np.sqrt(max(room, 1.0)))))


def start(room: float) -> float:
    """Share of answers that the strictest score lets through, evidence being in proportion to answers."""
    return min(1.0, margin(room) / max(room, 1.0))


def grid(scores: Floats, first: float, size: int) -> Floats:
    """Scores to test, strictest first: quantiles of `scores`.

    Args:
        scores: (d,) of design answers, not those that are tested.
        first: share of them that the strictest lets through. size: how many at most.

    Returns:
        (g,) float64 values that float32 holds exactly, strictly falling. The last accepts everything.
    """
    ordered = np.sort(np.asarray(scores, np.float32))[::-1]
    if not len(ordered):
        ordered = np.linspace(1, 0, 101, dtype=np.float32)
    places = np.ceil(np.linspace(first, 1.0, size) * len(ordered)).astype(np.int64) - 1
    chosen = np.append(ordered[np.clip(places, 0, len(ordered) - 1)], np.float32(0))
    return np.unique(chosen)[::-1].astype(np.float64)


def choose(p_values: Floats, delta: float, method: Method, room: float) -> int | None:
    """Place of the most lenient score that is safe, of (g,) p-values from strict to lenient; None if none is.

    With probability 1 - `delta` no score is called safe whose precision is the target or less.

    Args:
        room: as in `margin`; it must not depend on which answers are right.
    """
    safe = _in_sequence(p_values, delta, room) if method == "fixed_sequence" else corrected(p_values) <= delta
    found = np.flatnonzero(safe)
    return int(found[-1]) if len(found) else None


def _in_sequence(p_values: Floats, delta: float, room: float) -> NDArray[np.bool_]:
    entering = np.zeros(len(p_values) + 1)
    later = _SECOND_SHARE if room >= _AMPLE else 0.0
    entering[0] += (1 - later) * delta
    entering[int(_SECOND_ENTRY * len(p_values))] += later * delta
    safe = np.zeros(len(p_values), bool)
    at_hand = 0.0
    for i, p in enumerate(p_values):
        at_hand += entering[i]
        safe[i] = p <= at_hand * (1 + 1e-12)
        at_hand = at_hand if safe[i] else 0.0
    return safe
