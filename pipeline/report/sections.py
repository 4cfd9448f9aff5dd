"""What each section of the report says, told from the tables; the template only lays it out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import plots, schema
from pipeline.ids import producer_name
from pipeline.report.comparing import comparisons
from pipeline.report.counting import count, distinct, round_robin
from pipeline.report.drifting import drift
from pipeline.report.failing import doubts, failures
from pipeline.report.gallery import HUMAN, MODEL, Gallery, Shot, chart, marks
from pipeline.report.keeping import costs, models, provenance
from pipeline.report.tables import Section, Tables

_METRICS = (
    "AP50",
    "AP",
    "AR100",
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "precision",
    "recall",
    "count_mae",
)


def verdict(tables: Tables, gallery: Gallery) -> Section:
    """The options for each class and slice, those for everything first."""
    rows = tables.read("verdict").to_pylist()
    if not rows:
        return None
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["class_name"], row["slice"]].append(row)
    ordered = sorted(groups, key=lambda g: (g[0] != "all", g[0], g[1] != "all", g[1]))
    # A project of one class may have no 'all' classes: the first group is the widest there is.
    head = sorted(groups[ordered[0]], key=_by_option)
    return {
        "head": head,
        "class_name": ordered[0][0],
        "slice": ordered[0][1],
        "pick": next((r for r in head if r["recommended"]), None),
        "top": _scale(rows),
        "groups": [{"class_name": c, "slice": s, "options": sorted(groups[c, s], key=_by_option)} for c, s in ordered],
        "money": any(r["cost_per_1000"] is not None for r in rows),
        "coverage": any(r["certified_coverage"] is not None for r in rows),
    }


def _by_option(row: dict[str, Any]) -> tuple[int, str, str]:
    order = {"people": 0, "labeller": 1, "foundation": 2, "trained": 3}
    return order.get(row["option"], 4), row["option"], row["model"]


def _scale(rows: Iterable[dict[str, Any]]) -> float:
    """End of the axis that intervals are drawn on: 1, unless a value is larger."""
    ends = [r[k] for r in rows for k in ("value", "high") if r[k] is not None]
    return max([1.0, *ends])


def overview(tables: Tables, gallery: Gallery) -> Section:
    """What came in: batches, counts, people's labels, and what was refused."""
    images, rejected = tables.read("images", "batch", "parent_id", "attributes"), tables.read("rejected_files")
    if not images.num_rows and not rejected.num_rows:
        return None
    truth = tables.read("ground_truth", "batch", "class_name")
    per_batch = {
        "images": count(images, "batch"),
        "photos": distinct(images, "batch", "parent_id"),
        "labelled": count(tables.read("annotated_images"), "batch"),
        "boxes": count(truth, "batch"),
        "rejected": count(rejected, "batch"),
    }
    splits = count(tables.read("splits", "batch", "split"), "batch", "split")
    names = sorted({b for counts in per_batch.values() for b in counts})
    batches = [
        {"name": b, **{k: counts.get(b, 0) for k, counts in per_batch.items()}}
        | {s: splits.get((b, s), 0) for s in ("train", "val", "test", "unlabelled")}
        for b in names
    ]
    reasons = sorted(count(rejected, "reason").items(), key=lambda i: (-i[1], i[0]))
    classes = sorted(count(truth, "class_name").items(), key=lambda i: (-i[1], i[0]))[:20]
    shown = rejected.sort_by([("batch", "ascending"), ("file_name", "ascending")]).slice(0, 25)
    return {
        "batches": batches,
        "tiled": images.num_rows != sum(per_batch["photos"].values()),
        "totals": {k: sum(counts.values()) for k, counts in per_batch.items()},
        "attributes": _attributes(images),
        "charts": [*_class_counts(classes), *_map(tables)],
        "reasons": reasons,
        "rejected": shown.to_pylist(),
        "more_rejected": rejected.num_rows - shown.num_rows,
    }


def _class_counts(classes: list[tuple[str, int]]) -> list[dict[str, str]]:
    if len(classes) < 2:
        return []
    title, (names, counts) = "People's labels by class", zip(*classes, strict=True)
    return [{"title": title, "uri": chart(plots.class_counts(names, counts, title=title, form="svg"))}]


def _map(tables: Tables) -> list[dict[str, str]]:
    places = tables.read("map")
    if not places.num_rows:
        return []
    images = tables.read("images", "image_id", "batch")
    picture = plots.embedding_map(places, images, tables.config.evaluation.polygons, form="svg")
    return [{"title": "Where the photos lie", "uri": chart(picture)}]


def _attributes(images: pa.Table) -> list[dict[str, Any]]:
    """Each attribute's values and their counts, at most twelve."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for pairs in images.column("attributes").chunks:
        for (key, value), n in count(pa.table({"key": pairs.keys, "value": pairs.items}), "key", "value").items():
            counts[key][value] += n
    return [
        {"name": key, "values": sorted(values.items(), key=lambda i: (-i[1], i[0]))[:12]}
        for key, values in sorted(counts.items())
    ]


def quality(tables: Tables, gallery: Gallery) -> Section:
    """Flagged images and duplicates, with pictures."""
    rows, pairs, issues = tables.read("quality", "batch"), tables.read("duplicates"), tables.read("quality_issues")
    if not rows.num_rows:
        return None
    return {
        "images": rows.num_rows,
        "flagged": issues.select(["image_id", "batch"]).group_by(["image_id", "batch"]).aggregate([]).num_rows,
        "issues": sorted(count(issues, "issue").items(), key=lambda i: (-i[1], i[0])),
        "limits": [r for r in tables.read("quality_limits").to_pylist() if r["source"] == "learned"],
        "pictures": gallery.pictures(_flagged_shots(issues)),
        "pairs": pairs.num_rows,
        "kinds": sorted(count(pairs, "kind").items()),
        "duplicates": _duplicate_pictures(pairs, gallery),
    }


def _flagged_shots(issues: pa.Table) -> list[Shot]:
    """Two examples of each issue, eight in all, each with all its issues."""
    of_image: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in issues.sort_by([("image_id", "ascending"), ("issue", "ascending")]).to_pylist():
        of_image[row["image_id"]].append(row)
    shots: list[Shot] = []
    shown: Counter[str] = Counter()
    for image, rows in of_image.items():
        names = sorted({row["issue"] for row in rows})
        if any(shown[name] < 2 for name in names) and len(shots) < 8:
            shown.update(names)
            measured = (f"{row['measure']} {row['value']:.3g} (limit {row['limit']:.3g})" for row in rows[:2])
            shots.append(Shot(image, ", ".join(names).replace("_", " "), ", ".join(measured).replace("_", " ")))
    return shots


def _duplicate_pictures(pairs: pa.Table, gallery: Gallery) -> list[Any]:
    """The kept image beside its duplicate, for four pairs, of every kind if possible."""
    rows = pairs.sort_by([("kind", "ascending"), ("distance", "ascending"), ("image_id", "ascending")]).to_pylist()
    chosen = round_robin(rows, "kind", 4)
    shots = []
    for row in chosen:
        shots.append(Shot(row["duplicate_of"], "kept"))
        shots.append(Shot(row["image_id"], row["kind"], f"distance {row['distance']:.3g}"))
    return gallery.pictures(shots)


def labels(tables: Tables, gallery: Gallery) -> Section:
    """A sample of labels in the colours of their status, and how far each labeller is trusted."""
    rows = tables.read("labels", "batch", "image_id", "status")
    trust = pa.concat_tables([tables.read("trust"), tables.read("model_trust")])
    if not rows.num_rows and not trust.num_rows:
        return None
    order = list(plots.STATUS_COLOURS)
    counts = count(rows, "status")
    statuses = [
        {"name": s, "count": counts[s], "colour": plots.STATUS_COLOURS.get(s, plots.SOFT)}
        for s in sorted(counts, key=lambda s: (order.index(s) if s in order else len(order), s))
    ]
    # A slice is worth a line where it has a certificate of its own; the verdict tells of all of them.
    told = trust.filter(pc.or_(pc.equal(trust.column("slice"), "all"), trust.column("certified")))
    return {
        "rows": rows.num_rows,
        "statuses": statuses,
        "reliability": _reliability(tables),
        "queue": tables.read("review_queue").num_rows,
        "pictures": gallery.pictures(_label_shots(tables, rows)),
        "trust": told.sort_by(
            [("class_name", "ascending"), ("slice", "ascending"), ("producer", "ascending")]
        ).to_pylist(),
        "top": 1.0,
        "unknown": [t for t in tables.read("vocabulary").to_pylist() if t["matched"] is None],
    }


def _reliability(tables: Tables) -> dict[str, str] | None:
    """What the labellers' scores are worth on gold, before and after calibration."""
    rows = tables.read("reliability")
    overall = rows.filter(pc.equal(rows.column("class_name"), "all"))
    if not overall.num_rows:
        return None
    return {"title": "Do scores mean what they say?", "uri": chart(plots.reliability(overall, form="svg"))}


def _label_shots(tables: Tables, rows: pa.Table) -> list[Shot]:
    """Twelve labelled images, spread over the batches."""
    found = rows.group_by(["batch", "image_id"]).aggregate([])
    found = found.sort_by([("batch", "ascending"), ("image_id", "ascending")])
    batch = found.column("batch").combine_chunks().dictionary_encode().indices.to_numpy()
    turn = np.arange(len(batch)) - np.searchsorted(batch, batch)  # an image's place within its batch
    chosen = found.take(pa.array(np.lexsort((batch, turn))[:12])).to_pylist()
    shown = tables.about("labels", [row["image_id"] for row in chosen])
    shots = []
    for row in chosen:
        mine = schema.where_in(shown, "image_id", [row["image_id"]])
        drawn = tuple(
            mark
            for status, colour in plots.STATUS_COLOURS.items()
            if status != "rejected"
            for mark in marks(schema.where_in(mine, "status", [status]), colour)
        )
        tally = Counter(mine.column("status").to_pylist())
        told = ", ".join(f"{n} {s.replace('_', ' ')}" for s, n in sorted(tally.items()))
        names = sorted(set(mine.filter(pc.is_null(mine.column("x1"))).column("class_name").to_pylist()))
        shots.append(Shot(row["image_id"], row["batch"], ", ".join([*names, told]), drawn))
    return shots


def metrics(tables: Tables, gallery: Gallery) -> Section:
    """How models do, overall and by slice."""
    evaluation = tables.read("evaluation")
    rows = [r for r in evaluation.to_pylist() if r["split"] == tables.split]
    if not rows:
        return None
    names = sorted({r["metric"] for r in rows}, key=_metric_order)
    overall = {(r["model"], r["metric"]): r for r in rows if r["slice"] == "all" and r["class_name"] == "all"}
    primary = next((m for m in names if any(k[1] == m for k in overall)), names[0])
    per_class = [r for r in rows if r["slice"] == "all" and r["class_name"] != "all" and r["metric"] == primary]
    slices = [r for r in rows if r["class_name"] == "all" and r["metric"] == primary]
    return {
        "split": tables.split,
        "primary": primary,
        "names": [n for n in names if any(k[1] == n for k in overall)],
        "models": [
            {"model": m, "cells": {n: overall.get((m, n)) for n in names}, "champion": m == tables.champion}
            for m in sorted({m for m, _ in overall})
        ],
        "classes": sorted(per_class, key=lambda r: (r["class_name"], r["model"])),
        "charts": _metric_charts(tables, evaluation, primary, sliced=len({r["slice"] for r in slices}) > 1),
        "top": _scale(slices),
        "slices": sorted(slices, key=lambda r: (r["slice"] != "all", r["slice"], r["model"])),
    }


def _metric_order(name: str) -> tuple[int, str]:
    return (_METRICS.index(name) if name in _METRICS else len(_METRICS)), name


def _metric_charts(tables: Tables, evaluation: pa.Table, primary: str, *, sliced: bool) -> list[dict[str, str]]:
    curves = pa.concat_tables([tables.read("curves"), tables.read("learning_curves")])
    curves = curves.filter(pc.equal(curves.column("split"), tables.split))
    kinds = set(curves.column("curve").to_pylist())
    drawn: list[tuple[str, bytes]] = []
    if sliced:
        picture = plots.slice_bars(evaluation, primary, split=tables.split, models=tables.models, form="svg")
        drawn.append((f"{primary} by slice", picture))
    if "precision_recall" in kinds:
        picture = plots.precision_recall(curves, models=tables.models, form="svg")
        drawn.append(("Precision over recall", picture))
    if "learning" in kinds:
        drawn.append(
            ("Learning curve", plots.learning_curve(curves, _zero_shot(tables, primary), metric=primary, form="svg"))
        )
    if "reliability" in kinds:
        drawn.append(("Reliability", plots.reliability(curves, models=tables.models, form="svg")))
    confusion = tables.read("confusion")
    confusion = confusion.filter(pc.equal(confusion.column("split"), tables.split))
    models = sorted(set(confusion.column("model").to_pylist()))
    if models:
        model = tables.champion if tables.champion in models else models[0]
        mine = confusion.filter(pc.equal(confusion.column("model"), model))
        drawn.append((f"Confusion of {producer_name(str(model))}", plots.confusion(mine, form="svg")))
    return [{"title": title, "uri": chart(svg)} for title, svg in drawn]


def _zero_shot(tables: Tables, metric: str) -> float | None:
    """The best value that the verdict knows for an option that was not trained."""
    untrained = [
        row["value"]
        for row in tables.read("verdict").to_pylist()
        if row["option"] in ("foundation", "labeller") and row["metric"] == metric
        if row["class_name"] == row["slice"] == "all" and row["value"] is not None
    ]
    return max(untrained, default=None)


def slices(tables: Tables, gallery: Gallery) -> Section:
    """The slices that the judged model does worst on, as galleries."""
    rows = tables.read("slices").to_pylist()
    if not rows:
        return None
    model = tables.judged({r["model"] for r in rows})
    mine = [r for r in rows if r["model"] == model and r["value"] is not None and r["rest"] is not None]
    # By p-value, so that it does not matter whether more or less of the metric is better.
    worst = sorted(mine, key=lambda r: (not r["confirmed"], 1.0 if r["p_value"] is None else r["p_value"], r["slice"]))
    shown = [r for r in worst if r["p_value"] is not None and r["p_value"] < 0.5][:4] or worst[:2]
    known = tables.read("images", "image_id", "batch").column("image_id").combine_chunks()
    common: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in schema.where_in(tables.read("slice_traits"), "model", [model]).to_pylist():
        common[row["slice"]].append(row)
    return {
        "model": model,
        "total": len({r["slice"] for r in rows}),
        "discovered": len({r["slice"] for r in rows if r["kind"] == "discovered"}),
        "confirmed": sum(r["confirmed"] for r in mine),
        "galleries": [
            {
                "row": r,
                "common": common.get(r["slice"], []),
                "pictures": gallery.pictures(_compared(tables, model, _there(r["members"], known)[:6])),
            }
            for r in shown
        ],
        "rows": worst[:30],
        "charts": _watched(tables, model, worst),
    }


def _there(image_ids: list[str], known: pa.Array) -> list[str]:
    """Those of the images that are still there."""
    names = pa.array(image_ids, pa.string())
    return names.filter(pc.is_in(names, known)).to_pylist()


def _watched(tables: Tables, model: str, rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The slices of `rows` that were ever confirmed, from run to run, if there were two runs or more."""
    history = tables.read("slice_history")
    mine = [producer_name(m) == producer_name(model) for m in history.column("model").to_pylist()]
    history = history.filter(pa.array(mine, pa.bool_()))
    weak = set(history.filter(history.column("confirmed")).column("slice").to_pylist())
    names = {r["slice"]: r["title"] or r["slice"].replace("_", " ") for r in rows if r["slice"] in weak}
    if not names or len(history.column("at").unique()) < 2:
        return []
    shown = dict(list(names.items())[: len(plots.SERIES)])
    return [{"title": "Slices from run to run", "uri": chart(plots.slice_history(history, shown, form="svg"))}]


def _compared(tables: Tables, model: str, image_ids: list[str]) -> list[Shot]:
    """Images with people's boxes and those of the model."""
    truth, said, found = (tables.about(name, image_ids) for name in ("ground_truth", "predictions", "detections"))
    answers = pa.concat_tables([schema.best_classes(said).drop(["rank"]), found])
    answers = schema.where_in(answers, "producer", [model])
    answers = answers.filter(pc.greater_equal(answers.column("score"), 0.3))
    shots = []
    for image_id in image_ids:
        people = schema.where_in(truth, "image_id", [image_id])
        machine = schema.where_in(answers, "image_id", [image_id])
        actual = ", ".join(sorted(set(people.filter(pc.is_null(people.column("x1"))).column("class_name").to_pylist())))
        caption = actual or f"{people.num_rows} by people, {machine.num_rows} by the model"
        shots.append(Shot(image_id, caption, marks=marks(people, HUMAN) + marks(machine, MODEL)))
    return shots


SECTIONS: dict[str, Callable[[Tables, Gallery], Section]] = {
    "verdict": verdict,
    "overview": overview,
    "quality": quality,
    "labels": labels,
    "metrics": metrics,
    "comparisons": comparisons,
    "slices": slices,
    "failures": failures,
    "doubts": doubts,
    "drift": drift,
    "costs": costs,
    "models": models,
    "provenance": provenance,
}
