from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline import schema
from pipeline.compute import Compute
from pipeline.config import ProjectConfig, parse_config
from pipeline.dataset import snapshot
from pipeline.models import fcos, probe
from pipeline.models.probe import Embeddings
from pipeline.store import Store
from pipeline.train import kind_of, train, training_images
from pipeline.weights import file_sha256
from tests.pipeline.curated_rows import as_labels

INLINE = Compute()


def config(task: str = "detection", **training: Any) -> ProjectConfig:
    classes: dict[str, Any] = {"Tree": {}} if task == "detection" else {"a": {}, "b": {}, "c": {}}
    return parse_config({"name": "t", "task": task, "classes": classes, "source": {"uri": "x"}, "training": training})


def image_rows(paths: list[Path], edge: int) -> pa.Table:
    row: dict[str, Any] = {c.name: 1 for c in schema.table("images").columns if pa.types.is_integer(c.type)}
    row |= {c.name: "x" for c in schema.table("images").columns if c.type == pa.string()}
    row |= dict.fromkeys(("width", "height", "photo_width", "photo_height"), edge)
    row |= {"tile_x": 0, "tile_y": 0, "attributes": [], "batch": "b"}
    return schema.table("images").from_rows(
        [row | {"image_id": p.stem, "parent_id": p.stem, "uri": str(p)} for p in paths]
    )


def split_rows(of: dict[str, str]) -> pa.Table:
    return schema.table("splits").from_rows(
        [{"image_id": i, "batch": "b", "split": s, "location": i, "gold": s != "unlabelled"} for i, s in of.items()]
    )


def annotated(of: dict[str, str]) -> pa.Table:
    return schema.table("annotated_images").from_rows([{"image_id": i, "batch": "b", "source": "x"} for i in of])


def truth(ids: list[str], classes: list[str], boxes: Any) -> pa.Table:
    return schema.annotations(  # type: ignore[operator]
        "ground_truth", image_ids=ids, batch="b", producer="human", classes=classes, boxes=boxes
    )


def test_kind_follows_the_task() -> None:
    assert kind_of(config()) == "fcos" and kind_of(config("classification")) == "linear_probe"
    assert kind_of(config(kind="none")) == "none"


def test_images_to_train_on_include_gold_ones_without_objects(tmp_path: Path) -> None:
    of = {"box": "train", "bare": "train", "val": "val", "new": "unlabelled"}
    images = image_rows([Path(f"{i}.png") for i in of], 64)
    some = snapshot(as_labels(truth(["box"], ["Tree"], [[1, 1, 9, 9]])), split_rows(of), images)
    chosen = training_images(images, some, split_rows(of), annotated(of))
    assert chosen["image_id"].to_pylist() == ["box", "bare"]
    # Gold by its split, but nobody says that it was looked at as a whole.
    partly = training_images(images, some, split_rows(of), annotated({"box": ""}))
    assert partly["image_id"].to_pylist() == ["box"]


@pytest.mark.weights
def test_a_detector_is_trained_saved_and_described(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in ("a", "b")]
    for path in paths:
        Image.fromarray(random.integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(path)
    of = {"a": "train", "b": "train"}
    images = image_rows(paths, 64)
    some = snapshot(as_labels(truth(["a"], ["Tree"], [[10, 10, 40, 40]])), split_rows(of), images)
    project = config(steps=2, batch_size=1, crop=(40, 64), input_size=64)
    calls: list[tuple[int, int]] = []
    arguments = (images, some, split_rows(of), annotated(of), Store(str(tmp_path / "out")), INLINE)
    result = train(project, *arguments, progress=lambda done, total: calls.append((done, total)))
    (row,) = result.models.to_pylist()
    assert calls == [(1, 2), (2, 2)]
    assert row["kind"] == "fcos" and row["model"].startswith("fcos@1#")
    assert row["snapshot"] == some["snapshot"][0].as_py()
    assert row["sha256"] == file_sha256(Path(row["path"]))
    assert [h["step"] for h in json.loads(row["history"])] == [1, 2]
    _, saved = fcos.load(Path(row["path"]))
    assert saved.classes == ("Tree",) and saved.scale == pytest.approx(64 / (40 * 64) ** 0.5, abs=1e-3)
    assert [p.name for p in (tmp_path / "out" / "files" / "models").iterdir()] == [
        Path(row["path"]).name
    ]  # no checkpoint is left
    again = train(project, *arguments).models.to_pylist()[0]
    assert (again["model"], again["sha256"]) == (row["model"], row["sha256"])
    other = train(config(steps=1, batch_size=1, crop=(40, 64), input_size=64), *arguments).models.to_pylist()[0]
    assert other["model"] != row["model"]


def clusters(n: int) -> tuple[list[str], np.ndarray, list[str]]:
    random = np.random.default_rng(5)
    which = random.integers(3, size=n)
    vectors = np.eye(3, 8)[which] + random.normal(size=(n, 8)) * 0.3
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [f"i{i:03d}" for i in range(n)], vectors.astype(np.float32), ["abc"[w] for w in which]


def test_a_probe_is_trained_saved_and_its_curve_drawn(tmp_path: Path) -> None:
    ids, vectors, names = clusters(240)
    of = {i: ("train", "val", "test")[k % 3] for k, i in enumerate(ids)}
    images, split = image_rows([Path(i) for i in ids], 64), split_rows(of)
    people = truth(ids, names, None)
    some = snapshot(as_labels(people), split, images)
    embeddings = Embeddings("e@1#0", tuple(ids), vectors)
    held_out = schema.where_in(people, "image_id", [i for i, s in of.items() if s == "test"])
    project = config("classification", budgets=[3, 10], repeats=3)
    arguments = (project, images, some, split, annotated(of), Store(str(tmp_path)), INLINE)
    result = train(*arguments, embeddings=embeddings, held_out=held_out)
    (row,) = result.models.to_pylist()
    model = probe.load(Path(row["path"]))
    test = [k for k, i in enumerate(ids) if of[i] == "test"]
    best = model.probabilities(vectors[test]).argmax(axis=1)
    right = np.mean([model.classes[b] == names[k] for b, k in zip(best, test, strict=True)])
    curve = result.curves.to_pylist()
    assert {(r["split"], r["curve"], r["model"]) for r in curve} == {
        (s, "learning", row["model"]) for s in ("val", "test")
    }
    last = max((r for r in curve if r["split"] == "test"), key=lambda r: r["x"])
    assert last["y"] == pytest.approx(right) and right > 0.8
    again = train(*arguments, embeddings=embeddings, held_out=held_out)
    assert again.curves.equals(result.curves)
    assert again.models.drop(["seconds"]).equals(result.models.drop(["seconds"]))


@pytest.mark.parametrize("task", ["detection", "classification"])
def test_without_labels_there_is_no_model(task: str, tmp_path: Path) -> None:
    images = image_rows([Path("a.png")], 64)
    of = {"a": "train"}
    some = snapshot(schema.table("labels").empty(), split_rows(of), images)
    embeddings = Embeddings("e", ("a",), np.ones((1, 4), np.float32))
    result = train(
        config(task), images, some, split_rows(of), annotated(of), Store(str(tmp_path)), INLINE, embeddings=embeddings
    )
    assert result.models.num_rows == 0 and result.curves.num_rows == 0
    assert result.models.schema == schema.table("models").schema
