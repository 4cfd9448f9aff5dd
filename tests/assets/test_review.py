"""People's decisions through a real run: in force, never overwritten, and disagreements queued."""

import json
from pathlib import Path

import pytest

from assets import launch
from assets.recipes import Work
from assets.resources import s3_resource
from assets.review import doubts_of
from pipeline import schema
from pipeline.compute import Compute
from pipeline.journal import Decision, Journal
from pipeline.reviewing.items import Desk
from pipeline.store import Store
from tests.assets.conftest import World
from tests.pipeline.conftest import Tables
from tests.pipeline.decided import decision, table

LABELS = "decisions,agreement,trust,labels,review_queue"
ERRORS = "images,ground_truth,detections,decisions,labels,training_set,label_errors,review_queue"
LABELLER = "from tests.assets.squares import Squares\n"


def waiting(store: Store, count: int) -> list[dict]:
    """Labels of the batch that nobody has labelled, which wait for a person or were accepted."""
    rows = store.read("labels", "b").to_pylist()
    chosen = [r for r in rows if r["status"] in ("needs_review", "accepted")][:count]
    assert len(chosen) == count
    return chosen


def said(row: dict, verdict: str, reviewer: str = "ann", minute: int = 0, **more: object) -> Decision:
    box = tuple(row[k] for k in ("x1", "y1", "x2", "y2"))
    asked = {"asked_class": row["class_name"], "asked_box": box}
    left = {} if verdict == "no" else {"class_name": row["class_name"], "box": box}
    place = {"image_id": row["image_id"], "batch": row["batch"]}
    return decision(row["annotation_id"], verdict, reviewer, minute, **(place | asked | left | more))


def labels(store: Store) -> dict[str, dict]:
    return {r["annotation_id"]: r for r in store.read("labels", "b").to_pylist()}


def test_decisions_come_into_force_and_nothing_else_is_done_again(finished: World) -> None:
    store = Store(finished.project.store_uri)
    one, two, three = waiting(store, 3)
    before = {b: store.receipt("labels", b) for b in store.batches("labels")}
    Journal(store).append([said(one, "yes"), said(two, "no", minute=1), said(three, "fix", box=(0.0, 0.0, 9.0, 9.0))])
    outcome = launch.run("squares")
    assert outcome.success, outcome.failure
    found = labels(store)
    assert [found[r["annotation_id"]]["status"] for r in (one, two, three)] == ["human", "rejected", "human"]
    assert found[three["annotation_id"]]["x2"] == 9 and found[three["annotation_id"]]["producer"] == "human"
    assert store.read("decisions").num_rows == 3 and store.read("agreement").num_rows == 0
    assert store.receipt("labels", "a") == before["a"] and store.receipt("labels", "c") == before["c"]
    assert not {"squares/detections", "detections"} & set(outcome.executed)
    queue = store.read("review_queue").column("annotation_id").to_pylist()
    assert not {r["annotation_id"] for r in (one, two, three)} & set(queue)
    assert set(launch.status("squares").column("state").to_pylist()) == {"fresh"}


def test_a_run_with_other_settings_overwrites_no_decision(finished: World) -> None:
    store = Store(finished.project.store_uri)
    one, two = waiting(store, 2)
    Journal(store).append([said(one, "yes"), said(two, "no", minute=1)])
    assert launch.run("squares", select=LABELS).success
    finished.write(trust={"target": 0.99, "review_floor": 0.9})
    assert launch.run("squares", select=LABELS).success
    found = labels(store)
    assert found[one["annotation_id"]]["status"] == "human" and found[two["annotation_id"]]["status"] == "rejected"


def test_a_tie_between_people_is_queued_for_a_third(finished: World) -> None:
    store = Store(finished.project.store_uri)
    one, two = waiting(store, 2)
    Journal(store).append(
        [said(one, "yes"), said(one, "no", "ben", 1), said(two, "yes", minute=2), said(two, "yes", "ben", 3)]
    )
    assert launch.run("squares", select=LABELS).success
    row = labels(store)[one["annotation_id"]]
    assert row["status"] == "needs_review" and row["decided_by"].startswith("people disagree")
    assert one["annotation_id"] in store.read("review_queue", "b").column("annotation_id").to_pylist()
    rows = store.read("agreement").to_pylist()
    value = {(r["class_name"], r["reviewers"], r["metric"]): r for r in rows}
    assert value["all", "ann, ben", "raw_agreement"]["value"] == pytest.approx(0.5)
    assert value["all", "all", "krippendorff_alpha"]["disagreements"] == 1
    Journal(store).append([said(one, "no", "cal", 9)])
    assert launch.run("squares", select=LABELS).success
    assert labels(store)[one["annotation_id"]]["status"] == "rejected"


def test_a_damaged_journal_stops_the_run_with_its_line(finished: World) -> None:
    store = Store(finished.project.store_uri)
    Journal(store).append([said(waiting(store, 1)[0], "yes")])
    (path,) = Path(store.root).glob("_decisions/*/*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"yes"', b'"no" '))
    before = store.receipt("labels", "b")
    outcome = launch.run("squares", select=LABELS)
    assert not outcome.success and "line 1: damaged" in (outcome.failure or "")
    assert store.receipt("labels", "b") == before


def plant(world: World) -> tuple[list[float], list[float]]:
    """Leaves out the first square of batch a and moves the second; their true boxes, xyxy."""
    path = world.root / "photos" / "a" / "annotations.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    left_out = content["annotations"].pop(0)["bbox"]
    moved = content["annotations"][0]["bbox"]
    content["annotations"][0]["bbox"] = [moved[0] + 15, *moved[1:]]
    path.write_text(json.dumps(content), encoding="utf-8")
    return tuple([float(v) for v in (x, y, x + w, y + h)] for x, y, w, h in (left_out, moved))


LABELLED = {"status": ["human"], "decided_by": ["people"], "parts": [[]]}


def suspicion(annotation: str, model: str, box: tuple[int, int, int, int]) -> dict:
    """A row of `label_errors`: a box on image x that people overlooked."""
    row = {"model": model, "image_id": "x", "batch": "b", "annotation_id": annotation, "error": "overlooked"}
    row |= {"class_name": "square", "suggested": "square", "suspicion": 0.9, "score": 0.9}
    return row | dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))


def test_errors_of_people_are_asked_about_corrected_and_not_asked_again(finished: World) -> None:
    left_out, moved = plant(finished)
    (finished.folder / "labellers.py").write_text(LABELLER, encoding="utf-8")
    finished.write(labelling={"labellers": [{"name": "squares", "path": "labellers.py:Squares"}], "masks": False})
    assert launch.run("squares", select=ERRORS).success
    project, store = finished.project, Store(finished.project.store_uri)
    first = store.read("review_queue", "a").to_pylist()
    assert [r["reason"] for r in first] == [
        "box probably overlooked by people, found by squares",
        "people's label: box probably badly placed, squares sees it elsewhere",
    ]
    assert {r["route"] for r in first} == {"person"} and [first[0][k] for k in ("x1", "y1", "x2", "y2")] == left_out
    assert launch.run("squares", select=ERRORS).executed == []

    desk = Desk(project, store, "ann", 0.0)
    asked = {item.reason: item.key for _, item, _ in desk.items(0, 99)}
    desk.decide(asked[first[0]["reason"]], "yes", None, None)
    desk.decide(asked[first[1]["reason"]], "fix", None, moved)
    desk.close()
    assert launch.run("squares", select=ERRORS).success
    for name in ("labels", "training_set"):
        rows = {r["annotation_id"]: r for r in store.read(name).to_pylist()}
        for row, box in zip(first, (left_out, moved), strict=True):
            found = rows[row["annotation_id"]]
            assert [found[k] for k in ("x1", "y1", "x2", "y2")] == box and found["producer"] == "human"
            assert found.get("status", "human") == "human" and found.get("origin", "gold") == "gold"
    assert store.read("label_errors").num_rows == 2  # people's labels as they came in are judged, not as corrected
    assert store.read("review_queue", "a").num_rows == 0


def test_what_somebody_has_settled_is_not_doubted_whichever_model_suspects_it(world: World) -> None:
    store, box = Store(world.project.store_uri), (0.0, 0.0, 20.0, 20.0)
    people = Tables.boxes([("x", "square", (60, 60, 80, 80), 1.0)], "human", "labels", **LABELLED)
    one, other = (suspicion(f"d{k}", f"m{k}@1#0", (k, 0, 20, 20)) for k in range(2))
    swapped = suspicion(people["annotation_id"][0].as_py(), "m0@1#0", (60, 60, 80, 80)) | {"error": "swapped"}
    store.write("labels", people, "b")
    store.write("images", Tables.images(["x"]), "b")
    store.write("label_errors", schema.table("label_errors").from_rows([one, other, swapped]))
    shown = {"class_name": "square", "box": box, "asked_class": "square", "asked_box": box}
    no, undone = decision("d0", "no", asked_class="square", asked_box=box), decision("d0", "yes", minute=1, **shown)
    back = decision("d0", "undo", minute=2, withdraws=undone.decision_id)

    def asked(*said: Decision) -> list[str]:
        store.write("decisions", table(*said), "b")
        work = Work(world.project, store, Compute(), s3_resource(), "b")
        return doubts_of(work, store.read("labels", "b")).errors["annotation_id"].to_pylist()

    whole = [swapped["annotation_id"]]
    assert sorted(asked()) == sorted(["d0", *whole])
    assert asked(no) == asked(undone) == whole
    assert asked(decision("d9", "fix", **shown | {"asked_box": (5.0, 5.0, 9.0, 9.0)})) == whole
    assert asked(decision("d9", "no", asked_class="square", asked_box=box)) == whole
    assert asked(undone, decision("d0", "no", "ben", 3, asked_class="square", asked_box=box)) == whole
    assert sorted(asked(undone, back)) == sorted(["d0", *whole])
    left = {"class_name": "square", "asked_class": "square", "box": (60.0, 60.0, 80.0, 80.0)}
    assert asked(no, decision(whole[0], "yes", **left, asked_box=left["box"])) == []
