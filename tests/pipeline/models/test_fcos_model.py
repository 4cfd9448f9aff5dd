from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.boxes import iou, nms
from pipeline.errors import WeightsError
from pipeline.models import fcos, probe
from pipeline.models.fcos import FcosConfig

CONFIG = FcosConfig(("Tree", "Car"), scale=1.25)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    module: torch.nn.Module = fcos.build(CONFIG).eval()
    return module


def test_output_has_a_row_for_every_cell_of_every_level(network: torch.nn.Module) -> None:
    with torch.inference_mode():
        output = network(torch.zeros(2, 3, 64, 96))
    cells = sum((64 // s) * (96 // s) for s in CONFIG.strides)
    assert output.shape == (2, cells, 4 + 2)
    boxes, scores = output[..., :4], output[..., 4:]
    assert (boxes[..., 2:] > boxes[..., :2]).all() and ((scores > 0) & (scores < 1)).all()


def test_forward_decodes_what_raw_says(network: torch.nn.Module) -> None:
    images = torch.rand(1, 3, 64, 64) * 255
    with torch.inference_mode():
        logits, sides, centerness, points, strides = network.raw(images)  # type: ignore[operator]
        output = network(images)
    assert points[0].tolist() == [4.0, 4.0] and points[-1].tolist() == [48.0, 48.0]
    assert strides.unique().tolist() == [8.0, 16.0, 32.0]
    middle = (output[0, :, :2] + output[0, :, 2:4]) / 2
    assert torch.allclose(middle, points + (sides[0, :, 2:] - sides[0, :, :2]) / 2, atol=1e-4)
    expected = (logits[0].sigmoid() * centerness[0].sigmoid()[:, None]).sqrt()
    assert torch.allclose(output[0, :, 4:], expected, atol=1e-6)


def test_an_image_does_not_see_its_neighbours(network: torch.nn.Module) -> None:
    images = torch.rand(3, 3, 64, 64) * 255
    with torch.inference_mode():
        assert torch.allclose(network(images)[1:2], network(images[1:2]), atol=1e-3)


def test_prepare_resizes_and_pads_with_the_mean_colour() -> None:
    image = np.full((40, 60, 3), 7, np.uint8)
    batch = fcos.prepare([image, image[:30]], 1.25)
    assert batch.shape == (2, 3, 64, 96) and batch.dtype == np.float32
    assert (batch[0, :, :50, :75] == 7).all() and (batch[1, :, :38, :75] == 7).all()
    assert batch[0, :, -1, -1] == pytest.approx(fcos.MEAN)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_decode_is_threshold_then_suppression_class_by_class(seed: int) -> None:
    random = np.random.default_rng(seed)
    low = random.uniform(0, 100, (60, 2))
    boxes = np.hstack([low, low + random.uniform(5, 50, (60, 2))]).astype(np.float32)
    scores = random.random((60, 2)).astype(np.float32)
    config = FcosConfig(("Tree", "Car"))
    (found,) = fcos.decode(np.hstack([boxes, scores])[None], [(200, 200)], config, floor=0.4, limit=30)
    assert list(found.scores) == sorted(found.scores, reverse=True)
    for i, name in enumerate(config.classes):
        at = np.flatnonzero(scores[:, i] >= 0.4)
        expected = at[nms(boxes[at], scores[at, i], 0.5)]
        mine = np.array([n == name for n in found.classes], bool)
        assert mine.sum() <= len(expected)
        if len(found.scores) < 30:
            assert np.array_equal(found.boxes[mine], boxes[expected])
        overlap = iou(found.boxes[mine], found.boxes[mine]) - np.eye(int(mine.sum()))
        assert not (overlap > 0.5 + 1e-6).any()


def test_decode_goes_back_to_the_images_pixels() -> None:
    config = FcosConfig(("Tree",), scale=1.5)
    output = np.array([[[15, 30, 45, 90, 0.9], [-20, -20, 3000, 3000, 0.5], [600, 600, 700, 700, 0.8]]], np.float32)
    (found,) = fcos.decode(output, [(200, 100)], config)
    assert found.boxes.tolist() == [[10, 20, 30, 60], [0, 0, 100, 200]]


def test_decode_keeps_the_best_and_survives_nothing() -> None:
    config = FcosConfig(("Tree",))
    x = np.arange(0, 4000, 20, dtype=np.float32)
    rows = np.stack([x, x * 0, x + 10, x * 0 + 10, np.linspace(0.1, 0.9, len(x), dtype=np.float32)], axis=1)
    (found,) = fcos.decode(rows[None], [(20, 4010)], config, limit=7)
    assert found.scores.tolist() == pytest.approx(sorted(rows[:, 4], reverse=True)[:7])
    (empty,) = fcos.decode(rows[None], [(20, 4010)], config, floor=0.95)
    assert empty.boxes.shape == (0, 4) and empty.classes == ()


def test_a_checkpoint_comes_back_whole(network: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    fcos.save(path, network.state_dict(), CONFIG)
    again, config = fcos.load(path)
    assert config == CONFIG and not again.training
    images = torch.rand(1, 3, 64, 64) * 255
    with torch.inference_mode():
        assert torch.equal(again(images), network(images))
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_damaged_and_foreign_checkpoints_are_named(network: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(WeightsError, match="cannot read"):
        fcos.load(path)
    fcos.save(path, network.state_dict(), CONFIG)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot read"):
        fcos.load(path)
    probe.Probe(("a",), np.zeros((1, 4), np.float32), np.zeros(1, np.float32), "e").save(path)
    with pytest.raises(WeightsError, match="not an FCOS"):
        fcos.load(path)


def test_a_probe_comes_back_whole(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    made = probe.Probe(
        # column by column, as scikit-learn leaves its coefficients
        ("a", "b"),
        np.asfortranarray(random.normal(size=(2, 4)).astype(np.float32)),
        np.ones(2, np.float32),
        "encoder@1#0",
    )
    made.save(tmp_path / "p.safetensors")
    again = probe.load(tmp_path / "p.safetensors")
    assert (again.classes, again.encoder) == (made.classes, made.encoder)
    assert np.array_equal(again.weight, made.weight) and np.array_equal(again.bias, made.bias)
