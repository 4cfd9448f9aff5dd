"""A small project of drawn pictures: bright squares on dark ground, labelled by class folders or boxes."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
import yaml
from PIL import Image

from assets import launch
from pipeline.config import Project, load_project


def draw(path: Path, seed: int, size: int = 64) -> list[int]:
    """A picture with one bright square; returns its COCO box x, y, width, height."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 60, (size, size, 3), dtype=np.uint8)
    x, y = (int(v) for v in generator.integers(4, size // 2, 2))
    edge = int(generator.integers(12, size // 2 - 4))
    pixels[y : y + edge, x : x + edge] = generator.integers(200, 255, (edge, edge, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return [x, y, edge, edge]


def add_batch(source: Path, batch: str, count: int, seed: int, labelled: bool = True) -> None:
    """A batch of `count` pictures with a COCO file of their squares."""
    names = [f"{batch}_{i:02d}.png" for i in range(count)]
    boxes = [draw(source / batch / n, seed + i) for i, n in enumerate(names)]
    coco = {
        "images": [{"id": i, "file_name": n, "width": 64, "height": 64} for i, n in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
            for i, b in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "square"}],
    }
    if labelled:
        (source / batch / "annotations.json").write_text(json.dumps(coco), encoding="utf-8")


def settings(**more: Any) -> dict[str, Any]:
    """A project.yaml on models without weights and without training."""
    return {
        "name": "squares",
        "profile": "tiny",
        "classes": {"square": {}},
        "source": {"uri": "../../photos", "annotations": "auto"},
        "labelling": {"labellers": [{"name": "bright", "kind": "profile"}], "masks": True, "mask_floor": 0.0},
        "curation": {"splits": {"assign": [{"split": "test", "where": "batch >= 'c'"}]}, "embedding_duplicate": 0.0},
        "training": {"kind": "none"},
        "trust": {"target": 0.5},
        "drift": {"permutations": 200},
    } | more


class World:
    """A folder with a source, a project, a store and a Dagster instance of their own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = root / "photos"
        self.folder = root / "projects" / "squares"

    def found(self) -> "World":
        """With its project and three batches, of which b is not labelled."""
        self.folder.mkdir(parents=True)
        self.write()
        self.add("a", 6, seed=0)
        self.add("b", 5, seed=100, labelled=False)
        self.add("c", 4, seed=200)
        return self

    def enter(self, monkeypatch: pytest.MonkeyPatch) -> "World":
        """Point the environment at this world."""
        for name in ("CVP_STORE", "DAGSTER_HOME", "RAY_ADDRESS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("CVP_HOME", str(self.root / "home"))
        monkeypatch.setenv("CVP_PROJECTS", str(self.root / "projects"))
        return self

    def write(self, **more: Any) -> None:
        text = yaml.safe_dump(settings(**more))
        (self.folder / "project.yaml").write_text(text, encoding="utf-8")

    def add(self, batch: str, count: int = 6, seed: int = 0, labelled: bool = True) -> None:
        add_batch(self.source, batch, count, seed, labelled)

    @property
    def project(self) -> Project:
        return load_project(self.folder)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Nothing has run yet."""
    return World(tmp_path).found().enter(monkeypatch)


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        World(root).found().enter(monkeypatch)
        outcome = launch.run("squares")
    assert outcome.success, outcome.failure
    return root


@pytest.fixture
def finished(_finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Everything has run once: a copy of the session's own, with its photos where they were."""
    root = tmp_path / "world"
    shutil.copytree(_finished, root)
    return World(root).enter(monkeypatch)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made
