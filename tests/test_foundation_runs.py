"""The foundation profile by the user's own path: project.yaml and `cvp run`, at full size, on a CPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.config import samples_root
from pipeline.models import clip_net
from pipeline.store import Store
from pipeline.vectors import Vectors
from tests.pipeline.models import clip_files


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of four real photographs."""
    photos = sorted((samples_root() / "trees").rglob("*.png"))
    assert photos, "run: cvp samples pull trees"
    for name in ("CVP_STORE", "CVP_WEIGHTS", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CVP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CVP_PROJECTS", str(tmp_path / "projects"))
    folder = tmp_path / "projects" / "aerial"
    (folder / "photos" / "2026-11-23").mkdir(parents=True)
    for photo in photos[:4]:
        shutil.copy(photo, folder / "photos" / "2026-11-23")
    return folder


def write(folder: Path, **more: Any) -> None:
    text = {"name": "aerial", "task": "classification", "profile": "foundation", "source": {"uri": "photos"}}
    text["classes"] = {"forest": {"prompts": ["trees seen from above"]}, "desert": {"prompts": ["sand", "dunes"]}}
    (folder / "project.yaml").write_text(yaml.safe_dump(text | more))


def cvp(*arguments: str) -> Result:
    return CliRunner().invoke(app.app, list(arguments))


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(600)
def test_a_vit_b_32_in_the_official_layout_encodes_and_tags(project: Path) -> None:
    import torch

    what = clip_net.design("ViT-B-32/openai")
    network = clip_files.random_network(what)
    assert len(network.state_dict()) == 302 and sum(p.numel() for p in network.parameters()) == 151_277_313
    torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, project / "net.pt")
    del network
    write(project, models={"encoder": {"checkpoint": "net.pt", "architecture": "ViT-B-32/openai"}})
    result = cvp("run", "aerial", "--select", "images,embeddings,tags")
    assert result.exit_code == 0, result.output
    store = Store(str(project.parents[1] / "home" / "store" / "aerial"))
    tags = store.read("tags").to_pylist()
    assert len(tags) == 8 and {t["producer"].partition("@")[0] for t in tags} == {"clip_ViT-B-32_zero_shot"}
    receipts = store.read("embeddings")
    _, vectors = Vectors(store.uri).fetch(
        receipts.column("image_id").to_pylist(), receipts.column("encoder")[0].as_py()
    )
    assert vectors.shape == (4, 512)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.weights
def test_a_checkpoint_that_is_missing_or_another_one_ends_the_run_with_what_to_do(project: Path) -> None:
    write(project)
    result = cvp("run", "aerial", "--select", "images,embeddings")
    assert result.exit_code == 1 and "cvp models pull foundation" in result.output
    clip_net.save(project / "net.safetensors", clip_net.build(clip_files.small()), clip_files.small())
    (project / "net.safetensors").write_bytes((project / "net.safetensors").read_bytes()[:-1000])
    write(project, models={"encoder": "net.safetensors"})
    result = cvp("run", "aerial", "--select", "images,embeddings")
    assert result.exit_code == 1 and "cannot read the checkpoint" in result.output
