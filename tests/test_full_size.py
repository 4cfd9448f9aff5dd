"""ViT-B-32, SAM ViT-B and Grounding DINO Swin-T at full size, in the official layout, by the user's own path.

The weights are random, since no official file can be had where the tests run: what is shown is that files of
these shapes and names load strictly, that the run comes to its end on a CPU, and what memory it takes.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from pipeline.config import load_project, samples_root, weights_root
from pipeline.models import grounding_dino_net, sam_net
from pipeline.models.captions import WordPieces
from pipeline.store import Store
from pipeline.torch_compat import import_torchvision
from tests.pipeline.models.small import tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.weights]
GIB = 1 << 30


def _write_checkpoints(folder: Path) -> dict[str, str]:
    import_torchvision()
    import open_clip

    torch.manual_seed(0)
    dino = grounding_dino_net.build(grounding_dino_net.SWIN_T, WordPieces(tokenizer())).state_dict()
    dino |= {"label_enc.weight": torch.zeros(2001, 256), "bert.embeddings.position_ids": torch.arange(512)[None]}
    torch.save({"model": {f"module.{k}": v for k, v in dino.items()}}, folder / "groundingdino_swint_ogc.pth")
    torch.save(sam_net.build(sam_net.VIT_B).state_dict(), folder / "sam_vit_b_01ec64.pth")
    save_file(open_clip.create_model("ViT-B-32").state_dict(), folder / "open_clip_model.safetensors")
    return {
        "detector": str(folder / "groundingdino_swint_ogc.pth"),
        "segmenter": str(folder / "sam_vit_b_01ec64.pth"),
        "encoder": {"checkpoint": str(folder / "open_clip_model.safetensors"), "architecture": "ViT-B-32"},
    }


def _project(folder: Path, models: dict[str, Any]) -> Path:
    photos = folder / "photos" / "day"
    photos.mkdir(parents=True)
    whole = Image.open(samples_root() / "trees" / "2026-06-01-yell" / "yell_541000_val.png").convert("RGB")
    for k, (width, height) in enumerate([(640, 480), (480, 600)]):
        whole.crop((k * 100, 0, k * 100 + width, height)).save(photos / f"{k}.jpg")
    config = {
        "name": "full",
        "profile": "foundation",
        "models": models,
        "classes": {"tree": {"prompts": ["tree", "tree crown"], "negatives": ["bush"]}, "car": {}},
        "source": {"uri": "photos"},
        "labelling": {
            "labellers": [{"name": "dino", "kind": "profile", "options": {"floor": 0.3, "box_threshold": 0.3}}],
            "masks": True,
        },
        "training": {"kind": "none"},
    }
    (folder / "project.yaml").write_text(yaml.safe_dump(config))
    return folder / "project.yaml"


@pytest.mark.timeout(1200)
def test_official_files_load_strictly_and_run_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVP_WEIGHTS", str(weights_root()))
    monkeypatch.setenv("CVP_SAMPLES", str(samples_root()))
    monkeypatch.setenv("CVP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CVP_STORE", raising=False)
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    path = _project(tmp_path, _write_checkpoints(checkpoints))
    try:
        cvp = Path(sys.executable).with_name("cvp")
        command = [str(cvp), "run", str(path), "--select", "collection,embeddings,tags,detections,masks"]
        result = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    finally:
        shutil.rmtree(checkpoints)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"peak {peak / GIB:.2f} GiB")
    assert peak < 12 * GIB
    store = Store(load_project(path).store_uri)
    assert store.read("embeddings").num_rows == 2
    assert store.read("tags").num_rows == 4
    proposals = store.read("proposals").to_pylist()
    assert {p["prompt"] for p in proposals} == {"tree", "tree crown", "bush", "car"}
    assert all(p["producer"].startswith("grounding_dino@") for p in proposals)
    detections, masks = store.read("detections"), store.read("masks")
    assert masks.num_rows == detections.num_rows
    assert all(name.startswith("sam@") for name in masks["producer"].to_pylist())
