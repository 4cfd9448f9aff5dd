"""Batches in order: alarms whose chance of ever being false is bounded over a whole stretch of batches.

A test at 0.01 with ten p-values a batch calls one batch in ten drifted where nothing is. Here a batch has one
p-value, the least of its tests times their number (Bonferroni, the first step of Holm 1979), and one part in
`horizon` of the allowed `alarm_rate` is spent on it (alpha spending in equal parts). Tests of too few locations to
give so small a p-value are not counted: that is known before anything is looked at (Tarone 1990). By the union
bound the chance of any false alarm among `horizon` batches is at most `alarm_rate`, **whatever the batches have in
common**. They do have something in common, the reference: a batch's p-value is not independent of another's,
so products of e-values, which need that, would not keep their promise.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipeline import schema
from pipeline.config import DriftConfig


def alarms(tests: pa.Table, config: DriftConfig) -> pa.Table:
    """The table `alarms`, from rows of `drift` of all batches.

    Batches count in the order of their names; after `horizon` of them the allowance is given anew. A batch
    that could not be tested takes its part, too, so that nothing depends on what was found.
    """
    by_batch: dict[str, list[dict[str, Any]]] = {}
    for row in tests.to_pylist():
        by_batch.setdefault(row["batch"], []).append(row)
    level = config.alarm_rate / config.horizon
    rows = []
    for position, batch in enumerate(sorted(by_batch)):
        tested = [r for r in by_batch[batch] if r["p_value"] is not None and (r["least_p"] or 0.0) <= level]
        first = min(tested, key=lambda r: (r["p_value"], r["test"], r["subject"]), default=None)
        p_value = None if first is None else min(1.0, len(tested) * first["p_value"])
        rows.append(
            {
                "batch": batch,
                "position": position + 1,
                "stretch": position // config.horizon + 1,
                "tests": len(tested),
                "p_value": p_value,
                "level": level,
                "spent": level * (position % config.horizon + 1),
                "alarm": p_value is not None and p_value <= level,
                "test": None if first is None else first["test"],
                "subject": None if first is None else first["subject"],
                "drifted": any(r["drifted"] for r in by_batch[batch]),
            }
        )
    return schema.table("alarms").from_rows(rows)
