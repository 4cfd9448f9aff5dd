from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema, slices
from pipeline.slices.stable import history, keep_names


def row(name: str, members: list[str], kind: str = "discovered", model: str = "m", **more: Any) -> dict[str, Any]:
    told = {"slice": name, "kind": kind, "definition": "d", "model": model, "metric": "image_error", "value": 0.5,
            "rest": 0.1, "p_value": 0.01, "confirmed": True, "images": len(members), "members": members}  # fmt: skip
    return told | more


def table(*rows: dict[str, Any]) -> pa.Table:
    return schema.table("slices").from_rows(rows)


def images(low: int, high: int) -> list[str]:
    return [f"i{k:03d}" for k in range(low, high)]


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [r["slice"] for r in rows]


def test_a_slice_keeps_its_name_when_images_come_and_go() -> None:
    before = table(row("a", images(0, 20)), row("b", images(20, 40)), row("dark", images(0, 60), "declared"))
    now = [row("x", images(22, 45) + images(100, 160)), row("y", images(2, 18) + images(200, 230))]
    assert names(keep_names(now, before, images(2, 300))) == ["b", "a"]


def test_each_name_is_given_once_and_to_the_best_pairs() -> None:
    before = table(row("a", images(0, 20)), row("b", images(10, 30)))
    now = [row("x", images(5, 25)), row("y", images(0, 18)), row("z", images(400, 420))]
    assert names(keep_names(now, before, images(0, 500))) == ["b", "a", "z"]


def test_a_slice_keeps_its_name_when_its_model_is_trained_anew() -> None:
    before = table(
        row("a", images(0, 20), model="fcos@1#11112222"),
        row("b", images(40, 60), model="fcos@1#11112222"),
        row("c", images(0, 20), model="crowns@1#aaaabbbb"),
    )
    now = [
        row("x", images(2, 22), model="fcos@1#33334444"),
        row("y", images(1, 20), model="crowns@2#ccccdddd"),
        row("z", images(40, 60), model="crowns@2#ccccdddd"),
    ]
    assert names(keep_names(now, before, images(0, 99))) == ["a", "c", "z"]


def test_other_models_and_kinds_and_strangers_keep_their_own() -> None:
    before = table(row("a", images(0, 20), model="other"), row("b", images(0, 20), "searched"))
    now = [row("x", images(0, 20)), row("dark", images(0, 20), "declared")]
    assert names(keep_names(now, before, images(0, 99))) == ["x", "dark"]
    assert names(keep_names([row("x", images(0, 20))], table(), images(0, 99))) == ["x"]
    few = table(row("a", images(0, 20)), row("w", images(0, 60), "declared"))
    assert names(keep_names([row("x", images(12, 40))], few, images(0, 99))) == ["x"]  # less than half in common


def test_a_new_slice_does_not_take_the_name_of_an_old_one() -> None:
    before = table(row("a", images(0, 20)))
    now = [row("q", images(0, 19)), row("a", images(50, 60))]
    assert names(keep_names(now, before, images(0, 99))) == ["a", "a_2"]


def test_history_grows_by_what_changed() -> None:
    first, second = (datetime(2026, 11, day, tzinfo=UTC) for day in (1, 2))
    one = history(table(row("a", images(0, 3)), row("b", images(3, 9))), schema.table("slice_history").empty(), first)
    two = history(table(row("a", images(0, 3)), row("b", images(3, 9), value=0.4)), one, second)
    assert one.num_rows == 2 and two.num_rows == 3
    assert [r["value"] for r in two.to_pylist() if r["slice"] == "b"] == [0.5, 0.4]
    assert schema.table("slice_history").duplicate_keys(two) == 0


def test_history_tells_what_a_model_trained_anew_says_and_when_an_old_one_is_back() -> None:
    before = schema.table("slice_history").empty()
    models = ("fcos@1#11112222", "fcos@1#33334444", "fcos@1#11112222")
    for day, model in enumerate(models, start=1):
        before = history(table(row("a", images(0, 3), model=model)), before, datetime(2026, 11, day, tzinfo=UTC))
    assert before.column("model").to_pylist() == list(models)


def test_a_discovered_slice_is_the_same_one_after_a_new_batch(tables) -> None:
    """A planted weak cluster, then half as many images again: one name."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 400)
    vectors = np.eye(8)[label] + 0.05 * rng.normal(size=(400, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    error = (rng.random(400) < np.where(label == 2, 0.6, 0.05)).astype(float)
    ids = [f"{int(v):08x}" for v in rng.permutation(10**8)[:400]]
    from pipeline.config import EvaluationConfig

    def run(count: int, before: pa.Table | None) -> dict[str, Any]:
        chosen = ids[:count]
        facts = pa.table({"image_id": chosen, "location": chosen})
        errors = pa.table({"model": ["m"] * count, "image_id": chosen, "error": error[:count]})
        everyone = tables.members({"all": chosen}).append_column("definition", pa.array([""] * count))
        found = slices.slice_table(
            everyone, errors, facts, chosen, vectors[:count], EvaluationConfig(search=0), before=before
        )["slices"]
        return {"table": found, "confirmed": [r["slice"] for r in found.to_pylist() if r["confirmed"]]}

    first = run(260, None)
    without, with_ = run(400, None), run(400, first["table"])
    assert len(first["confirmed"]) == 1 and with_["confirmed"] == first["confirmed"] != without["confirmed"]
