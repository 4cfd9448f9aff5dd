from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline import schema, trust

M = "m@1#0"


def labels(tables, n: int, status: str = "accepted") -> pa.Table:
    boxes = tables.boxes([(f"i{k:03d}", "cat", (0, 0, 9, 9), 0.8) for k in range(n)], M)
    columns = {c: boxes.column(c) for c in boxes.column_names}
    more = {"status": [status] * n, "parts": [["p"]] * n, "decided_by": [""] * n, "certificate": ["c"] * n}
    return schema.table("labels").from_columns(columns | more)


def looked_at(right: list[bool | None], images: list[str] | None = None) -> pa.Table:
    rows = [
        {"annotation_id": f"a{k}", "image_id": images[k] if images else f"i{k}", "batch": "b", "class_name": "cat"}
        | {"producer": M, "certificate": "c", "right": r}
        for k, r in enumerate(right)
    ]
    return schema.table("audits").from_rows(rows)


def test_drawn_at_random_but_always_the_same(tables) -> None:
    table = labels(tables, 300)
    drawn = trust.draw(table, {}, 30)
    assert drawn.num_rows == 30 and drawn["right"].null_count == 30
    assert trust.draw(table[::-1], {}, 30).equals(drawn)
    assert set(trust.draw(table.slice(0, 200), {}, 200)["annotation_id"].to_pylist()) >= (
        set(drawn["annotation_id"].to_pylist()) & set(table.slice(0, 200)["annotation_id"].to_pylist())
    )
    known = dict(zip(table["annotation_id"].to_pylist(), range(300), strict=True))
    places = [known[i] for i in drawn["annotation_id"].to_pylist()]
    assert 90 < np.mean(places) < 210


def test_what_people_said_is_kept(tables) -> None:
    table = labels(tables, 5)
    ids = table["annotation_id"].to_pylist()
    drawn = trust.draw(table, {ids[0]: True, ids[1]: False, "other": True}, 5)
    found = dict(zip(drawn["annotation_id"].to_pylist(), drawn["right"].to_pylist(), strict=True))
    assert found == {ids[0]: True, ids[1]: False, ids[2]: None, ids[3]: None, ids[4]: None}


def test_only_accepted_labels_are_audited(tables) -> None:
    assert trust.draw(labels(tables, 5, "needs_review"), {}, 9).num_rows == 0
    assert trust.draw(labels(tables, 5), {}, 0).num_rows == 0


def test_audits_that_contradict_a_certificate_say_so() -> None:
    bad = trust.contradicted(looked_at([True] * 12 + [False] * 8 + [None] * 5), 0.9, 0.1)
    assert bad == {(M, "cat"): "12 of 20 right, 90% was promised"}
    assert trust.contradicted(looked_at([True] * 18 + [False] * 2), 0.9, 0.1) == {}
    assert trust.contradicted(looked_at([None] * 5), 0.9, 0.1) == trust.contradicted(looked_at([]), 0.9, 0.1) == {}


def test_wrong_labels_of_one_image_are_one_accident() -> None:
    wrong = [False] * 9 + [True] * 31
    assert trust.contradicted(looked_at(wrong), 0.95, 0.1)
    assert not trust.contradicted(looked_at(wrong, ["same"] * 9 + [f"i{k}" for k in range(31)]), 0.95, 0.1)


@pytest.mark.parametrize("precision", [0.9, 0.95])
def test_an_honest_certificate_is_rarely_doubted_however_often_one_looks(precision: float) -> None:
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(100):
        right = (generator.random(60) < precision).tolist()
        alarms += any(trust.contradicted(looked_at(right[:n]), 0.9, 0.1) for n in range(5, 61, 5))
    assert alarms <= 10 + 9  # three standard errors
