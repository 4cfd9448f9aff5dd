from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageDraw

from pipeline import masks, schema
from pipeline.compute import Compute
from pipeline.config import ProjectConfig, parse_config
from pipeline.dataset import snapshot
from pipeline.errors import ConfigError
from pipeline.models import sam_net
from pipeline.models.profiles import build_segmenter
from pipeline.predict import labelling
from pipeline.store import Store
from pipeline.train import TrainingResult, train, tune
from pipeline.train.sam import DICE, FOCAL, Cuts, mask_loss, outlined
from tests.pipeline.curated_rows import as_labels
from tests.pipeline.train.test_train import annotated, image_rows, split_rows
from tests.pipeline.train.together import assert_as_one

SMALL = sam_net.SamConfig(
    image=64, patch=8, width=32, depth=2, heads=2, window=4, whole=(1,), prompt=32, feedforward=64, iou_hidden=32
)
EDGE = 96


def shape(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright ellipse on a dark ground, and its mask."""
    random = np.random.default_rng([7, number])
    x, y = random.integers(5, 40, 2).tolist()
    width, height = random.integers(25, 50, 2).tolist()
    canvas = Image.new("1", (EDGE, EDGE))
    ImageDraw.Draw(canvas).ellipse((x, y, x + width, y + height), fill=1)
    mask = np.array(canvas, bool)
    pixels = np.where(mask[..., None], random.integers(150, 255, 3), random.integers(0, 90, 3))
    return (pixels + random.normal(0, 10, pixels.shape)).clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return made(tmp_path_factory.mktemp("world"))


def made(folder: Path) -> dict[str, Any]:
    paths, texts = [folder / f"i{i:02d}.png" for i in range(24)], []
    for i, path in enumerate(paths):
        pixels, mask = shape(i)
        Image.fromarray(pixels).save(path)
        texts.append(masks.encode(mask))
    torch.manual_seed(0)
    sam_net.save(folder / "start.safetensors", sam_net.build(SMALL))
    ids = [p.stem for p in paths]
    boxes = np.array([masks.box(text, EDGE, EDGE) for text in texts], np.float32)
    labels = schema.annotations(
        "ground_truth", image_ids=ids, batch="b", producer="human", classes=["egg"] * 24, boxes=boxes, mask=texts
    )
    return {"folder": folder, "paths": paths, "labels": labels, "texts": texts, "boxes": boxes}


def config(world: dict[str, Any], checkpoint: str = "", **training: Any) -> ProjectConfig:
    path = checkpoint or str(world["folder"] / "start.safetensors")
    text: dict[str, Any] = {"name": "t", "profile": "foundation", "source": {"uri": "x"}, "classes": {"egg": {}}}
    how = {"kind": "sam", "batch_size": 4, "crop": [60, 96], "checkpoint_every": 1000, "layer_decay": 1.0}
    return parse_config(text | {"models": {"segmenter": path}, "training": how | training})


def rows(world: dict[str, Any]) -> tuple[pa.Table, pa.Table, pa.Table, pa.Table]:
    """Images, training set, splits and annotated images."""
    of = {p.stem: "train" if i < 16 else "test" for i, p in enumerate(world["paths"])}
    images, splits = image_rows(world["paths"], EDGE), split_rows(of)
    return images, snapshot(as_labels(world["labels"]), splits, images), splits, annotated(of)


def trained(world: dict[str, Any], project: ProjectConfig, folder: Path, *where: Any) -> TrainingResult:
    """Inline, or `where`: a Compute and who is told of progress."""
    store, held_out = Store(str(folder)), world["labels"].slice(16)
    return train(project, *rows(world), store, *where or (Compute(),), held_out=held_out)


def iou(world: dict[str, Any], project: ProjectConfig) -> float:
    """Mean IoU of the test images' masks, counted apart from the code that reports it."""
    pixels = [np.asarray(Image.open(p)) for p in world["paths"][16:]]
    found = build_segmenter(project).segment(pixels, [b[None] for b in world["boxes"][16:]])
    said = [masks.decode(f.masks[0], EDGE, EDGE) for f in found]
    truth = [shape(i)[1] for i in range(16, 24)]
    return float(np.mean([(a & b).sum() / (a | b).sum() for a, b in zip(said, truth, strict=True)]))


def test_examples_are_windows_whose_boxes_and_masks_belong_together(world: dict[str, Any]) -> None:
    pictures = outlined(image_rows(world["paths"], EDGE), world["labels"])
    assert [p.row["image_id"] for p in pictures] == [p.stem for p in world["paths"]]
    cuts = Cuts(pictures, (60, 130), 64, 32, rotate=True, seed=0)
    for number in range(12):
        cut = cuts.draw(number)
        assert cut.pixels.shape == (64, 64, 3) and cut.masks.shape == (1, 32, 32) and cut.masks.any()
        rows, columns = np.nonzero(cut.masks[0])
        tight = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * 2
        # A tenth of a side at one standard deviation, and a pixel of the mask.
        assert np.abs(cut.boxes[0] - tight).max() < 0.4 * 64 * 50 / 60 + 2
        bright = cut.pixels.max(axis=2).reshape(32, 2, 32, 2).mean(axis=(1, 3))
        inside, outside = bright[cut.masks[0]], bright[~cut.masks[0]]
        assert np.median(inside) > np.median(outside)
        again = cuts.draw(number)
        assert np.array_equal(again.pixels, cut.pixels) and np.array_equal(again.boxes, cut.boxes)


def test_ignored_objects_crowds_and_boxes_without_a_mask_teach_nothing(world: dict[str, Any]) -> None:
    rows = world["labels"].slice(0, 4).to_pylist()
    rows[0]["ignore"], rows[1]["is_crowd"], rows[2]["mask"] = True, True, None
    table = schema.table("ground_truth").from_rows(rows)
    assert [p.row["image_id"] for p in outlined(image_rows(world["paths"], EDGE), table)] == ["i03"]


def test_the_loss_is_focal_and_dice_of_one_mask_and_of_the_best_of_three() -> None:
    from pipeline.torch_compat import import_torchvision

    import_torchvision()
    from torchvision.ops import sigmoid_focal_loss

    torch.manual_seed(1)
    logits, truth, guess = torch.randn(3, 4, 6, 6), (torch.rand(3, 6, 6) < 0.4).float(), torch.rand(3, 4)

    def each(i: int, k: int) -> float:
        focal = sigmoid_focal_loss(logits[i, k], truth[i], reduction="mean")
        share = logits[i, k].sigmoid()
        dice = 1 - (2 * (share * truth[i]).sum() + 1) / (share.sum() + truth[i].sum() + 1)
        return float(FOCAL * focal + DICE * dice)

    for i, loss in enumerate(mask_loss(logits, guess, truth).tolist()):
        seen, there = logits[i] > 0, truth[i] > 0
        overlap = (seen & there).sum((1, 2)) / (seen | there).sum((1, 2))
        error = float(((guess[i] - overlap) ** 2).mean())
        assert loss == pytest.approx(each(i, 0) + min(each(i, k) for k in (1, 2, 3)) + error, rel=1e-5)


@pytest.mark.parametrize("how", ["decoder", "all"])
def test_what_was_tuned_takes_the_segmenters_place(world: dict[str, Any], how: str, tmp_path: Path) -> None:
    project = config(world, tune=how, steps=2)
    result = trained(world, project, tmp_path)
    (row,) = result.models.to_pylist()
    before, after = (sam_net.read_checkpoint(Path(p)) for p in (world["folder"] / "start.safetensors", row["path"]))
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == ({"mask_decoder"} if how == "decoder" else {"mask_decoder", "image_encoder", "prompt_encoder"})
    points = {p["x"]: p["y"] for p in result.curves.to_pylist()}
    assert points[0] == pytest.approx(iou(world, config(world)))
    assert points[2] == pytest.approx(iou(world, config(world, row["path"])))
    assert labelling(result.models).num_rows == 0  # it draws masks, and says of nothing what it is
    again = trained(world, project, tmp_path)
    assert again.models.drop(["seconds"]).equals(result.models.drop(["seconds"]))


def test_without_masks_there_is_no_model_and_adapters_are_refused(world: dict[str, Any], tmp_path: Path) -> None:
    none = pa.nulls(24, pa.string())
    bare = world["labels"].set_column(world["labels"].schema.get_field_index("mask"), "mask", none)
    assert trained(world | {"labels": bare}, config(world), tmp_path).models.num_rows == 0
    with pytest.raises(ConfigError, match="SAM cannot be tuned by 'adapters'"):
        trained(world, config(world, tune="adapters"), tmp_path)


def test_workers_together_learn_what_one_learns(world: dict[str, Any]) -> None:
    """Some photos have two eggs, so shares are unequal."""
    both = [text for i in (0, 3, 7) for text in (world["texts"][i], masks.encode(~shape(i)[1]))]
    project = config(world, tune="all")
    images, training_set, splits, seen = rows(world)
    more = training_set.filter(pa.array([i in ("i00", "i03", "i07") for i in training_set["image_id"].to_pylist()]))
    twice = pa.concat_tables([training_set, more.set_column(more.column_names.index("mask"), "mask", [both[1::2]])])
    given = tune.Given(project, images, twice, splits, seen, world["labels"].slice(0, 0), {})
    assert_as_one(lambda: tune.begun(tune.work_of(given)), project.training, 3)


@pytest.mark.slow
def test_it_learns_to_draw_ellipses(world: dict[str, Any], tmp_path: Path) -> None:
    project = config(world, tune="all", steps=120, learning_rate=2e-3)
    points = {p["x"]: p for p in trained(world, project, tmp_path).curves.to_pylist()}
    assert points[0]["y"] < 0.6 and points[120]["low"] > 0.8
