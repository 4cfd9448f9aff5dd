"""The report's section on drift: which batches differ, by how much, and what drives it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import plots
from pipeline.report.gallery import Gallery, Shot, chart

if TYPE_CHECKING:
    from pipeline.report.sections import Section, Tables

_BATCHES, _PICTURES, _DETAILS = 3, 6, 5  # shown


def drift(tables: Tables, gallery: Gallery) -> Section:
    """Which batches differ from the reference, test by test, and the images that they differ by."""
    rows = tables.read("drift")
    if not rows.num_rows:
        return None
    found = rows.to_pylist()
    tests = sorted({(r["test"], r["subject"]) for r in found}, key=lambda t: (t[0] != "embedding_mmd", t))
    cells = {(r["batch"], r["test"], r["subject"]): r for r in found}
    batches = sorted({r["batch"] for r in found})
    mmd = rows.filter(pc.equal(rows.column("test"), "embedding_mmd"))
    alarms = {r["batch"] for r in tables.read("alarms").to_pylist() if r["alarm"]}
    drifted = [b for b in batches if any(r["drifted"] for r in found if r["batch"] == b)]
    return {
        "tests": [{"test": t, "subject": s} for t, s in tests],
        "alpha": found[0]["alpha"],
        "batches": [
            {
                "name": b,
                "cells": [cells.get((b, t, s)) for t, s in tests],
                "drifted": b in drifted,
                "alarm": b in alarms,
            }
            for b in batches
        ],
        "rate": tables.config.drift.alarm_rate,
        "horizon": tables.config.drift.horizon,
        "sizes": [
            r for r in mmd.to_pylist() if r["effect"] is not None and (r["drifted"] or r["detectable"] is not None)
        ],
        "galleries": [_driven(tables, gallery, b) for b in drifted[-_BATCHES:]],
        "charts": [{"title": "Embedding drift", "uri": chart(plots.drift(_telling(rows), form="svg"))}],
    }


def _telling(rows: pa.Table) -> pa.Table:
    """The rows of tests that found a batch to have drifted, and of the one that looks at everything; else all."""
    found = {(r["test"], r["subject"]) for r in rows.to_pylist() if r["drifted"] or r["test"] == "embedding_mmd"}
    pairs = zip(rows["test"].to_pylist(), rows["subject"].to_pylist(), strict=True)
    return rows.filter(pa.array([pair in found for pair in pairs], pa.bool_())) if found else rows


def _driven(tables: Tables, gallery: Gallery, batch: str) -> dict[str, Any]:
    """What a batch differs by: its region most in excess in pictures, and the largest shifts of shares and looks."""
    regions = [r for r in tables.read("drift_regions").to_pylist() if r["batch"] == batch]
    first = min(regions, key=lambda r: r["region"], default=None)
    shares = [r for r in tables.read("drift_shares").to_pylist() if r["batch"] == batch]
    looks = [r for r in tables.read("drift_dimensions").to_pylist() if (r["batch"], r["subject"]) == (batch, "quality")]
    return {
        "batch": batch,
        "region": first,
        "pictures": _photos(gallery, tables, first["examples"] if first else []),
        "reference": _photos(gallery, tables, first["reference_examples"] if first else []),
        "shares": sorted(shares, key=lambda r: (-r["psi"], r["mix"], r["category"]))[:_DETAILS],
        "looks": sorted(looks, key=lambda r: (r["p_value"], r["dimension"]))[:_DETAILS],
    }


def _photos(gallery: Gallery, tables: Tables, image_ids: list[str]) -> list[Any]:
    images = tables.read("images")
    named = dict(zip(images.column("image_id").to_pylist(), images.column("batch").to_pylist(), strict=True))
    return gallery.pictures([Shot(i, named[i]) for i in image_ids[:_PICTURES] if i in named])
