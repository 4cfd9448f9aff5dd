from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline import schema
from pipeline.errors import WeightsError
from pipeline.export import OPSET, OnnxModel, export, same_decision
from pipeline.models import fcos
from pipeline.models.fcos import FcosConfig
from pipeline.models.probe import Probe
from pipeline.models.roles import Detections
from pipeline.predict import PredictWorker, worker_options
from pipeline.weights import file_sha256

CONFIG = FcosConfig(("Tree", "Car"), scale=1.25)


def image_rows(folder: Path, count: int) -> pa.Table:
    """Photos of two shapes."""
    random = np.random.default_rng(0)
    row: dict[str, Any] = {c.name: 1 for c in schema.table("images").columns if pa.types.is_integer(c.type)}
    row |= {c.name: "x" for c in schema.table("images").columns if c.type == pa.string()}
    row |= {"tile_x": 0, "tile_y": 0, "attributes": [], "batch": "b"}
    rows = []
    for i in range(count):
        width, height = 90 + 30 * (i % 2), 80
        path = folder / f"{i}.png"
        Image.fromarray(random.integers(0, 255, (height, width, 3)).astype(np.uint8)).save(path)
        size = {"width": width, "height": height, "photo_width": width, "photo_height": height}
        rows.append(row | size | {"image_id": f"{i}", "uri": str(path)})
    return schema.table("images").from_rows(rows)


def model_row(kind: str, path: Path, details: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": f"{kind}@1#0",
        "kind": kind,
        "path": str(path),
        "sha256": file_sha256(path),
        "snapshot": "abc123",
        "seconds": 12.0,
        "device": "cpu",
        "config": json.dumps({"settings": details}),
    }


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    torch.manual_seed(1)
    network = fcos.build(CONFIG)
    with torch.no_grad():
        network.class_logits.weight.normal_(std=0.5)
        network.class_logits.bias.zero_()
        # Equal boxes on a regular grid would tie in the suppression of overlaps.
        network.distances.weight.normal_(std=0.2)
    fcos.save(path, network.state_dict(), CONFIG)
    return model_row("fcos", path, {"steps": 1})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return image_rows(tmp_path_factory.mktemp("images"), 4)


METRICS = [
    {"split": "test", "slice": "all", "class_name": "Tree", "metric": "AP50", "value": 0.5, "support": 9}
    | {"low": 0.4, "high": 0.6},
    {"split": "test", "slice": "a|b", "class_name": "Tree", "metric": "AP50", "value": None, "support": 0}
    | {"low": None, "high": None},
]


@pytest.fixture(scope="module")
def deployed(detector: dict[str, Any], images: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    table = export(detector, images, tmp_path_factory.mktemp("out"), METRICS)
    assert table.schema == schema.table("deployment").schema
    row: dict[str, Any] = table.to_pylist()[0]
    return row


def test_the_file_is_checked_and_agrees_with_torch(deployed: dict[str, Any]) -> None:
    graph = onnx.load(deployed["path"])
    onnx.checker.check_model(graph, full_check=True)
    assert graph.opset_import[0].version == OPSET == deployed["opset"]
    assert deployed["parity_images"] == 4 and deployed["agreement"] == 1.0
    assert 0 < deployed["max_abs_difference"] < 0.01
    assert deployed["milliseconds_torch"] > 0 and deployed["milliseconds_onnx"] > 0
    assert deployed["sha256"] == file_sha256(Path(deployed["path"]))


def test_the_file_takes_any_batch_and_size(deployed: dict[str, Any], detector: dict[str, Any]) -> None:
    exported, (network, _) = OnnxModel(Path(deployed["path"])), fcos.load(Path(detector["path"]))
    for shape in ((1, 3, 32, 32), (3, 3, 64, 160), (2, 3, 224, 96)):
        batch = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
        with torch.inference_mode():
            assert np.allclose(exported.raw(batch), network(torch.from_numpy(batch)).numpy(), atol=5e-3)


def test_it_predicts_what_the_pipeline_predicts(
    deployed: dict[str, Any], detector: dict[str, Any], images: pa.Table
) -> None:
    pixels = [np.asarray(Image.open(uri)) for uri in images["uri"].to_pylist()]
    theirs = OnnxModel(Path(deployed["path"])).predict(pixels)
    ours = PredictWorker(**worker_options(detector)).detect(pixels)
    assert sum(len(d.scores) for d in ours) > 10
    assert all(same_decision(a, b) for a, b in zip(ours, theirs, strict=True))


def test_it_runs_without_torch(deployed: dict[str, Any]) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np; from pathlib import Path; from pipeline.export import OnnxModel\n"
        f"model = OnnxModel(Path({deployed['path']!r}))\n"
        "print(len(model.predict([np.zeros((50, 70, 3), np.uint8)] * 2)), model.classes)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.stdout.strip() == "2 ('Tree', 'Car')", out.stderr


def test_the_card_says_what_must_be_known(deployed: dict[str, Any]) -> None:
    card = deployed["card"]
    for fact in ("abc123", "| test | all | Tree | AP50 | 0.500 | 0.400 to 0.600 | 9 |", "a\\|b", "MobileNetV2", "BSD"):
        assert fact in card
    assert Path(deployed["path"]).with_suffix(".md").read_text(encoding="utf-8") == card


def test_without_an_image_nothing_is_claimed(detector: dict[str, Any], images: pa.Table, tmp_path: Path) -> None:
    (row,) = export(detector, images.slice(0, 0), tmp_path).to_pylist()
    assert row["parity_images"] == 0 and row["agreement"] == 0.0
    assert "Not compared" in row["card"] and "Not evaluated" in row["card"]


def test_a_probe_of_another_encoder_reads_vectors(tmp_path: Path, images: pa.Table) -> None:
    random = np.random.default_rng(0)
    probe = Probe(("a", "b", "c"), random.normal(size=(3, 8)).astype(np.float32), np.zeros(3, np.float32), "clip@1#0")
    probe.save(tmp_path / "p.safetensors")
    vectors = random.normal(size=(20, 8)).astype(np.float32)
    row = model_row("linear_probe", tmp_path / "p.safetensors", {"seed": 0})
    (deployed,) = export(row, images, tmp_path / "out", vectors=vectors).to_pylist()
    assert deployed["parity_images"] == 16 and deployed["agreement"] == 1.0
    model = OnnxModel(Path(deployed["path"]))
    assert np.allclose(model.raw(vectors), probe.probabilities(vectors), atol=1e-5)
    assert "clip@1#0, which this file does not hold" in deployed["card"]
    with pytest.raises(WeightsError, match="not images"):
        model.predict([np.zeros((9, 9, 3), np.uint8)])


@pytest.mark.weights
def test_a_probe_of_the_compact_encoder_reads_images(tmp_path: Path, images: pa.Table) -> None:
    from pipeline.models.compact_encoder import CompactEncoder

    encoder = CompactEncoder()
    random = np.random.default_rng(0)
    weight = (10 * random.normal(size=(3, encoder.dimensions))).astype(np.float32)
    probe = Probe(("a", "b", "c"), weight, np.zeros(3, np.float32), encoder.producer)
    probe.save(tmp_path / "p.safetensors")
    row = model_row("linear_probe", tmp_path / "p.safetensors", {"seed": 0})
    (deployed,) = export(row, images, tmp_path / "out").to_pylist()
    assert deployed["parity_images"] == 4 and deployed["agreement"] == 1.0
    pixels = [np.asarray(Image.open(uri)) for uri in images["uri"].to_pylist()]
    model = OnnxModel(Path(deployed["path"]))
    expected = probe.probabilities(encoder.encode_images(pixels))
    assert np.allclose(model.probabilities(pixels), expected, atol=1e-3)
    (best, *_) = model.predict(pixels)
    assert best.classes[0] == probe.classes[int(expected[0].argmax())]


def test_files_from_elsewhere_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match="cannot run"):
        OnnxModel(path)
    with pytest.raises(WeightsError, match="cannot run"):
        OnnxModel(tmp_path / "gone.onnx")


def test_decisions_are_the_same_whatever_their_order() -> None:
    boxes = np.array([[0, 0, 9, 9], [20, 20, 40, 40]], np.float32)
    a = Detections(boxes, np.array([0.5, 0.5], np.float32), ("x", "y"))
    b = Detections(boxes[::-1] + 0.01, np.array([0.5, 0.5001], np.float32), ("y", "x"))
    assert same_decision(a, b) and same_decision(Detections(), Detections())
    assert not same_decision(a, Detections(boxes, a.scores, ("y", "x")))
    assert not same_decision(a, Detections(boxes + 1, a.scores, a.classes))
    assert not same_decision(a, Detections())
