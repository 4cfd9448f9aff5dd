from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import decisions, schema
from pipeline.config import parse_config
from pipeline.ids import content_hash
from pipeline.journal import Corners, Decision
from tests.pipeline.decided import decision, table

BOX = (10.0, 10.0, 30.0, 30.0)
NEAR = (11.0, 10.0, 31.0, 30.0)  # IoU with BOX 0.905
FAR = (60.0, 60.0, 80.0, 80.0)
CONFIG = parse_config({"name": "p", "classes": {"cat": {}, "dog": {}}, "source": {"uri": "."}})


def label(name: str, box: Corners | None = BOX, kind: str = "cat", **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "annotation_id": name, "image_id": "x", "batch": "b", "producer": "m@1#0", "class_name": kind, "score": 0.5,
        "truncated": False, "ignore": False, "is_crowd": False, "status": "needs_review", "parts": [name],
        "decided_by": "score below 0.9", "threshold": 0.9, "precision": 0.95, "mask": "mmm",
    }  # fmt: skip
    return row | dict(zip(("x1", "y1", "x2", "y2"), box or (None,) * 4, strict=True)) | more


def images(*names: str) -> pa.Table:
    return pa.table({"image_id": pa.array(names or ("x",), pa.string())})


def apply(labels: list[dict[str, Any]], *made: Decision, **how: Any) -> dict[str, dict[str, Any]]:
    """Labels after decisions, by id; also checks that a second time changes nothing."""
    before = schema.table("labels").from_rows(labels)
    after = decisions.apply(before, table(*made), how.get("images", images()), how.get("config", CONFIG))
    again = decisions.apply(after, table(*made), how.get("images", images()), how.get("config", CONFIG))
    assert again.equals(after)
    assert schema.table("labels").duplicate_keys(after) == 0
    return {row["annotation_id"]: row for row in after.to_pylist()}


def yes(name: str, reviewer: str = "ann", box: Corners | None = BOX, kind: str = "cat", **more: Any) -> Decision:
    return decision(name, "yes", reviewer, class_name=kind, box=box, asked_class=kind, asked_box=box, **more)


def no(name: str, reviewer: str = "ann", box: Corners | None = BOX, kind: str = "cat", **more: Any) -> Decision:
    return decision(name, "no", reviewer, asked_class=kind, asked_box=box, **more)


def fix(name: str, to: Corners | None, kind: str = "cat", reviewer: str = "ann", **more: Any) -> Decision:
    asked = {"asked_class": "cat", "asked_box": BOX} | more
    return decision(name, "fix", reviewer, class_name=kind, box=to, **asked)


# -- one person ------------------------------------------------------------------------------------


def test_yes_makes_it_human_and_changes_nothing_else() -> None:
    row = apply([label("a")], yes("a"))["a"]
    assert (row["status"], row["decided_by"]) == ("human", "confirmed by ann")
    expected = schema.table("labels").from_rows([label("a")]).to_pylist()[0]
    assert {k: v for k, v in row.items() if k not in ("status", "decided_by")} == {
        k: v for k, v in expected.items() if k not in ("status", "decided_by")
    }


def test_no_rejects_and_people_s_own_labels_too() -> None:
    found = apply([label("a"), label("g", FAR, producer="human", status="human")], no("a"), no("g", box=FAR))
    assert {r["status"] for r in found.values()} == {"rejected"}
    assert found["a"]["decided_by"] == "refused by ann"


def test_fix_is_the_person_s_box_and_class() -> None:
    row = apply([label("a")], fix("a", NEAR, "dog"))["a"]
    assert (row["x1"], row["x2"], row["class_name"], row["score"], row["producer"]) == (11, 31, "dog", 1.0, "human")
    assert row["status"] == "human" and row["decided_by"] == "corrected from cat by ann"
    assert row["mask"] is None and row["threshold"] is None and row["parts"] == ["a"]


def test_a_mask_stays_when_only_the_class_was_wrong_or_comes_with_the_fix() -> None:
    assert apply([label("a")], fix("a", BOX, "dog"))["a"]["mask"] == "mmm"
    assert apply([label("a")], fix("a", NEAR, mask="new"))["a"]["mask"] == "new"


def test_add_is_a_label_of_its_own() -> None:
    made = decision("new", "add", class_name="dog", box=FAR)
    found = apply([label("a")], made)
    assert found["new"]["status"] == "human" and found["new"]["decided_by"] == "drawn by ann"
    assert found["new"]["parts"] == ["new"] and found["a"]["status"] == "needs_review"


def test_the_last_word_counts_and_undo_takes_it_back() -> None:
    first, second = yes("a"), no("a", minute=1)
    undo = decision("a", "undo", minute=2, withdraws=second.decision_id)
    undone = decision("a", "undo", minute=3, withdraws=first.decision_id)
    assert apply([label("a")], first, second)["a"]["status"] == "rejected"
    assert apply([label("a")], first, second, undo)["a"]["status"] == "human"
    assert apply([label("a")], first, second, undo, undone)["a"]["status"] == "needs_review"


# -- another run -------------------------------------------------------------------------------------


def test_a_confirmed_label_outlives_its_model() -> None:
    """Another model proposes nearly the same box under another id: the person's label stands, once."""
    found = apply([label("z", NEAR), label("w", FAR)], yes("a"))
    assert set(found) == {"a", "w"} and found["w"]["status"] == "needs_review"
    assert found["a"]["status"] == "human" and found["a"]["x1"] == 10 and found["a"]["parts"] == ["a", "z"]


def test_a_refused_box_stays_refused() -> None:
    found = apply([label("z", NEAR), label("d", NEAR, "dog")], no("a"))
    assert found["z"]["status"] == "rejected" and found["z"]["decided_by"] == "ann has refused this before"
    assert found["d"]["status"] == "needs_review"
    assert "a" not in found


def test_a_corrected_class_is_not_proposed_again() -> None:
    found = apply([label("z", NEAR, "cat"), label("d", NEAR, "dog")], fix("a", BOX, "dog"))
    assert found["a"]["class_name"] == "dog" and found["a"]["parts"] == ["a", "d"]
    assert found["z"]["status"] == "rejected"


def test_a_yes_holds_for_the_box_that_was_seen() -> None:
    row = apply([label("a", FAR)], yes("a"))["a"]
    assert (row["x1"], row["status"], row["producer"]) == (10, "human", "human")


def test_people_s_files_are_not_swallowed() -> None:
    found = apply([label("g", NEAR, producer="human", status="human")], yes("a"), no("q"))
    assert set(found) == {"a", "g"} and found["g"]["status"] == "human"


def test_one_class_of_an_image_as_a_whole() -> None:
    found = apply([label("z", None, "dog")], yes("a", box=None))
    assert set(found) == {"a"} and found["a"]["class_name"] == "cat" and found["a"]["parts"] == ["a", "z"]
    assert apply([label("z", None, "cat")], no("a", box=None))["z"]["status"] == "rejected"
    assert apply([label("z", None, "dog")], no("a", box=None))["z"]["status"] == "needs_review"


def test_what_the_project_no_longer_has_is_passed_over() -> None:
    rows = [label("a")]
    assert apply(rows, yes("a", kind="cow"))["a"]["status"] == "needs_review"
    assert set(apply(rows, yes("q", image_id="gone"))) == {"a"}
    assert apply([], yes("a"), images=images("y")) == {}


# -- several people -----------------------------------------------------------------------------------


def test_people_who_disagree_send_it_to_a_third() -> None:
    row = apply([label("a", status="accepted")], yes("a"), no("a", "ben", minute=1))["a"]
    assert row["status"] == "needs_review"
    assert row["decided_by"] == "people disagree (ann says yes, ben says no): a third look is needed"
    settled = [yes("a"), no("a", "ben", minute=1), yes("a", "cal", minute=2)]
    row = apply([label("a")], *settled)["a"]
    assert row["status"] == "human" and row["decided_by"] == "confirmed by cal; 3 people: 1 no, 2 yes"
    assert apply([label("a")], settled[0], settled[1], no("a", "cal", minute=2))["a"]["status"] == "rejected"


def test_people_who_disagree_on_a_label_that_has_gone() -> None:
    row = apply([], yes("a"), no("a", "ben", minute=1))["a"]
    assert row["status"] == "needs_review" and row["x1"] == 10


def test_boxes_that_overlap_enough_are_one_answer() -> None:
    assert apply([label("a")], yes("a"), fix("a", NEAR, reviewer="ben", minute=1))["a"]["x1"] == 11
    assert apply([label("a")], yes("a"), fix("a", FAR, reviewer="ben", minute=1))["a"]["status"] == "needs_review"
    assert apply([label("a")], yes("a"), fix("a", BOX, "dog", "ben", minute=1))["a"]["status"] == "needs_review"


def test_one_thing_drawn_by_two_people_is_one_label() -> None:
    ann = decision("n1", "add", class_name="cat", box=BOX)
    ben = decision("n2", "add", "ben", minute=1, class_name="cat", box=NEAR)
    found = apply([], ann, ben)
    assert set(found) == {"n2"} and found["n2"]["parts"] == ["n2", "n1"]
    own = decision("n3", "add", class_name="cat", box=NEAR, minute=2)
    assert set(apply([], ann, own)) == {"n1", "n3"}  # one person who draws twice means two


# -- any ---------------------------------------------------------------------------------------------


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[Decision]]:
    spots = [None, BOX, NEAR, FAR, (0.0, 0.0, 5.0, 5.0)]
    boxed = draw(st.booleans())
    place = st.sampled_from(spots[1:] if boxed else spots[:1])
    kinds = st.sampled_from(["cat", "dog"])
    names = draw(st.lists(st.sampled_from("abcdef"), unique=True, max_size=5))
    statuses = st.sampled_from(["accepted", "needs_review", "rejected", "human"])
    labels = [label(n, draw(place), draw(kinds), status=draw(statuses)) for n in names]
    made: list[Decision] = []
    for minute in range(draw(st.integers(0, 8))):
        name, who, box, kind = draw(st.sampled_from("abcdefgh")), draw(st.sampled_from("AB")), draw(place), draw(kinds)
        asked = {"asked_class": draw(kinds), "asked_box": draw(place), "minute": minute}
        verdict = draw(st.sampled_from(["yes", "no", "fix", "add", "undo"]))
        if verdict == "undo":
            withdraws = draw(st.sampled_from([d.decision_id for d in made] or ["none"]))
            made.append(decision(name, "undo", who, minute=minute, withdraws=withdraws))
        elif verdict == "no":
            made.append(decision(name, "no", who, **asked))
        else:
            made.append(decision(name, verdict, who, class_name=kind, box=box, **asked))
    return labels, made


@given(worlds())
@settings(max_examples=200, deadline=None)
def test_decisions_hold_whatever_they_are(world: tuple[list[dict[str, Any]], list[Decision]]) -> None:
    labels, made = world
    found = apply(labels, *made)
    for outcome in decisions.outcomes(table(*made), CONFIG.trust.iou):
        held = [r for r in found.values() if outcome.annotation_id in r["parts"]]
        word = outcome.decided
        if word is None:
            assert found[outcome.annotation_id]["status"] == "needs_review"
        elif word["verdict"] == "no":
            assert all(r["status"] == "rejected" for r in held if r["annotation_id"] == outcome.annotation_id)
        else:
            (row,) = held
            assert row["status"] == "human" and row["class_name"] == word["class_name"]
    order = np.random.default_rng(0).permutation(len(made))
    shuffled = table(*(made[i] for i in order))
    before = schema.table("labels").from_rows(labels)
    one = decisions.apply(before, table(*made), images(), CONFIG)
    assert content_hash(one) == content_hash(decisions.apply(before, shuffled, images(), CONFIG))


def test_no_decisions_leave_labels_as_they_are() -> None:
    before = schema.table("labels").from_rows([label("a"), label("b", image_id="y")])
    after = decisions.apply(before, schema.table("decisions").empty(), images("x", "y"), CONFIG)
    assert after.equals(before)


@pytest.mark.parametrize("count", [3000])
def test_only_images_that_people_touched_are_looked_at(count: int) -> None:
    rows = [label(f"{k:05d}", image_id=f"i{k % 1000:04d}") for k in range(count)]
    made = [yes("00000", image_id="i0000"), no("00001", image_id="i0001")]
    names = sorted({r["image_id"] for r in rows})
    before = schema.table("labels").from_rows(rows)
    after = decisions.apply(before, table(*made), images(*names), CONFIG)
    rest = before.filter(pa.compute.invert(pa.compute.is_in(before["image_id"], pa.array(["i0000", "i0001"]))))
    assert schema.where_in(after, "image_id", names[2:]).equals(
        rest.sort_by([("image_id", "ascending"), ("annotation_id", "ascending")])
    )
