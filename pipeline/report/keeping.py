"""Sections of the report: costs, models, and who made what."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from pipeline import plots, schema
from pipeline.ids import producer_name
from pipeline.report.counting import count
from pipeline.report.gallery import Gallery, chart
from pipeline.report.tables import Section, Tables
from pipeline.store import Store


def costs(tables: Tables, gallery: Gallery) -> Section:
    """What the work took, by stage."""
    rows = tables.read("costs")
    if not rows.num_rows:
        return None
    found = rows.to_pylist()
    stages: dict[str, dict[str, float]] = defaultdict(lambda: {"seconds": 0.0, "money": 0.0, "tokens": 0})
    for row in found:
        for key in ("seconds", "money", "tokens"):
            stages[row["stage"]][key] += row[key]
    return {
        "seconds": sum(r["seconds"] for r in found),
        "money": sum(r["money"] for r in found),
        "tokens": sum(r["tokens"] for r in found),
        "currency": found[0]["currency"],
        "entries": len(found),
        "stages": sorted(({"name": n, **v} for n, v in stages.items()), key=lambda s: (-s["seconds"], s["name"])),
        "chart": {"title": "Where the time went", "uri": chart(plots.cost_bars(rows, form="svg"))},
    }


def models(tables: Tables, gallery: Gallery) -> Section:
    """Trained models, the one in charge, and what was exported."""
    trained = tables.read("models").sort_by([("model", "ascending")]).to_pylist()
    champion, deployed = tables.read("champion").to_pylist(), tables.read("deployment").to_pylist()
    if not trained and not champion and not deployed:
        return None
    main = next((m for m in trained if m["model"] == tables.champion), trained[0] if trained else None)
    histories = [main] if main and main["history"] not in ("", "[]") else []
    return {
        "trained": trained,
        "champion": champion,
        "deployed": deployed,
        "training_rows": tables.read("training_set", "origin").num_rows,
        "origins": sorted(count(tables.read("training_set", "origin"), "origin").items()),
        "charts": [
            {
                "title": f"Training loss of {producer_name(m['model'])}",
                "uri": chart(plots.training_loss(m["history"], form="svg")),
            }
            for m in histories
        ],
    }


def provenance(tables: Tables, gallery: Gallery) -> Section:
    """Who made which rows, and the receipts of the tables."""
    producers: Counter[tuple[str, str]] = Counter()
    for name in ("ground_truth", "detections", "masks", "tags", "labels", "predictions"):
        producers.update({(p, name): n for p, n in count(tables.read(name, "producer"), "producer").items()})
    encoders = count(tables.read("embeddings", "encoder"), "encoder")
    producers.update({(p, "embeddings"): n for p, n in encoders.items()})
    made = [_made(tables.store, n) for n in schema.TABLES if n != "report" and tables.store.exists(n)]
    if not made:
        return None
    return {
        "producers": [{"producer": p, "table": t, "rows": n} for (p, t), n in sorted(producers.items())],
        "tables": made,
        "latest": max((m["at"] for m in made), default=""),
    }


def _made(store: Store, name: str) -> dict[str, Any]:
    batches: list[str | None] = list(store.batches(name)) if schema.table(name).batched else [None]
    receipts = [r for b in batches if (r := store.receipt(name, b)) is not None]
    return {
        "name": name,
        "doc": schema.table(name).doc,
        "batches": len(batches) if schema.table(name).batched else None,
        "rows": sum(r.rows for r in receipts),
        "at": max((str(r.written_by.get("at", "")) for r in receipts), default=""),
        "content": receipts[0].content if len(receipts) == 1 else "",
    }
