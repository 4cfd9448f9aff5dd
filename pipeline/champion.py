"""The model in charge: a challenger takes over only if it loses on no guarded slice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import EvaluationConfig
from pipeline.intervals import percentile

_ALL = "all"


def choose(draws: pa.Table, previous: str | None, config: EvaluationConfig) -> pa.Table:
    """The table `champion`: one row, or none when no model has a value on the test split.

    Args:
        draws: rows of (model, slice, metric, value, draws): the metric on test, and its bootstrap
            draws, draw k of a slice from the same images for every model.
        previous: the champion so far, if there is one.

    The best model on all test images challenges. It is promoted when, on 'all' and on every
    declared slice, the lower end of the paired bootstrap interval of challenger minus champion is
    no lower than -guard_drop; otherwise the next best that beats the champion challenges. A slice
    without objects on test guards nothing. Without draws the difference itself is compared.
    """
    table = {(r["model"], r["slice"]): r for r in draws.to_pylist()}
    values = {m: r["value"] for (m, name), r in table.items() if name == _ALL and r["value"] is not None}
    ranking = sorted(values, key=lambda model: (-values[model], model))
    if not ranking:
        return schema.table("champion").empty()
    if previous is None or previous not in values:
        why = "the first champion" if previous is None else f"{previous} has no value on test any more"
        return _table(ranking[0], table, previous, f"best on test, and {why}")
    refused: list[str] = []
    for challenger in ranking[: ranking.index(previous)]:
        if values[challenger] == values[previous]:
            break
        loss = _worst_loss(challenger, previous, table, config)
        if loss is None:
            gain = values[challenger] - values[previous]
            words = f"better by {gain:.3f} on test, and on no guarded slice worse by {config.guard_drop:g}"
            return _table(challenger, table, previous, "; ".join([words, *refused]))
        refused.append(f"{challenger} refused: {loss}")
    return _table(previous, table, previous, "; ".join(refused) or "no model is better on test")


def _worst_loss(
    challenger: str, champion: str, table: dict[tuple[str, str], dict[str, Any]], config: EvaluationConfig
) -> str | None:
    """Words for the guarded slice on which the challenger may lose most; None if it loses too much on none."""
    losses = []
    for name in [_ALL, *(s.name for s in config.slices)]:
        mine, theirs = table.get((challenger, name)), table.get((champion, name))
        if mine is None or theirs is None or mine["value"] is None or theirs["value"] is None:
            continue
        difference = mine["value"] - theirs["value"]
        low, _ = percentile(_floats(mine["draws"]) - _floats(theirs["draws"]), config.level)
        lowest = difference if low is None else low
        if lowest < -config.guard_drop:
            losses.append((lowest, f"on {name!r} it may lose {-lowest:.3f} (seen {difference:+.3f})"))
    return min(losses)[1] if losses else None


def _floats(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], np.float64)


def _table(model: str, table: dict[tuple[str, str], dict[str, Any]], previous: str | None, reason: str) -> pa.Table:
    row = table[model, _ALL]
    return schema.table("champion").from_rows(
        [
            {
                "model": model,
                "metric": row["metric"],
                "value": row["value"],
                "previous": previous,
                "promoted": model != previous,
                "reason": reason,
            }
        ]
    )
