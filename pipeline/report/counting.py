"""Counting rows of tables."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pyarrow as pa


def count(rows: pa.Table, *columns: str) -> dict[Any, int]:
    """How many rows each value (or tuple of values) has."""
    counted = rows.group_by(list(columns)).aggregate([([], "count_all")])
    keys = zip(*(counted.column(c).to_pylist() for c in columns), strict=True)
    values = counted.column("count_all").to_pylist()
    return {k if len(columns) > 1 else k[0]: n for k, n in zip(keys, values, strict=True)}


def distinct(rows: pa.Table, group: str, column: str) -> dict[str, int]:
    """How many different values of `column` each value of `group` has."""
    counted = rows.group_by([group]).aggregate([(column, "count_distinct")])
    return dict(
        zip(
            counted.column(group).to_pylist(),
            counted.column(f"{column}_count_distinct").to_pylist(),
            strict=True,
        )
    )


def round_robin(rows: list[dict[str, Any]], key: str, limit: int) -> list[dict[str, Any]]:
    """Up to `limit` rows, taken from the values of `key` in turn, the order within each kept."""
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    longest = max((len(g) for g in groups.values()), default=0)
    turns = [group[i] for i in range(longest) for group in groups.values() if i < len(group)]
    return turns[:limit]
