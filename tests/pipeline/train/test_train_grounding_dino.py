from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline import schema
from pipeline.boxes import iou
from pipeline.compute import Compute
from pipeline.config import ProjectConfig, parse_config
from pipeline.dataset import snapshot
from pipeline.errors import ConfigError
from pipeline.looked import apart
from pipeline.models import grounding_dino_net
from pipeline.models.captions import WordPieces
from pipeline.models.profiles import build_labeller
from pipeline.ontology import Class, Ontology
from pipeline.predict import worker
from pipeline.store import Store
from pipeline.train import TrainingResult, train, tune
from pipeline.train.grounding_dino import DinoLearner, _objects
from pipeline.train.scenes import Crops, Scene
from tests.pipeline.curated_rows import as_labels
from tests.pipeline.models import small
from tests.pipeline.train.test_train import annotated, image_rows, split_rows, truth
from tests.pipeline.train.together import assert_as_one

pytestmark = pytest.mark.weights
EDGE = 128
TINY = grounding_dino_net.DinoConfig(
    embed_dim=24,
    depths=(1, 1, 1, 1),
    heads=(2, 2, 4, 4),
    encoder_layers=1,
    decoder_layers=2,
    feedforward=64,
    queries=20,
    text={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    shorter=128,
    longest=128,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return made(tmp_path_factory.mktemp("world"))


def made(folder: Path) -> dict[str, Any]:
    """Photos with a red and a blue square each, and a small network with random weights."""
    random = np.random.default_rng(3)
    paths, boxes, classes, owner = [], [], [], []
    for i in range(6):
        pixels = random.integers(90, 130, (EDGE, EDGE, 3))
        for k, name in enumerate(("red", "blue")):
            edge = int(random.integers(28, 45))
            x, y = int(random.integers(2, 62 - edge)) + 64 * k, int(random.integers(2, EDGE - edge - 2))
            pixels[y : y + edge, x : x + edge] = ((220, 40, 40), (40, 40, 220))[k]
            boxes.append((x, y, x + edge, y + edge))
            classes.append(name)
            owner.append(f"d{i}")
        paths.append(folder / f"d{i}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    torch.manual_seed(0)
    network = grounding_dino_net.calmed(grounding_dino_net.build(TINY, WordPieces(small.tokenizer())))
    grounding_dino_net.save(folder / "start.safetensors", network, TINY)
    return {"folder": folder, "paths": paths, "labels": truth(owner, classes, np.array(boxes, np.float32))}


def config(world: dict[str, Any], checkpoint: str = "", **training: Any) -> ProjectConfig:
    path = checkpoint or str(world["folder"] / "start.safetensors")
    text: dict[str, Any] = {"name": "t", "profile": "foundation", "source": {"uri": "x"}}
    text["classes"] = {"red": {"prompts": ["red square", "red box"]}, "blue": {"prompts": ["blue square"]}}
    text["labelling"] = {"labellers": [{"name": "dino", "kind": "profile", "options": {"text_threshold": 0.0}}]}
    how = {"kind": "grounding_dino", "batch_size": 2, "crop": [110, 128], "checkpoint_every": 1000, "layer_decay": 1.0}
    return parse_config(text | {"models": {"detector": path}, "training": how | training})


def rows(world: dict[str, Any]) -> tuple[pa.Table, pa.Table, pa.Table, pa.Table]:
    """Images, training set, splits and annotated images."""
    of = {p.stem: "train" for p in world["paths"]}
    images, splits = image_rows(world["paths"], EDGE), split_rows(of)
    return images, snapshot(as_labels(world["labels"]), splits, images), splits, annotated(of)


def trained(world: dict[str, Any], project: ProjectConfig, folder: Path, *where: Any) -> TrainingResult:
    """Inline, or `where`: a Compute and who is told of progress."""
    return train(project, *rows(world), Store(str(folder)), *where or (Compute(),))


@pytest.mark.parametrize("how", ["decoder", "all"])
def test_what_was_tuned_takes_the_detectors_place(world: dict[str, Any], how: str, tmp_path: Path) -> None:
    project = config(world, tune=how, steps=2)
    (row,) = trained(world, project, tmp_path).models.to_pylist()
    before, _ = grounding_dino_net.read_checkpoint(world["folder"] / "start.safetensors")
    after, sizes = grounding_dino_net.read_checkpoint(Path(row["path"]))
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert sizes == TINY and ({"backbone", "bert"} <= moved) == (how == "all") and "transformer" in moved
    own = config(world, row["path"])
    detector = build_labeller(own.labelling.labellers[0], ".", own)
    make, options = worker(row)
    rows, _ = apart(make(**options)(image_rows(world["paths"], EDGE)), "predictions")
    assert set(rows["producer"].to_pylist()) == {row["model"]} and set(rows["class_name"].to_pylist()) <= {
        "red",
        "blue",
    }
    # The same boxes as the adapter of a project that names this checkpoint, above that project's own threshold.
    (found,) = detector.detect([np.asarray(Image.open(world["paths"][0]))])
    mine = schema.where_in(rows, "image_id", ["d0"])
    kept = mine.filter(pa.compute.greater_equal(mine["score"], 0.1))
    np.testing.assert_allclose(np.sort(found.scores), np.sort(kept["score"].to_numpy()), atol=1e-6)
    assert trained(world, project, tmp_path).models["sha256"][0].as_py() == row["sha256"]


def learner(prompts: dict[str, tuple[str, ...]], folder: Path) -> DinoLearner:
    network = grounding_dino_net.build(TINY, WordPieces(small.tokenizer()))
    ontology = Ontology(tuple(Class(name, said) for name, said in prompts.items()))
    image = folder / "x.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(image)
    row = {
        "uri": str(image),
        "file_name": image.name,
        "tile_x": 0,
        "tile_y": 0,
        "width": 64,
        "height": 64,
        "photo_width": 64,
        "photo_height": 64,
    }
    scene = Scene((row,), np.array([[8.0, 8, 40, 40]]), np.array([1]), np.array([False]))
    crops = Crops([scene], (64, 64), 64, 0.25, False, 0)
    return DinoLearner(network, crops, ontology, WordPieces(small.tokenizer()), config_of(), "all")


def config_of() -> Any:
    return parse_config({"name": "x", "classes": {"a": {}}, "source": {"uri": "x"}}).training


def test_captions_hold_each_class_once_and_the_classes_in_sight_always(tmp_path: Path) -> None:
    words = {f"class{i}": (f"thing number {i}", f"object {i} of many words in a row") for i in range(60)}
    subject = learner(words, tmp_path)
    for seed in range(5):
        caption, places = subject._caption(np.random.default_rng(seed), {3, 59})
        assert len(caption.tokens) <= 256 and {3, 59} <= set(places) and len(places) == len(set(places.values()))
        for c, place in places.items():
            assert caption.prompts[place] in words[f"class{c}"]
    few = learner({"a": ("dog",), "b": ("cat", "kitten"), "c": ("dog",)}, tmp_path)
    caption, places = few._caption(np.random.default_rng(0), {1})
    assert sorted(places) == [0, 1, 2] and places[0] == places[2] and len(caption.prompts) == 2


def test_an_objects_tokens_are_those_of_its_class(tmp_path: Path) -> None:
    subject = learner({"a": ("hard hat",), "b": ("safety vest",)}, tmp_path)
    caption, places = subject._caption(np.random.default_rng(0), {1})
    boxes, tokens, ignore = _objects(subject.draw(0), caption, places)
    start, end = caption.spans[places[1]]
    assert np.flatnonzero(tokens[0]).tolist() == list(range(start, end))
    assert (boxes > 0).all() and (boxes < 1).all() and not len(ignore)


def test_adapters_are_refused(world: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Grounding DINO cannot be tuned by 'adapters'"):
        trained(world, config(world, tune="adapters"), tmp_path)


def test_workers_together_learn_what_one_learns(world: dict[str, Any]) -> None:
    """Their shares of the losses, of the classes in sight and of the pairs are unequal."""
    project = config(world, tune="all", batch_size=4, crop=[40, 64])
    given = tune.Given(project, *rows(world), world["labels"].slice(0, 0), {})
    assert_as_one(lambda: tune.begun(tune.work_of(given)), project.training, 2, 3)


@pytest.mark.slow
def test_it_learns_to_find_what_it_is_asked_for(world: dict[str, Any], tmp_path: Path) -> None:
    """Six photos by heart: the best box of each prompt lies on its own square, and on no other."""
    (row,) = trained(world, config(world, tune="all", steps=150, learning_rate=1e-3), tmp_path).models.to_pylist()
    own = config(world, row["path"])
    detector = build_labeller(own.labelling.labellers[0], ".", own)
    found = detector.detect([np.asarray(Image.open(p)) for p in world["paths"]])
    hits = []
    for path, said in zip(world["paths"], found, strict=True):
        drawn = schema.where_in(world["labels"], "image_id", [path.stem])
        for name, box in zip(drawn["class_name"].to_pylist(), schema.box_array(drawn), strict=True):
            mine = [i for i, c in enumerate(said.classes) if c == name]
            best = max(mine, key=lambda i: said.scores[i], default=None)
            hits.append(best is not None and iou(said.boxes[best][None], box[None])[0, 0] > 0.5)
    assert np.mean(hits) > 0.8
