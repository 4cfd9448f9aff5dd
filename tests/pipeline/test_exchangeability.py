from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import drift, exchangeability, fuse, schema, trust
from pipeline.config import DriftConfig, ProjectConfig

M = "m@1#0"


def world(tables: Any, new: float, own_gold: int = 0) -> dict[str, Any]:
    """Gold of batch 'old' around one vector; batch 'new' around another, `new` away, some of it gold.

    Every image has one box, all of them right, scored alike.
    """
    old, fresh = [f"o{k:03d}" for k in range(80)], [f"n{k:03d}" for k in range(80)]
    images = pa.concat_tables([tables.images(old), tables.images(fresh)]).to_pylist()
    for row in images:
        row["batch"] = "old" if row["image_id"] in old else "new"
    generator = np.random.default_rng(0)
    centre = np.array([[1.0, 0, 0, 0], [np.cos(new), np.sin(new), 0, 0]])
    vectors = np.repeat(centre, 80, axis=0) + 0.05 * generator.normal(size=(160, 4))
    own = fresh[:own_gold]
    return {
        "images": schema.table("images").from_rows(images),
        "vectors": (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32),
        "ids": old + fresh,
        "gold": old + own,
        "own": own,
        "boxes": tables.boxes([(i, "cat", (0, 0, 9, 9), 0.8) for i in old + fresh], M),
        "truth": tables.truth([(i, "cat", (0, 0, 9, 9)) for i in old + own]),
    }


def judged(tables: Any, w: dict[str, Any]) -> pa.Table:
    """The table of batch 'new'."""
    quality = tables.quality(w["ids"], [0.5] * len(w["ids"]))
    parts = [schema.table("exchangeability").empty()]
    for name, gold in (("all", w["gold"]), ("batch", w["own"])):
        if gold:
            seen = exchangeability.sides(w["images"], gold, w["gold"])
            config = DriftConfig(permutations=500)
            tests = drift.test_batch(
                "new", seen, quality, gold, config, encoder="e@1#0", ids=w["ids"], vectors=w["vectors"]
            )
            parts.append(exchangeability.judge(tests, name))
    return pa.concat_tables(parts)


def labels(tables: Any, w: dict[str, Any], rows: pa.Table) -> list[dict[str, Any]]:
    config: ProjectConfig = tables.config(["cat"])
    own = pa.table({"slice": ["batch:new"] * len(w["own"]), "image_id": w["own"]}, schema=tables.members({}).schema)
    graded = trust.grade(w["boxes"], w["truth"], trust.Gold(w["gold"], slices=own), config.trust, ["cat"])
    here = w["images"].filter(pa.compute.equal(w["images"]["batch"], "new"))
    seen = schema.where_in(w["boxes"], "image_id", here["image_id"].to_pylist())
    standing = fuse.Standing("new", exchangeability.standing(rows))
    nothing = schema.table("masks").empty()
    made = fuse.label_batch(seen, nothing, graded, w["truth"], w["own"], here, config, standing)
    return [r for r in made.to_pylist() if r["status"] != "human"]


def test_a_batch_like_gold_keeps_its_certificate(tables) -> None:
    w = world(tables, new=0.0)
    rows = judged(tables, w)
    assert not any(rows["differs"].to_pylist()) and exchangeability.standing(rows) == {"all": ""}
    assert {r["status"] for r in labels(tables, w, rows)} == {"accepted"}


def test_a_batch_unlike_gold_loses_it_and_says_so(tables) -> None:
    w = world(tables, new=0.6)
    rows = judged(tables, w)
    assert any(rows["differs"].to_pylist()) and "embedding" in exchangeability.standing(rows)["all"]
    made = labels(tables, w, rows)
    assert {r["status"] for r in made} == {"needs_review"} and len(made) == 80
    assert "certificate withdrawn" in made[0]["decided_by"] and "label some of it" in made[0]["decided_by"]


@pytest.mark.parametrize(("own", "status"), [(5, "needs_review"), (30, "accepted")])
def test_gold_of_its_own_restores_it_once_it_is_enough(tables, own: int, status: str) -> None:
    w = world(tables, new=0.6, own_gold=own)
    rows = judged(tables, w)
    doubts = exchangeability.standing(rows)
    assert doubts["all"] and doubts["batch"] == ""
    made = labels(tables, w, rows)
    assert {r["status"] for r in made} == {status} and len(made) == 80 - own
    assert (status == "accepted") == ("its own gold is too little" not in made[0]["decided_by"])


def test_what_people_labelled_is_not_tested_and_gold_is_no_part_of_the_batch(tables) -> None:
    images = tables.images(["a", "b", "c"])
    assert exchangeability.sides(images, ["b"], ["b", "c"])["batch"].to_pylist() == ["b", "(gold)", "(labelled)"]
    assert exchangeability.standing(schema.table("exchangeability").empty()) == {}
