"""Wrong classes of whole images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.failures.rows import Columns, doubted, table


def wrong_classes(model: str, said: pa.Table, truth: pa.Table, facts: pa.Table, doubts: pa.Table) -> pa.Table:
    """Rows of `failures` of a classifier on some images: other classes than people's, and images passed over."""
    best: dict[str, dict[str, Any]] = {}
    for row in said.sort_by([("score", "descending"), ("annotation_id", "ascending")]).to_pylist():
        best.setdefault(row["image_id"], row)
    actual = {row["image_id"]: row for row in reversed(truth.to_pylist())}
    wrong = [
        (person, best.get(image))
        for image, person in sorted(actual.items())
        if image not in best or best[image]["class_name"] != person["class_name"]
    ]
    rows = [{**person, "annotation_id": (answer or person)["annotation_id"]} for person, answer in wrong]
    people = pa.Table.from_pylist(rows, schema=truth.schema)
    labels, suggested = (doubts[c].to_pylist() for c in ("annotation_id", "suggested"))
    first = {pair: k for k, pair in reversed([*enumerate(zip(labels, suggested, strict=True))])}
    at = [first.get((person["annotation_id"], answer["class_name"]), -1) if answer else -1 for person, answer in wrong]
    columns: Columns = {
        "error": np.array(["classification" if answer else "missed" for _, answer in wrong], object),
        "score": np.array([answer["score"] if answer else np.nan for _, answer in wrong], np.float64),
        "confused_with": np.array([answer["class_name"] if answer else None for _, answer in wrong], object),
        "cost": np.full(len(wrong), 1 / max(1, len(actual))),
        **doubted(doubts, np.array(at, np.int64)),
    }
    places = schema.codes(people["image_id"], facts.column("image_id").to_pylist())
    return table(model, people, columns, {}, facts.take(pa.array(places)))
