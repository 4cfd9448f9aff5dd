"""The report's section on drift: which batches differ, by how much, and what drives it."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import plots
from pipeline.drift import standing
from pipeline.report.gallery import Gallery, Picture, Shot, chart
from pipeline.report.tables import Section, Tables

_SIDES = ("examples", "reference_examples")
_BATCHES, _REGIONS, _DRIVERS, _EXAMPLES, _DETAILS = 3, 3, 6, 4, 5  # shown


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
    alarms = set(standing(tables.read("alarms"), rows)["batch"].to_pylist())
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
    """What a batch differs by: images and regions in pictures, and the largest shifts of shares and looks."""
    drivers = _of(tables, "drift_images", batch)
    regions = [r for r in _of(tables, "drift_regions", batch) if r["share"] > r["reference_share"]]
    named = {r["image_id"] for r in drivers}.union(*(r[side] for r in regions for side in _SIDES))
    images = {r["image_id"]: r for r in tables.about("images", named).to_pylist()}
    drivers = [r for r in drivers if r["image_id"] in images]
    shares = _of(tables, "drift_shares", batch)
    looks = [r for r in _of(tables, "drift_dimensions", batch) if r["subject"] == "quality"]

    def shown(image_ids: list[str]) -> list[Picture]:
        return gallery.pictures([Shot(i, images[i]["batch"]) for i in image_ids[:_EXAMPLES] if i in images])

    return {
        "batch": batch,
        "drivers": gallery.pictures(
            [
                Shot(r["image_id"], images[r["image_id"]]["file_name"], f"{r['witness']:+.3f}, region {r['region']}")
                for r in sorted(drivers, key=lambda r: (-r["witness"], r["image_id"]))[:_DRIVERS]
            ]
        ),
        "regions": [
            r | {"sides": [shown(r[side]) for side in _SIDES]}
            for r in sorted(regions, key=lambda r: (r["region"], r["encoder"]))[:_REGIONS]
        ],
        "shares": sorted(shares, key=lambda r: (-r["psi"], r["mix"], r["category"]))[:_DETAILS],
        "looks": sorted(looks, key=lambda r: (r["p_value"], r["dimension"]))[:_DETAILS],
    }


def _of(tables: Tables, name: str, batch: str) -> list[dict[str, Any]]:
    rows = tables.read(name)
    return rows.filter(pc.equal(rows.column("batch"), batch)).to_pylist()
