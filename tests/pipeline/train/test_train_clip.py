from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline import schema
from pipeline.compute import Compute
from pipeline.config import ProjectConfig, parse_config
from pipeline.dataset import snapshot
from pipeline.errors import ConfigError
from pipeline.looked import apart
from pipeline.models import clip_net
from pipeline.models.profiles import build_encoder
from pipeline.predict import worker
from pipeline.store import Store
from pipeline.train import TrainingResult, train, tune
from pipeline.train.clip import contrastive, read_captions
from tests.pipeline.curated_rows import as_labels
from tests.pipeline.models import clip_files
from tests.pipeline.train.test_train import annotated, image_rows, split_rows, truth
from tests.pipeline.train.together import assert_as_one

CLASSES = ("red", "blue")


def picture(which: int, random: np.random.Generator) -> np.ndarray:
    """Red or blue noise, of any brightness."""
    tint = np.array([(70, 0, -70), (-70, 0, 70)][which])
    return (random.integers(60, 200) + tint + random.normal(0, 30, (96, 96, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("clip")
    random = np.random.default_rng(0)
    names = [f"{CLASSES[i % 2]}{i:02d}" for i in range(48)]
    paths = [folder / f"{name}.png" for name in names]
    for i, path in enumerate(paths):
        Image.fromarray(picture(i % 2, random)).save(path)
    what = clip_files.small()
    clip_net.save(folder / "start.safetensors", clip_files.random_network(what), what)
    of = {name: "train" if i < 24 else "test" for i, name in enumerate(names)}
    labels = truth(names, [CLASSES[i % 2] for i in range(48)], None)
    return {"folder": folder, "paths": paths, "of": of, "labels": labels}


def config(world: dict[str, Any], profile: str = "foundation", **training: Any) -> ProjectConfig:
    start = str(world["folder"] / "start.safetensors")
    text: dict[str, Any] = {"name": "t", "task": "classification", "profile": profile, "source": {"uri": "x"}}
    text["classes"] = {"red": {"prompts": ["red cloth"]}, "blue": {"prompts": ["blue cloth", "a sky"]}}
    text["models"] = {"encoder": start}
    return parse_config(text | {"training": {"kind": "clip", "batch_size": 8, "checkpoint_every": 1000} | training})


def rows(world: dict[str, Any]) -> tuple[pa.Table, pa.Table, pa.Table, pa.Table]:
    """Images, training set, splits and annotated images."""
    images, splits = image_rows(world["paths"], 96), split_rows(world["of"])
    return images, snapshot(as_labels(world["labels"]), splits, images), splits, annotated(world["of"])


def trained(world: dict[str, Any], project: ProjectConfig, folder: Path, *where: Any) -> TrainingResult:
    """Inline, or `where`: a Compute and who is told of progress."""
    held = world["labels"].filter(pa.array([world["of"][i] == "test" for i in world["labels"]["image_id"].to_pylist()]))
    return train(project, *rows(world), Store(str(folder)), *where or (Compute(),), held_out=held)


def test_the_loss_is_the_mean_of_two_cross_entropies_over_pairs_that_belong_together() -> None:
    random = np.random.default_rng(1)
    logits, pairs = random.normal(size=(5, 4)), random.random((5, 4)) < 0.4
    pairs[0] = pairs[:, 1] = False

    def one_way(scores: np.ndarray, positive: np.ndarray) -> float:
        shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        return float(np.mean([-np.log(s[p]).mean() for s, p in zip(shares, positive, strict=True) if p.any()]))

    expected = (one_way(logits, pairs) + one_way(logits.T, pairs.T)) / 2
    assert contrastive(torch.from_numpy(logits), torch.from_numpy(pairs)).item() == pytest.approx(expected)


def test_with_one_text_an_image_it_is_the_loss_of_clip() -> None:
    open_clip = clip_net.library()
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 8), dim=1) for _ in range(2))
    theirs = open_clip.ClipLoss()(image, text, torch.tensor(7.0))
    assert contrastive(7.0 * image @ text.T, torch.eye(6, dtype=torch.bool)).item() == pytest.approx(theirs.item())


@pytest.mark.parametrize("how", ["adapters", "all"])
def test_what_was_tuned_takes_the_encoders_place(world: dict[str, Any], how: str, tmp_path: Path) -> None:
    project = config(world, tune=how, steps=2, learning_rate=1e-3)
    result = trained(world, project, tmp_path)
    (row,) = result.models.to_pylist()
    assert row["kind"] == "clip" and len(list(Path(row["path"]).parent.iterdir())) == 1
    own = config(world).model_copy(update={"models": parse_models(row["path"])})
    tuned, before = build_encoder(own), build_encoder(config(world))
    seen = [np.asarray(Image.open(p)) for p in world["paths"][:3]]
    assert np.abs(tuned.encode_images(seen) - before.encode_images(seen)).max() > 1e-5
    # Its predictions are what the adapter says, and half of the test images are right by chance.
    make, options = worker(row)
    rows, looked_at = apart(make(**options)(image_rows(world["paths"][24:], 96)), "predictions")
    rows = schema.best_classes(rows).to_pylist()
    assert looked_at.num_rows == 24
    assert {r["producer"] for r in rows} == {row["model"]} and len(rows) == 24
    right = np.mean([r["class_name"] in r["image_id"] for r in rows])
    points = {p["x"]: p for p in result.curves.to_pylist()}
    assert sorted(points) == [0, 2] and points[2]["y"] == pytest.approx(right)
    assert points[2]["low"] < right <= points[2]["high"]
    again = trained(world, project, tmp_path)
    assert again.models.drop(["seconds"]).equals(result.models.drop(["seconds"]))
    assert json.loads(row["config"])["settings"]["tune"] == how


def parse_models(path: str) -> Any:
    return parse_config({"name": "x", "classes": {"a": {}}, "source": {"uri": "x"}, "models": {"encoder": path}}).models


def test_captions_teach_too_and_change_the_models_name(world: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "captions.csv"
    file.write_text("file_name,caption\nx,a woven cloth\n")  # every image of this world is called x
    assert read_captions(file) == {"x": "a woven cloth"}
    plain = trained(world, config(world, steps=1), tmp_path / "a").models.to_pylist()[0]
    taught = trained(world, config(world, steps=1, captions=str(file)), tmp_path / "b").models.to_pylist()[0]
    assert plain["model"] != taught["model"] and plain["sha256"] != taught["sha256"]
    file.write_text("name,caption\nx,y\n")
    with pytest.raises(ConfigError, match="file_name"):
        read_captions(file)
    with pytest.raises(ConfigError, match="cannot read"):
        read_captions(tmp_path / "gone.csv")


def test_what_cannot_be_tuned_is_refused(world: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="profile foundation"):
        trained(world, config(world, profile="compact").model_copy(update={"models": parse_models("")}), tmp_path)
    with pytest.raises(ConfigError, match="CLIP cannot be tuned by 'decoder'"):
        trained(world, config(world, tune="decoder", steps=1), tmp_path)


@pytest.mark.parametrize(("how", "workers"), [("adapters", 2), ("all", 3)])
def test_workers_together_learn_what_one_learns(world: dict[str, Any], how: str, workers: int) -> None:
    """They see each other's pictures and texts: with two classes, one of three workers encodes no text."""
    project = config(world, tune=how)
    given = tune.Given(project, *rows(world), world["labels"].slice(0, 0), {})
    assert_as_one(lambda: tune.begun(tune.work_of(given)), project.training, workers)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "rate"), [("all", 1e-3), ("adapters", 1e-2)])
def test_it_learns_to_tell_red_from_blue(world: dict[str, Any], how: str, rate: float, tmp_path: Path) -> None:
    project = config(world, tune=how, rank=8, steps=60, learning_rate=rate, layer_decay=1.0)
    points = {p["x"]: p for p in trained(world, project, tmp_path).curves.to_pylist() if p["split"] == "test"}
    assert points[0]["y"] < 0.7 and points[60]["low"] > points[0]["y"] and points[60]["y"] > 0.9
