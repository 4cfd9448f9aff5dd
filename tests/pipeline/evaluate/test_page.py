"""docs/evaluation.md names what the tables hold, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import masks, schema, tide
from pipeline.evaluate import class_shares, evaluate, mask_agreement, mask_precision
from pipeline.predict import class_rows

ROOT = Path(__file__).parents[3]


def named(section: str) -> set[str]:
    """What the first column of a section's tables names."""
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    part = re.split(r"^#{2,3} ", text, flags=re.MULTILINE)
    (found,) = [p for p in part if p.startswith(section + "\n")]
    cells = [line.split("|")[1] for line in found.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def metrics(table: pa.Table) -> set[str]:
    return set(table["metric"].to_pylist())


def test_metrics_of_boxes_and_masks(tables) -> None:
    disc = np.zeros((100, 100), bool)
    disc[10:50, 10:50] = True
    ids, box = ["x", "y"], (10, 10, 50, 50)
    truth = tables.truth([(i, "cat", box) for i in ids], mask=[masks.encode(disc)] * 2)
    seen = tables.boxes([(i, "cat", box, 0.9) for i in ids])
    splits = pa.concat_tables([tables.splits(["x"]), tables.splits(["y"], "val")])
    config, members, images = tables.config(), tables.members({}), tables.images(ids)
    out = evaluate(seen, truth, splits, members, config)["evaluation"]
    assert metrics(out) == named("Boxes")
    drawn = [
        schema.table("masks").from_columns(
            {"mask": truth["mask"], "producer": ["sam@1#0"] * 2, "area": [1600] * 2, "score": [0.9] * 2}
            | {c: rows[c] for c in ("annotation_id", "image_id", "batch")}
        )
        for rows in (seen, truth)
    ]
    found = mask_precision(seen, drawn[0], truth, images, splits, members, config)
    agreed = mask_agreement(drawn[1], truth, images, splits, members, config)
    assert metrics(found) | metrics(agreed) == named("Masks")


def test_metrics_of_classes(tables) -> None:
    names, images = [f"c{k}" for k in range(6)], tables.images(["x"])
    config = tables.config(names, task="classification")
    shares = np.full((1, 6), 1 / 6)
    said = class_rows("m@1#0", names, images, shares)
    everything = class_shares(tables.boxes([("x", n, None, 1 / 6) for n in names]))
    truth = tables.truth([("x", "c0", None)])
    best = schema.best_classes(said)
    out = evaluate(best, truth, tables.splits(["x"]), tables.members({}), config, shares=everything)
    assert metrics(out["evaluation"]) == named("Classes of images")


def test_kinds_causes_and_their_evidence() -> None:
    (causes,) = (c.doc for c in schema.table("failures").columns if c.name == "causes")
    assert named("The table `failures`") == {*tide.KINDS, "outline", *causes.split(", ")}
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    plain = {"model", "image_id", "batch", "annotation_id", "class_name", "score", *schema.CORNERS}
    unnamed = [c.name for c in schema.table("failures").columns if f"`{c.name}`" not in text]
    assert set(unnamed) <= plain


def test_the_tests_that_are_named_are_there() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name in re.findall(r"`([\w/]*test_\w+\.py)`", text):
        assert (ROOT / "tests" / "pipeline" / name).is_file(), name
