"""Batches in order: alarms whose chance of ever being false is bounded over a whole stretch of batches.

A test at 0.01 with ten p-values a batch calls one batch in ten drifted where nothing is. Here a batch has one
p-value, the least of its tests times their number (Bonferroni, the first step of Holm 1979), and one part in
`horizon` of the allowed `alarm_rate` is spent on it (alpha spending in equal parts). Tests of too few locations to
give so small a p-value are not counted: that is known before anything is looked at (Tarone 1990).

A batch is judged **once**, when it first has a test that counts, against the reference of that time. The row stands
whatever comes later: the reference grows with people's labels, and whoever tests every batch again each time, and takes
the last word for the verdict, has as many chances of a false alarm as there are looks. By the union bound the chance of
any false alarm in a stretch is at most what its looks have spent, **whatever they have in common**. They do have
something in common, the reference: a batch's p-value is not independent of another's, so products of e-values, which
need that, would not keep their promise.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import DriftConfig

_ROUNDING = 1 + 1e-9  # sums of equal parts are not quite the whole


def alarms(tests: pa.Table, before: pa.Table, config: DriftConfig, at: datetime) -> pa.Table:
    """The table `alarms`: the looks in `before`, and after them a first look at each batch that had none.

    Batches that are looked at together count in the order of their names. A batch whose images have changed is
    another one. A stretch ends when one more look would spend more than `alarm_rate` in it, so that its bound holds
    though `alarm_rate` or `horizon` were changed on the way.

    Args:
        tests: rows of `drift` of all batches. before: the table as it is; rows without `contents`, of versions that
            judged again and again, are left out.
    """
    by_batch: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in tests.to_pylist():
        if row["contents"] is not None:  # drift of an earlier version: about to be made once more
            by_batch.setdefault((row["batch"], row["contents"]), []).append(row)
    rows = [row for row in before.to_pylist() if row["contents"] is not None]
    known = {(row["batch"], row["contents"]) for row in rows}
    for key in sorted(by_batch.keys() - known):
        found = _look(by_batch[key], config.alarm_rate / config.horizon)
        if found is not None:
            rows.append(found | _place(rows, found["level"], config.alarm_rate) | {"at": at})
    return schema.table("alarms").from_rows(rows)


def standing(looks: pa.Table, tests: pa.Table) -> pa.Table:
    """The rows of `alarms` that alarmed at a batch as it is now: one whose images have changed since is another.

    Args:
        looks: the table `alarms`. tests: rows of `drift` of all batches.
    """
    now = set(zip(tests["batch"].to_pylist(), tests["contents"].to_pylist(), strict=True))
    about = zip(looks["batch"].to_pylist(), looks["contents"].to_pylist(), strict=True)
    return looks.filter(pc.and_(looks["alarm"], pa.array([one in now for one in about], pa.bool_())))


def _look(tests: list[dict[str, Any]], level: float) -> dict[str, Any] | None:
    """What the tests of one batch say at `level`; None where none of them can say anything yet."""
    counted = [r for r in tests if r["p_value"] is not None and (r["least_p"] or 0.0) <= level]
    if not counted:
        return None
    first = min(counted, key=lambda r: (r["p_value"], r["test"], r["subject"]))
    p_value = min(1.0, len(counted) * first["p_value"])
    said = {name: first[name] for name in ("batch", "contents", "reference", "test", "subject")}
    verdict = {"tests": len(counted), "p_value": p_value, "level": level, "alarm": p_value <= level}
    return said | verdict | {"drifted": any(r["drifted"] for r in tests)}


def _place(before: list[dict[str, Any]], level: float, rate: float) -> dict[str, Any]:
    """Position and stretch of a look after those of `before`, and what has been spent in the stretch."""
    stretch, spent = (before[-1]["stretch"], before[-1]["spent"] + level) if before else (1, level)
    if spent > rate * _ROUNDING:
        stretch, spent = stretch + 1, level
    return {"position": len(before) + 1, "stretch": stretch, "spent": spent}
