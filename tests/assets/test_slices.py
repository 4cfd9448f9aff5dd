"""Slices as a user declares them, on real photographs with the compact encoder: by a text, and by a polygon that is
read off the map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml
from PIL import Image

from assets import launch
from pipeline.config import load_project, weights_root
from pipeline.store import Store

KINDS = {"temple": "china.jpg", "flower": "flower.jpg"}
EACH = 24


def photograph(source: Path) -> None:
    """Cuttings of two photographs, in two batches with a folder for each class."""
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng(0)
    for kind, name in KINDS.items():
        photo = load_sample_image(name)
        for k in range(2 * EACH):
            top, left = rng.integers(0, photo.shape[0] - 240), rng.integers(0, photo.shape[1] - 240)
            path = source / "ab"[k % 2] / kind / f"{k:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo[top : top + 240, left : left + 240]).save(path)


def declare(folder: Path, slices: list[dict[str, Any]]) -> None:
    text = {
        "name": "views",
        "task": "classification",
        "classes": {kind: {} for kind in KINDS},
        "source": {"uri": "../../photos", "annotations": "folders"},
        "curation": {
            "splits": {"assign": [{"split": "test", "where": "true"}]},
            "embedding_duplicate": 0.0,
            "hash_duplicate": 0,
        },
        "training": {"kind": "none"},
        "evaluation": {"slices": slices},
        "drift": {"permutations": 100},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "project.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")


def members(store: Store, name: str) -> list[str]:
    rows = store.read("declared_slices")
    return sorted(rows.filter(pc.equal(rows["slice"], name)).column("image_id").to_pylist())


@pytest.mark.weights
def test_a_text_and_a_polygon_off_the_map_become_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CVP_STORE", "DAGSTER_HOME"):
        monkeypatch.delenv(variable, raising=False)
    # Weights stay where they are; everything else is this test's own.
    monkeypatch.setenv("CVP_WEIGHTS", str(weights_root()))
    monkeypatch.setenv("CVP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CVP_PROJECTS", str(tmp_path / "projects"))
    folder = tmp_path / "projects" / "views"
    photograph(tmp_path / "photos")
    declare(folder, [])
    first = launch.run("views")
    assert first.success, first.failure
    store = Store(load_project(folder).store_uri)

    labels = store.read("ground_truth")
    flowers = sorted(labels.filter(pc.equal(labels["class_name"], "flower")).column("image_id").to_pylist())
    places = store.read("map")
    here = places.filter(pc.is_in(places["image_id"], pa.array(flowers[:EACH])))
    low, high = zip(*(pc.min_max(here[axis]).as_py().values() for axis in "xy"), strict=True)
    corners = [[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]]
    declare(folder, [{"name": "petals", "text": "a photo of a flower"}, {"name": "corner", "polygon": corners}])
    second = launch.run("views")
    assert second.success, second.failure
    assert "embeddings" not in {name.split("[")[0] for name in second.executed}

    petals, corner = set(members(store, "petals")), set(members(store, "corner"))
    assert len(petals & set(flowers)) >= 0.9 * max(len(petals), len(flowers))
    inside = {
        row["image_id"] for row in places.to_pylist() if low[0] < row["x"] < high[0] and low[1] < row["y"] < high[1]
    }
    assert inside <= corner <= inside | set(flowers[:EACH]) and len(corner) >= EACH - 4
    for name, ids in (("petals", petals), ("corner", corner)):
        for table, column in (("evaluation", "images"), ("slices", "images")):
            rows = store.read(table)
            found = rows.filter(pc.equal(rows["slice"], name))
            assert found.num_rows and set(found.column(column).to_pylist()) == {len(ids)}, (table, name)
    rows = store.read("slices")
    (definition,) = set(rows.filter(pc.equal(rows["slice"], "petals")).column("definition").to_pylist())
    assert "similarity of" in definition and "learned" in definition
