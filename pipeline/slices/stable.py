"""The same slice keeps its name from run to run, so that it can be watched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.ids import producer_name

_SAME = 0.5  # Jaccard overlap from which a slice is the one that was there before


def keep_names(rows: list[dict[str, Any]], before: pa.Table, held_out: Iterable[str]) -> list[dict[str, Any]]:
    """`rows` of found slices under the names that they had in the table `slices` of the run before.

    Of one model and kind, each slice gets the name of the earlier one that it overlaps with most, one to one
    and best pairs first in sum (Kuhn 1955), where their Jaccard overlap is 0.5 or more. It is measured on
    images that were in any slice before and are held out now: those that came since say nothing. Models go by their
    bare names, so that slices can be watched while a model is trained anew.

    Args:
        held_out: images that slices are made of now.
    """
    from scipy.optimize import linear_sum_assignment

    now = set(held_out)
    earlier: dict[tuple[str, str], dict[str, set[str]]] = {}
    for row in before.select(["slice", "kind", "model", "members"]).to_pylist():
        earlier.setdefault(_origin(row), {})[row["slice"]] = set(row["members"]) & now
    known = set().union(*(members for group in earlier.values() for members in group.values()))
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] != "declared":
            groups.setdefault(_origin(row), []).append(row)
    for origin, found in groups.items():
        names = sorted(earlier.get(origin, {}))
        old = [earlier[origin][name] for name in names]
        overlap = np.array([[_jaccard(set(row["members"]) & known, o) for o in old] for row in found])
        kept: dict[int, str] = {}
        if overlap.size:
            for i, j in zip(*linear_sum_assignment(-np.where(overlap >= _SAME, overlap, 0)), strict=True):
                if overlap[i, j] >= _SAME:
                    kept[int(i)] = names[j]
        taken = set(kept.values())
        for i, row in enumerate(found):
            # A new slice must not take a name that went to another one.
            row["slice"] = kept.get(i) or _free(row["slice"], taken)
            taken.add(row["slice"])
    return rows


def _origin(row: Mapping[str, Any]) -> tuple[str, str]:
    return producer_name(row["model"]), row["kind"]


def _jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other) if one | other else 0.0


def _free(name: str, taken: set[str]) -> str:
    number, found = 2, name
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    return found


def history(table: pa.Table, before: pa.Table, at: datetime) -> pa.Table:
    """The table `slice_history` with the rows of `table` (`slices`) of now after those of `before`.

    A run that says the same of a slice as the last one did adds nothing; a model trained anew says something new.
    """
    columns = ["slice", "kind", "model", "metric", "images", "value", "rest", "p_value", "confirmed"]
    last = {(r["slice"], *_origin(r)): r for r in before.sort_by("at").to_pylist()}
    rows = []
    for row in table.select(columns).to_pylist():
        known = last.get((row["slice"], *_origin(row)))
        if known is None or any(known[c] != row[c] for c in columns):
            rows.append(row | {"at": at})
    return pa.concat_tables([before, schema.table("slice_history").from_rows(rows)])
