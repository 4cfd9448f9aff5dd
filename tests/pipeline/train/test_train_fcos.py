from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.boxes import iou
from pipeline.config import TrainingConfig
from pipeline.errors import DataError
from pipeline.images import UnusableImage
from pipeline.models import fcos as model
from pipeline.train import fcos
from pipeline.train.scenes import Scene
from pipeline.train.state import FileCheckpoints
from tests.pipeline.train.together import Memory, assert_as_one, train


def painted_scene(folder: Path) -> Scene:
    """A noisy photo with bright squares."""
    random = np.random.default_rng(0)
    pixels = random.integers(30, 70, (256, 256, 3)).astype(np.uint8)
    boxes = []
    for y in range(16, 220, 56):
        for x in range(16, 220, 56):
            edge = int(random.integers(20, 36))
            boxes.append((x, y, x + edge, y + edge))
            pixels[y : y + edge, x : x + edge] = (90, 200, 60)
    path = folder / "p.png"
    Image.fromarray(pixels).save(path)
    row: dict[str, Any] = {"uri": str(path), "file_name": path.name, "tile_x": 0, "tile_y": 0}
    row |= {"width": 256, "height": 256, "photo_width": 256, "photo_height": 256}
    return Scene((row,), np.array(boxes, float), np.zeros(len(boxes), int), np.zeros(len(boxes), bool))


def tiny_job(folder: Path, **options: Any) -> fcos.Job:
    """Random weights and few pixels: for what does not depend on learning."""
    config = TrainingConfig(
        **{"steps": 6, "batch_size": 2, "crop": (60, 120), "input_size": 64, "checkpoint_every": 2} | options
    )
    return fcos.Job((painted_scene(folder),), ("Tree",), config, 0.25, None, threads=1)


def same(a: dict[str, Any], b: dict[str, Any], tolerance: float = 0.0) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=0, atol=tolerance) for k in a)


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, steps=3)
    first, again = fcos.fit(job, Memory()), fcos.fit(job, Memory())
    assert same(first.state, again.state) and first.history == again.history
    assert not same(first.state, fcos.fit(tiny_job(tmp_path, steps=3, seed=1), Memory()).state)


def test_a_killed_training_ends_as_if_undisturbed(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    undisturbed = fcos.fit(job, Memory())
    checkpoints = FileCheckpoints(str(tmp_path / "c.pt"), "job")
    seen: list[int] = []

    def kill(step: int, _: int) -> None:
        seen.append(step)
        if step == 5 and seen.count(5) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fcos.fit(job, checkpoints, kill)
    resumed = fcos.fit(job, checkpoints, kill)
    assert seen == [1, 2, 3, 4, 5, 5, 6]  # from the checkpoint after step 4
    assert same(resumed.state, undisturbed.state) and resumed.history == undisturbed.history


def test_checkpoints_of_other_jobs_and_damaged_ones_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    mine, other = FileCheckpoints(str(path), "a"), FileCheckpoints(str(path), "b")
    assert mine.load() is None
    mine.save({"step": 3})
    assert mine.load() == {"step": 3} and other.load() is None
    path.write_bytes(path.read_bytes()[:100])
    assert mine.load() is None


def test_workers_together_learn_what_one_learns(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, steps=4, batch_size=3)
    assert_as_one(lambda: fcos.FcosLearner(job), job.config, 2)
    (together, _), (alone, _) = (train(lambda: fcos.FcosLearner(job), job.config, n) for n in (2, 1))
    # Adam divides tiny gradients by their own size, so the order of a sum shows in some weights.
    assert same(together.state, alone.state, tolerance=5e-3)
    assert [h["loss"] for h in together.history] == pytest.approx([h["loss"] for h in alone.history], rel=1e-2)


def test_there_must_be_a_box_and_a_photo(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    (scene,) = job.scenes
    ignored = Scene(scene.rows, scene.boxes, scene.classes, np.ones(len(scene.boxes), bool))
    with pytest.raises(DataError, match="no box"):
        fcos.fit(fcos.Job((ignored,), job.classes, job.config, 0.25, None), Memory())
    (tmp_path / "p.png").rename(tmp_path / "q.png")  # another photo is still there: the folder is mounted
    with pytest.raises(UnusableImage):
        fcos.fit(job, Memory())


def test_the_rate_warms_up_and_dies_down(tmp_path: Path) -> None:
    rates = [h["lr"] for h in fcos.fit(tiny_job(tmp_path, steps=20, batch_size=1), Memory()).history]
    assert rates[0] == pytest.approx(0.5e-3) and max(rates) == pytest.approx(1e-3)
    assert rates[-1] < 0.02e-3 and rates[2:] == sorted(rates[2:], reverse=True)


def test_pretrained_norms_keep_their_statistics(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, steps=2)
    state = fcos.fit(job, Memory()).state
    means = [v for k, v in state.items() if k.startswith("features.") and k.endswith("running_mean")]
    assert means and all(bool((m == 0).all()) for m in means)


@pytest.mark.weights
@pytest.mark.slow
def test_it_learns_to_find_squares(tmp_path: Path) -> None:
    config = TrainingConfig(steps=60, batch_size=2, crop=(100, 200), input_size=128, rotate=True, learning_rate=2e-3)
    scene = painted_scene(tmp_path)
    job = fcos.Job((scene,), ("Tree",), config, 0.25, "mobilenet_v2")
    fitted = fcos.fit(job, Memory())
    network = model.build(job.model)
    network.load_state_dict(fitted.state)
    pixels = np.asarray(Image.open(tmp_path / "p.png"))
    with torch.inference_mode():
        output = network.eval()(torch.from_numpy(model.prepare([pixels], job.model.scale))).numpy()
    (found,) = model.decode(output, [(256, 256)], job.model, floor=0.5)
    overlap = iou(scene.boxes, found.boxes)
    assert (overlap.max(axis=1) > 0.6).mean() > 0.9
    assert len(found.scores) <= len(scene.boxes) + 2
