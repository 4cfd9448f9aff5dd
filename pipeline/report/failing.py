"""The report's sections on what models do wrong, and on labels of people that may be wrong instead."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow.compute as pc

from pipeline import plots, schema
from pipeline.ids import producer_name
from pipeline.report.counting import count, round_robin
from pipeline.report.gallery import HUMAN, MODEL, Gallery, Shot, marks
from pipeline.report.tables import Section, Tables

Row = dict[str, Any]
_SHOWN, _EXPLAINED, _NEAREST, _DOUBTED = 12, 3, 5, 8


def failures(tables: Tables, gallery: Gallery) -> Section:
    """Misses and false alarms, counted and shown, some beside the training images most like them."""
    rows = tables.read("failures")
    if not rows.num_rows:
        return None
    model = tables.judged(set(rows.column("model").to_pylist()))
    mine = rows.filter(pc.equal(rows.column("model"), model))
    causes = Counter(c for found in mine.column("causes").to_pylist() for c in found)
    order = [("error", "ascending"), ("cost", "descending"), ("score", "descending"), ("annotation_id", "ascending")]
    chosen = round_robin(mine.sort_by(order).to_pylist(), "error", _SHOWN)
    explained: dict[str, Row] = {}
    for row in chosen:
        if row["nearest"]:
            explained.setdefault(row["image_id"], row)
    return {
        "model": model,
        "errors": [
            {"name": e, "count": n, "colour": plots.ERROR_COLOURS.get(e, plots.SOFT)}
            for e, n in sorted(count(mine, "error").items(), key=lambda i: (-i[1], i[0]))
        ],
        "causes": sorted(causes.items(), key=lambda i: (-i[1], i[0])),
        "pictures": gallery.pictures([_failure_shot(row) for row in chosen]),
        "nearest": [
            gallery.pictures([_failure_shot(row, crop=False), *_labelled(tables, row["nearest"][:_NEAREST])])
            for row in list(explained.values())[:_EXPLAINED]
        ],
    }


def _failure_shot(row: Row, crop: bool = True) -> Shot:
    colour = plots.ERROR_COLOURS.get(row["error"], plots.SOFT)
    box = () if row["x1"] is None else (((row["x1"], row["y1"], row["x2"], row["y2"]), colour),)
    score = "" if row["score"] is None else f", score {row['score']:.2f}"
    causes = ", ".join(row["causes"]).replace("_", " ")
    if row["confused_with"]:
        causes = causes.replace("confused", f"confused with {row['confused_with']}")
    return Shot(row["image_id"], f"{row['error']}: {row['class_name']}{score}", causes, box, crop=crop)


def _labelled(tables: Tables, image_ids: list[str]) -> list[Shot]:
    """Training images as people labelled them, those that are still there."""
    truth, known = tables.about("ground_truth", image_ids), tables.about("images", image_ids)
    batches = dict(zip(known["image_id"].to_pylist(), known["batch"].to_pylist(), strict=True))
    shots = []
    for image in image_ids:
        if image in batches:
            mine = schema.where_in(truth, "image_id", [image])
            names = ", ".join(sorted(set(mine.column("class_name").to_pylist()))) or "nothing"
            shots.append(Shot(image, f"trained on: {names}", batches[image], marks(mine, HUMAN)))
    return shots


def doubts(tables: Tables, gallery: Gallery) -> Section:
    """Labels of people that a model contradicts, the most suspicious of each kind."""
    rows = tables.read("label_errors")
    if not rows.num_rows:
        return None
    order = [("error", "ascending"), ("suspicion", "descending"), ("annotation_id", "ascending")]
    shown = round_robin(rows.sort_by(order).to_pylist(), "error", _DOUBTED)
    truth = tables.about("ground_truth", [row["image_id"] for row in shown])
    shots = []
    for row in shown:
        suggested = () if row["x1"] is None else ((tuple(row[c] for c in schema.CORNERS), MODEL),)
        said = (
            row["class_name"]
            if row["class_name"] == row["suggested"]
            else f"{row['class_name']}, not {row['suggested']}?"
        )
        detail = f"suspicion {row['suspicion']:.2f}, {producer_name(row['model'])}"
        people = marks(schema.where_in(truth, "image_id", [row["image_id"]]), HUMAN)
        error = row["error"].replace("_", " ")
        shots.append(Shot(row["image_id"], f"{error}: {said}", detail, suggested + people, crop=True))
    return {
        "rows": rows.num_rows,
        "errors": sorted(count(rows, "error").items(), key=lambda i: (-i[1], i[0])),
        "pictures": gallery.pictures(shots),
    }
