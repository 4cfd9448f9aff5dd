from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import review, schema
from pipeline.config import PriceConfig

M = "m@1#0"
PRICES = PriceConfig(human_look=0.01, human_image=0.03)
Row = tuple[str, str, str, float, str]  # id, image, class, score, status


def labels(rows: list[Row], whole: bool = False) -> pa.Table:
    made: list[dict[str, Any]] = [
        {"annotation_id": i, "image_id": image, "batch": "b", "producer": M, "class_name": name, "score": s}
        | {"truncated": False, "ignore": False, "is_crowd": False, "status": status, "parts": [i], "decided_by": ""}
        | ({} if whole else {"x1": 0.0, "y1": 0.0, "x2": 9.0, "y2": 9.0})
        for i, image, name, s, status in rows
    ]
    return schema.table("labels").from_rows(made)


def audits(ids: list[str], right: bool | None = None) -> pa.Table:
    rows = [{"annotation_id": i, "image_id": "x", "batch": "b", "class_name": "cat", "producer": M} for i in ids]
    return schema.table("audits").from_rows([r | {"certificate": "c", "right": right} for r in rows])


def worth(*maps: tuple[str, list[float], list[float]]) -> pa.Table:
    rows = [{"producer": M, "class_name": c, "method": "isotonic", "x": x, "y": y} for c, x, y in maps]
    numbers = dict.fromkeys(("brier_raw", "brier", "error_raw", "error"), 0.0) | {"answers": 9, "right": 9}
    return schema.table("calibration").from_rows([r | numbers for r in rows])


RAW = worth()


def queued(table: pa.Table, asked: pa.Table | None = None, known: pa.Table = RAW, **more: Any) -> list[dict[str, Any]]:
    return review.queue(table, audits([]) if asked is None else asked, known, PRICES, **more).to_pylist()


def test_only_what_waits_and_the_likely_right_first() -> None:
    rows = [("a", "i", "cat", 0.3, "needs_review"), ("b", "i", "cat", 0.8, "needs_review")]
    rows += [("c", "i", "cat", 0.9, "accepted"), ("d", "i", "cat", 0.1, "rejected")]
    found = queued(labels(rows))
    assert [(r["rank"], r["annotation_id"]) for r in found] == [(1, "b"), (2, "a")]
    assert found[0]["right"] == pytest.approx(0.8) and "80% likely right" in found[0]["reason"]
    # One label of the class is trusted: a second is worth sqrt(2) - 1.
    assert found[0]["gain"] == pytest.approx(0.8 * (np.sqrt(2) - 1))
    assert found[0]["cost"] == pytest.approx(0.01 + 0.03 / 2)


def test_what_people_disagree_about_waits_first_and_once() -> None:
    """Even where it gains least, and where it was being audited."""
    rows = labels(
        [(f"{k}", f"i{k}", "cat", 0.9, "needs_review") for k in range(9)] + [("z", "z", "cat", 0.01, "needs_review")]
    )
    place = rows.column_names.index("decided_by")
    words = ["score below 0.9"] * 9 + ["people disagree (ann says yes, ben says no): a third look is needed"]
    rows = rows.set_column(place, rows.schema.field(place), [words])
    for asked in (audits([]), audits(["z"])):
        found = queued(rows, asked, limit=3)
        assert [r["annotation_id"] for r in found] == ["z", "0", "1"] and "third look" in found[0]["reason"]


def test_rare_classes_and_crowded_images_pay() -> None:
    rows = [(f"t{k}", "z", "cat", 0.9, "accepted") for k in range(99)]
    rows += [("cat", "i", "cat", 0.8, "needs_review"), ("dog", "j", "dog", 0.3, "needs_review")]
    assert [r["annotation_id"] for r in queued(labels(rows))] == ["dog", "cat"]
    crowd = [(f"c{k}", "crowd", "cat", 0.5, "needs_review") for k in range(9)]
    found = queued(labels([("alone", "i", "cat", 0.55, "needs_review"), *crowd]))
    assert found[-1]["annotation_id"] == "alone" and found[0]["cost"] == pytest.approx(0.01 + 0.03 / 9)


def test_scores_count_for_what_they_are_worth() -> None:
    rows = labels([("a", "i", "cat", 0.6, "needs_review"), ("b", "i", "dog", 0.5, "needs_review")])
    known = worth(("cat", [0.0, 1.0], [0.0, 0.1]), ("all", [0.0, 1.0], [0.2, 0.2]))
    found = queued(rows, known=known)
    assert {r["annotation_id"]: r["right"] for r in found} == pytest.approx({"b": 0.2, "a": 0.06})


def test_an_images_class_is_always_settled_and_a_yes_is_cheaper() -> None:
    rows = labels([("a", "i", "cat", 0.2, "needs_review"), ("b", "j", "cat", 0.9, "needs_review")], whole=True)
    found = queued(rows)
    assert [r["annotation_id"] for r in found] == ["b", "a"] and found[0]["gain"] == found[1]["gain"] == 1.0
    assert [r["cost"] for r in found] == pytest.approx([0.01 + 0.1 * 0.03, 0.01 + 0.8 * 0.03])


def test_open_audits_come_first() -> None:
    rows = labels([("a", "i", "cat", 0.9, "needs_review"), ("z", "i", "cat", 0.9, "accepted")])
    found = queued(rows, audits(["z"]))
    assert [r["annotation_id"] for r in found] == ["z", "a"] and found[0]["reason"] == review.AUDIT
    assert [r["annotation_id"] for r in queued(rows, audits(["z"], right=True))] == ["a"]


def test_bounded_and_independent_of_the_order() -> None:
    rows: list[Row] = [(f"{k:02d}", "i", "cat", 0.5, "needs_review") for k in range(20)]
    first = queued(labels(rows), limit=7)
    assert [r["annotation_id"] for r in first] == [f"{k:02d}" for k in range(7)]
    assert first == queued(labels(rows[::-1]), limit=7)


def doubted(*rows: tuple[str, str, str, float], model: str = M) -> pa.Table:
    """Rows of `label_errors`: id, error, class that the model gives, suspicion."""
    made = [
        {"model": model, "image_id": "i", "batch": "b", "annotation_id": i, "class_name": "cat", "error": error}
        | {"suggested": name, "suspicion": s, "score": 0.93}
        | ({} if error == "class" else {"x1": 20.0, "y1": 20.0, "x2": 29.0, "y2": 29.0})
        for i, error, name, s in rows
    ]
    return schema.table("label_errors").from_rows(made)


def test_doubts_about_people_come_after_audits_the_worst_first() -> None:
    rows = [(i, "i", "cat", 1.0, "human") for i in "pqrs"] + [("a", "i", "cat", 0.9, "needs_review")]
    table, asked = labels([*rows, ("z", "i", "cat", 0.9, "accepted")]), audits(["z"])
    errors = doubted(("p", "class", "dog", 0.7), ("q", "swapped", "dog", 0.9), ("r", "badly_located", "cat", 0.8))
    errors = pa.concat_tables([errors, doubted(("q", "badly_located", "cat", 0.6), ("gone", "class", "dog", 1.0))])
    people = schema.where_in(table, "status", ("human",))
    found = queued(table, asked, doubts=review.Doubts.worst(errors, people, 9))
    assert [r["annotation_id"] for r in found] == ["z", "q", "r", "p", "a"]
    assert [r["reason"] for r in found[1:4]] == [
        "people's label: m sees dog here, not cat",
        "people's label: box probably badly placed, m sees it elsewhere",
        "people's label: m is 93% sure that this is dog, not cat",
    ]
    assert [r["right"] for r in found[1:4]] == pytest.approx([0.1, 0.2, 0.3]) and {r["x1"] for r in found} == {None}
    assert {r["route"] for r in found} == {"person"}
    few = queued(table, asked, doubts=review.Doubts.worst(errors.take([4, 3, 2, 1, 0]), people, 2))
    assert [r["annotation_id"] for r in few] == ["z", "q", "r", "a"]
    assert queued(table, asked, doubts=review.Doubts.worst(errors, people, 0)) == queued(table, asked)


def test_a_doubted_mask_brings_what_a_model_draws() -> None:
    table = labels([("p", "i", "cat", 1.0, "human"), ("a", "i", "cat", 0.9, "needs_review")])
    errors = doubted(("p", "badly_outlined", "cat", 0.7))
    errors = errors.set_column(errors.column_names.index("mask"), "mask", [["Q"]])
    doubts = review.Doubts.worst(errors, schema.where_in(table, "status", ("human",)), 9)
    first, then = queued(table, doubts=doubts)
    assert (first["annotation_id"], first["mask"], first["x1"]) == ("p", "Q", None) and then["mask"] is None
    assert first["reason"] == "people's label: mask probably wrong, m draws it otherwise"


def test_an_overlooked_box_is_proposed_once_and_with_its_box() -> None:
    errors = [doubted(("d", "overlooked", "cat", 0.6)), doubted(("e", "overlooked", "cat", 0.8), model="n@1#0")]
    errors = pa.concat_tables(errors)
    proposed = review.overlooked(errors, 0.5)
    assert proposed["annotation_id"].to_pylist() == ["e"] and proposed["status"].to_pylist() == ["needs_review"]
    table = labels([])
    rows = review.queue(table, audits([]), RAW, PRICES, doubts=review.Doubts.worst(errors, proposed, 9))
    (row,) = rows.to_pylist()
    assert (row["annotation_id"], row["producer"], row["x1"], row["y2"]) == ("e", "n@1#0", 20, 29)
    assert row["right"] == pytest.approx(0.8) and row["reason"] == "box probably overlooked by people, found by n"
    again = review.proposals(rows, table)
    assert again.drop(["decided_by"]).equals(proposed.drop(["decided_by"]))
    assert review.proposals(rows, again).num_rows == 0


def test_free_looks_and_nothing_waiting() -> None:
    free = PriceConfig(human_look=0, human_image=0)
    rows = labels([("a", "i", "cat", 0.3, "needs_review"), ("b", "i", "cat", 0.8, "needs_review")])
    assert review.queue(rows, audits([]), RAW, free)["annotation_id"].to_pylist() == ["b", "a"]
    assert queued(labels([])) == queued(labels([("a", "i", "cat", 1.0, "accepted")])) == []
