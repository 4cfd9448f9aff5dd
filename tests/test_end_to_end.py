"""Real photos, real models: from the trees sample to a verdict, with little training."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assets import launch
from pipeline import report, samples, warehouse, weights
from pipeline.config import find_project, samples_root, weights_root
from pipeline.store import Store


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store and an instance of their own; weights and samples from where they were pulled."""
    monkeypatch.setenv("CVP_WEIGHTS", str(weights_root()))
    monkeypatch.setenv("CVP_SAMPLES", str(samples_root()))
    for name in ("CVP_STORE", "DAGSTER_HOME", "CVP_PROJECTS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CVP_HOME", str(tmp_path))
    for item in weights.profile_checkpoints("compact"):
        weights.resolve(item.name)
    assert samples.is_complete("trees"), "run: cvp samples pull trees"
    return tmp_path


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(900)
def test_trees_from_photos_to_a_verdict(home: Path) -> None:
    outcome = launch.run("trees", epochs=0.02)
    assert outcome.success, outcome.failure
    store = Store(find_project("trees").store_uri)

    rows = warehouse.query(
        warehouse.location(store),
        "SELECT option, recommended, value FROM verdict WHERE class_name = 'all' AND slice = 'all'",
    ).to_pylist()
    assert {r["option"] for r in rows} >= {"labeller", "foundation", "trained", "people"}
    assert sum(r["recommended"] for r in rows) == 1

    drifted = {r["batch"] for r in store.read("drift").to_pylist() if r["drifted"] and "novelty" in r["test"]}
    assert drifted == {"2026-08-01-osbs", "2026-08-15-soap"}

    vocabulary = {(r["producer"].split("@")[0], r["matched"]) for r in store.read("vocabulary").to_pylist()}
    assert ("compact", None) in vocabulary, "COCO has no trees, and that must be said"
    trust = store.read("trust").to_pylist()
    assert all(r["note"] for r in trust) and not any(r["certified"] for r in trust)

    page = report.location(store).read_text(encoding="utf-8")
    assert "data:image/" in page and "http://" not in page.replace("http://www.w3.org", "")

    again = launch.run("trees", epochs=0.02)
    assert again.success and not again.executed


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(900)
def test_a_hundred_damaged_files_stop_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged files among good ones: the run is green, all are listed with reasons, good ones are processed."""
    projects = home / "projects" / "mixed"
    batch = projects / "photos" / "2026-11-23"
    batch.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(generator.integers(0, 255, (80, 100, 3), dtype=np.uint8)).save(batch / f"good_{i}.jpg")
    whole = (batch / "good_0.jpg").read_bytes()
    png = io.BytesIO()
    Image.fromarray(generator.integers(0, 255, (50, 60, 3), dtype=np.uint8)).save(png, "PNG")
    for i in range(100):
        kind = i % 5
        data = {
            0: whole[: 20 + 25 * i],  # cut short
            1: b"",
            2: b"<html>not found</html>" + bytes([i]),
            3: png.getvalue()[: 40 + i] + bytes(generator.integers(0, 255, 200, dtype=np.uint8)),
            4: bytes(generator.integers(0, 255, 500 + i, dtype=np.uint8)),
        }[kind]
        (batch / f"bad_{i:03d}.{('jpg', 'png', 'jpeg', 'png', 'tif')[kind]}").write_bytes(data)
    (projects / "project.yaml").write_text(
        "name: mixed\nclasses: {person: {}}\nsource: {uri: photos}\n"
        "labelling: {labellers: [{name: compact, kind: profile}]}\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("CVP_PROJECTS", str(projects.parent))
    outcome = launch.run("mixed")
    assert outcome.success, outcome.failure
    store = Store(find_project("mixed").store_uri)
    rejected = store.read("rejected_files").to_pylist()
    assert len(rejected) == 100
    assert all(r["reason"] and r["detail"] for r in rejected)
    assert sorted(store.read("images").column("file_name").to_pylist()) == [f"good_{i}.jpg" for i in range(8)]
    assert store.read("quality").num_rows == store.read("embeddings").num_rows == 8
