from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import decisions, journal, schema
from pipeline.config import Project
from pipeline.errors import ConfigError, DataError, StoreError
from pipeline.exchange import FORMATS, sync
from pipeline.journal import Journal
from pipeline.store import Store
from tests.pipeline.decided import decision
from tests.pipeline.review_world import BATCHES, HEIGHT, WIDTH, build

EVERY = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return build(tmp_path, monkeypatch)


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


def everything(project: Project) -> list[dict]:
    store = Store(project.store_uri)
    return [row for b in BATCHES for row in journal.read(store, b).to_pylist()]


@EVERY
def test_there_and_back(name: str, project: Project, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sent = sync.export(project, name, "queue", out)
    assert (sent.images, sent.labels) == (6, 24) and not [x for x in sent.losses if x.item.startswith("picture")]
    pictures = sorted(out.rglob("*.jpg"))
    assert len(pictures) == 6 and Image.open(pictures[0]).size == (WIDTH, HEIGHT)
    assert json.loads((out / "losses.json").read_text()) == [vars(x) for x in sent.losses]
    path = out / FORMATS[name].FILE
    assert sync.receive(project, name, path, "ann").decisions == []
    first = sync.receive(project, name, path, "ann", unchanged_is_yes=True)
    assert sync.summary(first.decisions) == {"yes": 24} and first.images == 6 and first.losses == []
    assert sync.receive(project, name, path, "ann", unchanged_is_yes=True).decisions == []
    assert len(everything(project)) == 24
    statuses = decisions.current(Store(project.store_uri), project.config).column("status").to_pylist()
    assert set(statuses) == {"human"}


@EVERY
def test_a_second_export_touches_nothing(name: str, project: Project, tmp_path: Path) -> None:
    sync.export(project, name, "labels", tmp_path / "out")
    before = snapshot(tmp_path / "out")
    sync.export(project, name, "labels", tmp_path / "out")
    assert snapshot(tmp_path / "out") == before


@EVERY
def test_one_bad_picture_fails_nothing(name: str, project: Project, tmp_path: Path) -> None:
    bad = Path(Store(project.store_uri).read("images", BATCHES[0]).column("uri")[0].as_py())
    bad.write_bytes(b"no picture")
    gone = Path(Store(project.store_uri).read("images", BATCHES[1]).column("uri")[1].as_py())
    gone.unlink()
    sent = sync.export(project, name, "queue", tmp_path / "out")
    assert sent.images == 6 and len(list((tmp_path / "out").rglob("*.jpg"))) == 4
    lost = [x for x in sent.losses if x.item.startswith("picture")]
    assert len(lost) == 2 and "not_an_image" in lost[0].what + lost[1].what


def test_tiles_are_sent_as_they_are_seen(project: Project, tmp_path: Path) -> None:
    store = Store(project.store_uri)
    images = store.read("images", BATCHES[0]).to_pylist()
    images[0] |= {"tile_x": 30, "tile_y": 20, "width": 50, "height": 40}
    store.write("images", schema.table("images").from_rows(images), BATCHES[0])
    sync.export(project, "coco", "queue", tmp_path / "out")
    (tile,) = [p for p in (tmp_path / "out").rglob("*.jpg") if images[0]["image_id"][:16] in p.name]
    pixels = np.asarray(Image.open(tile), np.int64)
    assert pixels.shape == (40, 50, 3) and np.abs(pixels - (200, 80, 40)).max() < 25


def test_what_is_decided_leaves_the_queue_but_not_the_labels(project: Project, tmp_path: Path) -> None:
    store = Store(project.store_uri)
    rows = [r for r in store.read("labels", BATCHES[0]).to_pylist() if r["status"] == "needs_review"]
    first = [r for r in rows if r["image_id"] == rows[0]["image_id"]]
    Journal(store).append(
        [
            decision(r["annotation_id"], "no", image_id=r["image_id"], batch=r["batch"], asked_class=r["class_name"])
            for r in first
        ]
    )
    assert sync.export(project, "coco", "queue", tmp_path / "queue").images == 5
    labels = sync.export(project, "coco", "labels", tmp_path / "labels")
    assert (labels.images, labels.labels) == (6, 24 - len(first))


def suspected(project: Project) -> tuple[dict, dict]:
    """A label of people and a box that they may have overlooked, in the queue of the first batch."""
    store = Store(project.store_uri)
    rows = store.read("labels", BATCHES[0]).to_pylist()
    rows[0] |= {"status": "human", "producer": "human", "decided_by": "people"}
    store.write("labels", schema.table("labels").from_rows(rows), BATCHES[0])
    shared = {k: rows[0][k] for k in ("image_id", "batch", "class_name")}
    shared |= dict.fromkeys(("score", "right", "gain", "cost"), 0.5) | {"reason": "doubt", "route": "person"}
    drawn = {"annotation_id": "new", "producer": "m@1#0", "x1": 70.0, "y1": 70.0, "x2": 90.0, "y2": 90.0}
    queue = [shared | {"annotation_id": rows[0]["annotation_id"], "rank": 1}, shared | drawn | {"rank": 2}]
    store.write("review_queue", schema.table("review_queue").from_rows(queue), BATCHES[0])
    store.write("review_queue", schema.table("review_queue").empty(), BATCHES[1])
    return rows[0], queue[1]


@EVERY
def test_suspected_errors_of_people_go_out_and_come_back(name: str, project: Project, tmp_path: Path) -> None:
    human, drawn = suspected(project)
    sent = sync.export(project, name, "queue", tmp_path / "out")
    assert (sent.images, sent.labels) == (1, 5)
    received = sync.receive(project, name, tmp_path / "out" / FORMATS[name].FILE, "ann", unchanged_is_yes=True)
    assert received.losses == [] and sync.summary(received.decisions) == {"yes": 5}
    now = decisions.current(Store(project.store_uri), project.config).to_pylist()
    status = {r["annotation_id"]: r["status"] for r in now}
    assert status[human["annotation_id"]] == status[drawn["annotation_id"]] == "human"
    assert sync.export(project, name, "queue", tmp_path / "later").images == 0


def test_mistakes_are_told(project: Project, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'coco'"):
        sync.export(project, "cocoa", "queue", tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'queue'"):
        sync.export(project, "coco", "que", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is a file"):
        sync.export(project, "coco", "queue", tmp_path / "file")
    with pytest.raises(DataError, match="cannot read"):
        sync.receive(project, "coco", tmp_path / "none.json", "ann")
    sync.export(project, "coco", "queue", tmp_path / "out")
    with pytest.raises(DataError, match="reviewer"):
        sync.receive(project, "coco", tmp_path / "out" / FORMATS["coco"].FILE, "")


def test_a_person_without_a_usable_name_is_a_loss(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sync.export(project, "label-studio", "queue", out)
    content = json.loads((out / "tasks.json").read_text())
    result = content[0]["predictions"][0]["result"]
    content[0]["annotations"] = [{"result": result, "completed_by": {"email": "a\nb"}}]
    (out / "tasks.json").write_text(json.dumps(content))
    got = sync.receive(project, "label-studio", out / "tasks.json", "ann")
    assert got.decisions == [] and len(got.losses) == 4 and "reviewer" in got.losses[0].what


def test_a_project_without_tables(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync.export(project, "coco", "queue", tmp_path / "out")
    monkeypatch.setenv("CVP_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(StoreError, match="has not been made"):
        sync.export(project, "coco", "queue", tmp_path / "out2")
    with pytest.raises(StoreError, match="no tables yet"):
        sync.receive(project, "coco", tmp_path / "out" / FORMATS["coco"].FILE, "ann")
