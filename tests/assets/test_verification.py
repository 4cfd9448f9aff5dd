"""A verifier in a real run: examined on gold, asked where it counts, and its word in force."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from assets import launch
from pipeline import boxes, fuse, schema, verify, warehouse
from pipeline.config import Project, load_project
from pipeline.journal import Journal
from pipeline.store import Store
from tests.assets.conftest import World, add_batch, draw, settings
from tests.assets.test_review import said
from tests.pipeline.chat_server import SENT, WRITTEN, ChatServer
from tests.pipeline.scripted import Script
from tests.pipeline.verifier_world import KEY, VARIABLE

LABELLER = '''
import hashlib
import numpy as np
from pipeline.models.roles import Detections
from tests.assets import squares

class Squares(squares.Squares):
    """Two more boxes, where nothing is; scores say little of which is which."""

    def see(self, image):
        draw = np.random.default_rng(int(hashlib.sha256(image.tobytes()).hexdigest()[:8], 16))
        boxes = [squares.square(image), [0, 44, 14, 60], [40, 44, 60, 62]]
        scores = [draw.uniform(0.4, 1.0), draw.uniform(0.1, 0.9), draw.uniform(0.1, 0.9)]
        return Detections(np.array(boxes, np.float32), np.array(scores, np.float32), ("square",) * 3)
'''
TARGET = 0.8


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer().running() as running:
        yield running


@pytest.fixture
def squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Sixty gold images and thirty that nobody has labelled; a labeller that is wrong two times in three."""
    monkeypatch.setenv(VARIABLE, KEY)
    world = World(tmp_path).enter(monkeypatch)
    world.folder.mkdir(parents=True)
    (world.folder / "labellers.py").write_text(LABELLER, encoding="utf-8")
    add_batch(world.source, "a", 60, seed=0)
    add_batch(world.source, "b", 30, seed=1000, labelled=False)
    add_batch(world.source, "c", 25, seed=2000)
    return world


def configure(world: World, server: ChatServer, **more: Any) -> Project:
    verification = {"base_url": server.url, "model": "scripted", "key_variable": VARIABLE, "attempts": 3}
    verification |= {"image_tokens": 800, "timeout": 5} | more.pop("verification", {})
    labelling = {"labellers": [{"name": "squares", "path": "labellers.py:Squares"}], "tags": False}
    content = settings(labelling=labelling, verification=verification, trust={"target": TARGET}, **more)
    content["prices"] = {"token_million": 1.0, "human_look": 0.05} | more.get("prices", {})
    content["drift"] = {"permutations": 100, "alpha": 1e-6}
    (world.folder / "project.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_project(world.folder)


def scripted(world: World, project: Project, **rates: float) -> Script:
    """A script of all labels that the detections so far would make, for what was drawn."""
    store = Store(project.store_uri)
    script = Script(project.config, **rates)
    labels = fuse.merge(store.read("detections"), project.config).drop(["parts"])
    script.learn(labels, truth(world, store, labels))
    for prompt in project.config.verification.prompts:
        script.learn(labels, truth(world, store, labels), prompt)
    return script


def truth(world: World, store: Store, labels: pa.Table) -> dict[str, bool]:
    seeds = {"a": 0, "b": 1000, "c": 2000}
    names = {r["image_id"]: (r["batch"], r["file_name"]) for r in store.read("images").to_pylist()}
    found = {}
    for row in labels.to_pylist():
        batch, name = names[row["image_id"]]
        x, y, w, h = draw(world.root / "scratch.png", seeds[batch] + int(Path(name).stem[-2:]))
        one = np.array([[row[k] for k in ("x1", "y1", "x2", "y2")]])
        found[row["annotation_id"]] = bool(boxes.iou(one, np.array([[x, y, x + w, y + h]]))[0, 0] >= 0.5)
    return found


def begun(world: World, server: ChatServer, **more: Any) -> Project:
    """With detections, and a script of what the verifier will say of them."""
    project = configure(world, server, **more)
    outcome = launch.run("squares", select="images,rejected_files,ground_truth,detections")
    assert outcome.success, outcome.failure
    server.answer = scripted(world, project)
    return project


def test_without_an_endpoint_nothing_is_asked(finished: World) -> None:
    store = Store(finished.project.store_uri)
    for name in ("examinations", "verifier_trust", "prompt_evaluation", "verifications", "descriptions"):
        assert store.read(name).num_rows == 0
    assert not Path(store.root, "_answers").exists()
    assert "verified" not in store.read("labels")["status"].to_pylist()


def test_its_certified_word_verifies_and_rejects(squares: World, server: ChatServer) -> None:
    project = begun(squares, server)
    outcome = launch.run("squares")
    assert outcome.success, outcome.failure
    store = Store(project.store_uri)
    graded = {r["answer"]: r for r in store.read("verifier_trust").to_pylist() if r["slice"] == "all"}
    assert graded["yes"]["certified"] and graded["no"]["certified"], (graded["yes"]["note"], graded["no"]["note"])
    # What was measured is what was scripted.
    yes = graded["yes"]
    assert yes["right_yes"] / (yes["right_yes"] + yes["right_no"] + yes["right_open"]) == pytest.approx(0.95, abs=0.07)
    assert yes["wrong_no"] / (yes["wrong_yes"] + yes["wrong_no"] + yes["wrong_open"]) == pytest.approx(0.95, abs=0.07)
    # On the batch that nobody labelled its yes makes labels, and they are as right as was promised.
    labels = schema.where_in(store.read("labels", "b"), "status", ("verified", "rejected"))
    right = truth(squares, store, labels)
    by = {s: schema.where_in(labels, "status", (s,)).to_pylist() for s in ("verified", "rejected")}
    assert len(by["verified"]) >= 15 and np.mean([right[r["annotation_id"]] for r in by["verified"]]) > TARGET
    assert len(by["rejected"]) >= 15 and np.mean([not right[r["annotation_id"]] for r in by["rejected"]]) > TARGET
    one = by["verified"][0]
    assert one["certificate"] == yes["certificate"]
    assert re.search(r"scripted says yes \([23] of 3\)", one["decided_by"])
    # One row of SQL names verifier, prompt, answer and certificate of every label.
    sql = f"SELECT * FROM label_lineage WHERE annotation_id = '{one['annotation_id']}'"
    (row,) = warehouse.query(warehouse.location(store), sql).to_pylist()
    assert row["verifier"].startswith("scripted@1#") and row["verifier_prompt"] == "standard"
    assert (row["verifier_answer"], row["verifier_agreement"]) == ("yes", 1.0)
    assert row["target"] == pytest.approx(TARGET) and row["certified_on"] == "all" and row["certificate"]
    # It is paid for once, and the bill says so.
    assert max(server.charged.values()) == 1
    bill = store.read("costs").to_pylist()
    assert sum(r["tokens"] for r in bill) == server.tokens
    asked = {r["asset"] for r in bill if r["tokens"]}
    assert asked == {"examinations", "verifications"}
    money = sum(r["money"] for r in bill if r["asset"] in asked)
    assert money >= server.tokens / 1e6
    came = sum(server.came.values())
    again = launch.run("squares")
    assert again.success and not again.executed and sum(server.came.values()) == came


def test_a_verifier_that_is_not_good_enough_changes_nothing(squares: World, server: ChatServer) -> None:
    project = begun(squares, server)
    server.answer = scripted(squares, project, yes=0.7, slip=0.5)
    assert launch.run("squares").success
    store = Store(project.store_uri)
    assert not any(store.read("verifier_trust")["certified"].to_pylist())
    assert store.read("verifications").num_rows == 0, "where its word does not count, it is not asked"
    assert "verified" not in store.read("labels")["status"].to_pylist()
    assert "verifier" not in store.read("review_queue")["route"].to_pylist()


def test_people_win_and_what_they_decided_is_not_paid_for(squares: World, server: ChatServer) -> None:
    project = begun(squares, server)
    assert launch.run("squares").success
    store = Store(project.store_uri)
    labels = store.read("labels", "b").to_pylist()
    verified = next(r for r in labels if r["status"] == "verified")
    Journal(store).append([said(verified, "no")])
    asked = sum(server.came.values())
    assert launch.run("squares").success
    after = {r["annotation_id"]: r for r in store.read("labels", "b").to_pylist()}[verified["annotation_id"]]
    assert after["status"] == "rejected" and after["decided_by"] == "refused by ann"
    assert sum(server.came.values()) == asked


def test_the_budget_ends_it_cleanly_and_more_goes_on(squares: World, server: ChatServer) -> None:
    begun(squares, server)
    first = "collection,curation,detections,tags,masks,gold,trust,examinations"
    assert launch.run("squares", select=first).success
    budget = {"tokens": server.tokens + 40 * (SENT + WRITTEN)}
    project = configure(squares, server, verification={"budget": budget})
    outcome = launch.run("squares")
    assert outcome.success, outcome.failure
    assert server.tokens <= project.config.verification.budget.tokens
    store = Store(project.store_uri)
    count = store.read("verifications").num_rows
    statuses = Counter(store.read("labels", "b")["status"].to_pylist())
    assert 0 < count < 60 and 0 < statuses["verified"] < 20
    routes = Counter(store.read("review_queue", "b")["route"].to_pylist())
    assert routes["verifier"] > 0
    # An image of which a part was asked only is not what was graded.
    asked = set(store.read("verifications")["annotation_id"].to_pylist())
    lineage = store.read("labels", "b").to_pylist()
    partial = {r["image_id"] for r in lineage if r["status"] == "needs_review" and r["annotation_id"] not in asked}
    assert not partial & {r["image_id"] for r in lineage if r["status"] == "verified"}
    configure(squares, server, verification={"budget": {"tokens": None}})
    assert launch.run("squares").success
    assert store.read("verifications").num_rows > count and max(server.charged.values()) == 1
    assert "verifier" not in store.read("review_queue", "b")["route"].to_pylist()


def test_wordings_are_compared_on_images_of_their_own(squares: World, server: ChatServer) -> None:
    prompts = {"strict": "Is it a {class_name}?"}
    project = begun(squares, server, verification={"prompts": prompts, "questions": ["label", "count"]})
    store = Store(project.store_uri)
    script = scripted(squares, project)
    labels = fuse.merge(store.read("detections"), project.config).drop(["parts"])
    pairs = [(r["image_id"], r["batch"]) for r in store.read("images").to_pylist()]
    script.learn_counts(
        [{"image_id": i, "batch": b, "class_name": "square", "boxes": 1, "detected": 0} for i, b in pairs]
    )
    server.answer = script
    outcome = launch.run("squares")
    assert outcome.success, outcome.failure
    rows = {
        (r["prompt"], r["question"], r["metric"]): r
        for r in store.read("prompt_evaluation").to_pylist()
        if r["class_name"] == "all"
    }
    one, other = rows["standard", "label", "accuracy"], rows["strict", "label", "accuracy"]
    assert one["support"] == other["support"] > 0 and one["images"] == other["images"] < 30
    assert one["low"] < one["value"] < one["high"] and abs(one["value"] - 0.95) < 0.12
    assert rows["strict", "label", "gain"]["low"] <= 0 <= rows["strict", "label", "gain"]["high"]
    assert ("standard", "label", "gain") not in rows
    counts = rows["standard", "count", "right"]
    assert counts["value"] == pytest.approx(0.9, abs=0.1)
    checked = store.read("verifications", "b").to_pylist()
    assert {r["question"] for r in checked} == {"label", "count"}
    assert verify.DECIDED not in {r["words"] for r in checked}
    assert labels.num_rows == 3 * 115
