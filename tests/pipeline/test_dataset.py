from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.dataset import snapshot

BOX = [[10.0, 10.0, 30.0, 40.0]]


def images(*ids: str) -> pa.Table:
    row: dict[str, Any] = {c.name: 1 for c in schema.table("images").columns if pa.types.is_integer(c.type)}
    text = {c.name: "x" for c in schema.table("images").columns if c.type == pa.string()}
    return schema.table("images").from_rows([row | text | {"image_id": i, "batch": "b", "attributes": []} for i in ids])


def splits(**of: str) -> pa.Table:
    """`gold_` in front of a split's name makes the image gold."""
    rows = [
        {"image_id": i, "batch": "b", "split": s.removeprefix("gold_"), "location": i, "gold": s.startswith("gold_")}
        for i, s in of.items()
    ]
    return schema.table("splits").from_rows(rows)


def truth(*ids: str) -> pa.Table:
    return labels(*((i, "human") for i in ids), producer="human")


def labels(*of: tuple[str, str], boxes: bool = True, producer: str = "crowns@1#0") -> pa.Table:
    n = len(of)
    return schema.annotations(  # type: ignore[operator]
        "labels",
        image_ids=[i for i, _ in of],
        batch="b",
        producer=producer,
        classes=["Tree"] * n,
        boxes=np.array(BOX * n) + np.arange(n)[:, None] * 50 if boxes else None,
        scores=np.full(n, 0.5),
        status=[s for _, s in of],
        decided_by=["test"] * n,
        parts=[[]] * n,
    )


def both(people: pa.Table, *machine: tuple[str, str]) -> pa.Table:
    return pa.concat_tables([people, labels(*machine)])


def origins(rows: pa.Table) -> set[tuple[str, str, str, bool]]:
    chosen = rows.select(["image_id", "split", "origin", "ignore"]).to_pylist()
    return {(r["image_id"], r["split"], r["origin"], r["ignore"]) for r in chosen}


def test_gold_of_train_and_val_comes_in_and_nothing_of_test() -> None:
    rows = snapshot(truth("a", "b", "c"), splits(a="gold_train", b="gold_val", c="gold_test"), images("a", "b", "c"))
    assert origins(rows) == {("a", "train", "gold", False), ("b", "val", "gold", False)}


def test_machine_labels_come_in_only_where_no_person_labelled_and_nothing_is_held_out() -> None:
    rows = snapshot(
        both(truth("a"), ("a", "accepted"), ("v", "accepted"), ("t", "verified"), ("u", "verified"), ("n", "accepted")),
        splits(a="gold_train", v="val", t="test", u="unlabelled", n="train"),
        images("a", "v", "t", "u", "n"),
    )
    assert origins(rows) == {
        ("a", "train", "gold", False),
        ("u", "train", "verified", False),
        ("n", "train", "accepted", False),
    }


def test_unsure_labels_become_ignored_regions_beside_trusted_ones_only() -> None:
    rows = snapshot(
        labels(("u", "accepted"), ("u", "needs_review"), ("u", "rejected"), ("w", "needs_review")),
        splits(u="unlabelled", w="unlabelled"),
        images("u", "w"),
    )
    assert origins(rows) == {("u", "train", "accepted", False), ("u", "train", "needs_review", True)}


def test_an_unsure_image_level_label_is_not_a_region() -> None:
    rows = snapshot(labels(("u", "accepted"), ("u", "needs_review"), boxes=False), splits(u="unlabelled"), images("u"))
    assert origins(rows) == {("u", "train", "accepted", False)}


def test_people_correct_people() -> None:
    """What they have refused since is gone, what they disagree about is ignored, and a correction counts."""
    rows = labels(("a", "human"), ("a", "rejected"), ("a", "needs_review"), producer="human")
    assert origins(snapshot(rows, splits(a="gold_val"), images("a"))) == {
        ("a", "val", "gold", False),
        ("a", "val", "needs_review", True),
    }


def test_images_that_are_gone_leave_the_snapshot() -> None:
    rows = snapshot(truth("a", "b"), splits(a="gold_train", b="gold_train"), images("a"))
    assert rows["image_id"].to_pylist() == ["a"]


def test_the_hash_follows_content_not_order() -> None:
    split, some = splits(a="gold_train", b="gold_val"), images("a", "b")
    first = snapshot(truth("a", "b"), split, some)
    turned = snapshot(truth("a", "b").take([1, 0]), split.take([1, 0]), some)
    assert first.equals(turned)
    fewer = snapshot(truth("a"), split, some)
    assert fewer["snapshot"][0] != first["snapshot"][0]


def test_the_hash_covers_gold_images_without_objects() -> None:
    some = images("a", "b")
    with_empty = snapshot(truth("a"), splits(a="gold_train", b="gold_train"), some)
    without = snapshot(truth("a"), splits(a="gold_train", b="train"), some)
    assert with_empty.drop(["snapshot"]).equals(without.drop(["snapshot"]))
    assert with_empty["snapshot"][0] != without["snapshot"][0]


@pytest.mark.parametrize("split", [splits(), splits(a="gold_train"), splits(a="unlabelled")])
def test_nothing_labelled_gives_a_valid_empty_table(split: pa.Table) -> None:
    rows = snapshot(schema.table("labels").empty(), split, images("a"))
    assert rows.num_rows == 0 and rows.schema == schema.table("training_set").schema
