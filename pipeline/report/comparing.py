"""The report's comparisons of models: which of two is better, and whether chance could explain it."""

from __future__ import annotations

from typing import Any

from pipeline.report.gallery import Gallery
from pipeline.report.tables import Section, Tables

_SLICES = 20  # rows that are shown


def comparisons(tables: Tables, gallery: Gallery) -> Section:
    """Every two models on all test images, and the slices on which one of two is better."""
    rows = sorted(tables.read("comparisons").to_pylist(), key=_order)
    if not rows:
        return None
    apart = [r for r in rows if r["slice"] != "all" and r["better"] is not None]
    return {
        "rows": [r for r in rows if r["slice"] == "all"],
        "slices": apart[:_SLICES],
        "more": len(apart[_SLICES:]),
        "level": rows[0]["level"],
    }


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["metric"] != "AP50", row["metric"], row["slice"], -abs(row["difference"]), row["model"], row["other"]
