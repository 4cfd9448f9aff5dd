"""People's decisions through a real run: in force, never overwritten, and disagreements queued."""

from pathlib import Path

import pytest

from assets import launch
from pipeline.journal import Decision, Journal
from pipeline.store import Store
from tests.assets.conftest import World
from tests.pipeline.decided import decision

LABELS = "decisions,agreement,trust,labels,review_queue"


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
