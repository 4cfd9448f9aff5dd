"""What fine-tuning teaches: from `project.yaml` through `cvp run` to figures on images that were held out.

Run: python benchmarks/learning.py clip|sam|grounding_dino [--steps N] [--strong] [--stage before|after] [--folder DIR]

Official checkpoints cannot be had where this was written, so each begins with a small network of the package's own
classes, with random weights, and trains all of it; the samples must have been pulled (`cvp samples pull textile
scenes`). The checkpoints are left in the folder and load by `models:` in any project.yaml. A run that was stopped
goes on; one with more steps begins anew. `--strong` takes larger networks, for a GPU. A machine without Dagster does
`--stage after` on a folder in which `--stage before` was done, where the photos lie under the same paths.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from PIL import Image

from pipeline import dataset, masks, schema, weights
from pipeline.compute import Compute
from pipeline.config import ProjectConfig, find_project, parse_config, samples_root, weights_root
from pipeline.intervals import percentile, resamples
from pipeline.models import clip_net, grounding_dino_net, sam_net
from pipeline.models.captions import WordPieces
from pipeline.models.profiles import build_labeller, build_segmenter
from pipeline.store import Store
from pipeline.train import train

PROJECTS = Path(__file__).parents[1] / "projects"
TOKENIZER = "bert_base_uncased_tokenizer"
TEST_BATCH = "2026-07-01-day"
UNTAUGHT = ("cow", "sheep", "horse", "truck", "apple", "cup", "scissors")  # cut-outs whose masks SAM never sees
CLIP = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 128, "layers": 4, "width": 128, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 1},
    "quick_gelu": False,
}
SAM = sam_net.SamConfig(
    image=160, patch=8, width=96, depth=4, heads=4, window=5, whole=(3,), mlp=2.0, prompt=128, feedforward=256
)
DINO = grounding_dino_net.DinoConfig(
    embed_dim=24,
    depths=(1, 1, 2, 1),
    heads=(2, 2, 4, 4),
    encoder_layers=1,
    decoder_layers=2,
    feedforward=256,
    queries=50,
    text={"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128},
    shorter=128,
    longest=171,
)
STRONG_SAM = sam_net.SamConfig(
    image=256, patch=8, width=192, depth=6, heads=6, window=8, whole=(2, 5), prompt=256, feedforward=512
)
STRONG_DINO = replace(
    DINO, embed_dim=48, heads=(2, 4, 4, 8), encoder_layers=2, feedforward=512, queries=60, shorter=320, longest=427
)
STEPS = {"clip": 300, "sam": 800, "grounding_dino": 600}
TRAINING: dict[str, dict[str, Any]] = {
    "clip": {"batch_size": 32, "learning_rate": 1e-3, "rotate": True},
    "sam": {"batch_size": 4, "learning_rate": 1e-3, "crop": [240, 640]},
    "grounding_dino": {"batch_size": 4, "learning_rate": 1e-3, "crop": [320, 480]},
}
STRONG: dict[str, dict[str, Any]] = {
    "sam": {"batch_size": 16, "learning_rate": 8e-4},
    "grounding_dino": {"batch_size": 24, "learning_rate": 5e-4},
}


def project(kind: str, home: Path, steps: int, strong: bool = False) -> dict[str, Any]:
    """What project.yaml says, small random networks written beside it."""
    torch.manual_seed(0)
    sample = "textile" if kind == "clip" else "scenes"
    text = yaml.safe_load((PROJECTS / sample / "project.yaml").read_text())
    text |= {"name": kind, "profile": "foundation", "models": {"encoder": "encoder.safetensors"}}
    text["training"] = {"kind": kind, "tune": "all", "layer_decay": 1.0, "steps": steps}
    text["training"] |= TRAINING[kind] | (STRONG.get(kind, {}) if strong else {})
    # Vectors of a random network are all alike: only equal ones count as duplicates.
    text["curation"]["embedding_duplicate"] = 0.0
    text["labelling"] |= {"labellers": [], "masks": False}
    what = clip_net.Design("small", CLIP)
    clip_net.save(home / "encoder.safetensors", clip_net.build(what), what)
    if kind == "sam":
        text["models"]["segmenter"] = "segmenter.safetensors"
        text["classes"] = {name: {} for name in text["classes"] if name not in UNTAUGHT}
        text["source"]["ignored_classes"] = list(UNTAUGHT)
        sam_net.save(home / "segmenter.safetensors", sam_net.build(STRONG_SAM if strong else SAM))
    if kind == "grounding_dino":
        text["models"]["detector"] = "detector.safetensors"
        sizes = STRONG_DINO if strong else DINO
        network = grounding_dino_net.calmed(grounding_dino_net.build(sizes, WordPieces(weights.resolve(TOKENIZER))))
        grounding_dino_net.save(home / "detector.safetensors", network, sizes)
    return text


def prepare(kind: str, folder: Path, steps: int, strong: bool) -> ProjectConfig:
    """A project in a home of its own."""
    home = folder / "projects" / kind
    home.mkdir(parents=True, exist_ok=True)
    (home / "project.yaml").write_text(yaml.safe_dump(project(kind, home, steps, strong), sort_keys=False))
    os.environ |= {"CVP_SAMPLES": str(samples_root().resolve()), "CVP_WEIGHTS": str(weights_root().resolve())}
    os.environ |= {"CVP_HOME": str(folder), "CVP_PROJECTS": str(folder / "projects"), "CVP_STORE": ""}
    return find_project(kind).config


def run(kind: str, stages: str) -> None:
    """`cvp run`; what is there already is not done again."""
    subprocess.run([str(Path(sys.executable).with_name("cvp")), "run", kind, "--select", stages], check=True)


def train_here(config: ProjectConfig, store: Store) -> tuple[pa.Table, pa.Table]:
    """`models` and `learning_curves`, as the asset of that name makes them, without Dagster."""
    images, labels, splits, annotated = (store.read(t) for t in ("images", "labels", "splits", "annotated_images"))
    test = schema.where_in(splits.filter(splits["gold"]), "split", ("test",))
    held_out = schema.where_in(store.read("ground_truth"), "image_id", test["image_id"].to_pylist())
    snapshot = dataset.snapshot(labels, splits, images)
    progress = Steps()
    made = train(config, images, snapshot, splits, annotated, store, Compute(), progress, held_out=held_out)
    return made.models, made.curves


class Steps:
    """Tells how a training goes on, ten times."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if done % max(1, total // 10) == 0:
            print(f"  {done} of {total} steps in {time.monotonic() - self.start:.1f} s", flush=True)


def show(models: pa.Table, curves: pa.Table) -> str:
    """The row of `models`, and what was gained on val and test; returns the checkpoint's path."""
    (model,) = models.to_pylist()
    losses = np.array([step["loss"] for step in json.loads(model["history"])])
    curve = ", ".join(f"{part.mean():.3g}" for part in np.array_split(losses, 10))
    print(
        f"{model['model']}: {len(losses)} steps, {model['seconds']:.0f} s, {model['device']}; loss by tenths: {curve}"
    )
    for point in curves.to_pylist():
        interval = f"[{point['low']:.3f}, {point['high']:.3f}]"
        print(f"  {point['split']} after {point['x']:.0f} steps: {point['y']:.3f} {interval}")
    print(f"  models: {{{foundation_role(model['kind'])}: {model['path']}}}")
    return str(model["path"])


def foundation_role(kind: str) -> str:
    return {"clip": "encoder", "sam": "segmenter", "grounding_dino": "detector"}[kind]


def with_model(config: ProjectConfig, path: str) -> ProjectConfig:
    """The project with the tuned checkpoint in its place."""
    text = config.model_dump(mode="json")
    text["models"][foundation_role(config.training.kind)] = {"checkpoint": path}
    return parse_config(text)


def scenes() -> Iterator[tuple[int, np.ndarray, list[dict[str, Any]], dict[int, str]]]:
    """Held-out photos: number, pixels, annotations, and names of categories."""
    folder = samples_root() / "scenes" / TEST_BATCH
    content = json.loads((folder / "annotations.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    for image in content["images"]:
        mine = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        yield image["id"], np.asarray(Image.open(folder / "images" / image["file_name"]).convert("RGB")), mine, names


def corners(box: list[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y + height]


def show_masks(config: ProjectConfig) -> None:
    """Mask IoU in the boxes of held-out photos: of classes that were taught, of others, and of the plain boxes."""
    segmenter = build_segmenter(config)
    found: dict[str, list[tuple[int, float]]] = {"taught classes": [], "other classes": [], "the boxes themselves": []}
    for number, pixels, objects, names in scenes():
        height, width = pixels.shape[:2]
        boxes = np.array([corners(a["bbox"]) for a in objects], np.float64)
        (drawn,) = segmenter.segment([pixels], [boxes])
        for text, item, box in zip(drawn.masks, objects, boxes.astype(int), strict=True):
            truth = masks.decode(item["segmentation"]["counts"], height, width)
            plain = np.zeros_like(truth)
            plain[box[1] : box[3], box[0] : box[2]] = True
            said = masks.decode(text, height, width)
            taught = "other classes" if names[item["category_id"]] in UNTAUGHT else "taught classes"
            found[taught].append((number, (said & truth).sum() / (said | truth).sum()))
            found["the boxes themselves"].append((number, (plain & truth).sum() / (plain | truth).sum()))
    for name, values in found.items():
        images = sorted({number for number, _ in values})
        total, count = (np.bincount([n for n, _ in values], w) for w in ([v for _, v in values], None))
        total, count = total[images], count[images]
        draws = resamples(len(images), 1000, 0)
        low, high = percentile((draws @ total) / (draws @ count), 0.95)
        print(f"  mask IoU of {name}: {total.sum() / count.sum():.3f} [{low:.3f}, {high:.3f}], {count.sum()} objects")


def show_boxes(config: ProjectConfig) -> None:
    """AP50 in held-out photos, asked in the right words and in shuffled ones, and of boxes whatever their class."""
    names = list(config.classes)
    order = np.random.default_rng(0).permutation(len(names))
    while (order == np.arange(len(names))).any():
        order = np.random.default_rng(int(order[0])).permutation(len(names))
    mixed = {name: names[order[i]] for i, name in enumerate(names)}
    text = config.model_dump(mode="json")
    options = {"box_threshold": 0.0, "text_threshold": 0.0, "floor": 0.01}
    text["labelling"]["labellers"] = [{"name": "tuned", "kind": "profile", "options": options}]
    asked = parse_config(text)
    detector = build_labeller(asked.labelling.labellers[0], ".", asked)
    rows = []
    for number, pixels, _, _ in scenes():
        (found,) = detector.detect([pixels])
        for box, score, name in zip(found.boxes, found.scores, found.classes, strict=True):
            x1, y1, x2, y2 = box.tolist()
            rows.append({"image_id": number, "name": name, "score": float(score), "bbox": [x1, y1, x2 - x1, y2 - y1]})
    print(f"  AP50 by words: {ap50(rows, {n: n for n in names}):.3f}")
    print(f"  AP50 of the same boxes with the words shuffled (chance): {ap50(rows, mixed):.3f}")
    print(f"  AP50 of boxes whatever their class: {ap50(rows, {n: n for n in names}, by_class=False):.3f}")


def ap50(rows: list[dict[str, Any]], meaning: dict[str, str], by_class: bool = True) -> float:
    """pycocotools' AP at IoU 0.5, each row's name taken for `meaning` of it."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(samples_root() / "scenes" / TEST_BATCH / "annotations.json"))
        numbers = {c["name"]: c["id"] for c in truth.loadCats(truth.getCatIds())}
        said = truth.loadRes([{**row, "category_id": numbers[meaning[row["name"]]]} for row in rows])
        judged = COCOeval(truth, said, "bbox")
        judged.params.useCats = int(by_class)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return float(judged.stats[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=sorted(STEPS))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--strong", action="store_true", help="larger networks and batches")
    parser.add_argument("--stage", choices=("before", "after"), help="of training, the latter without Dagster")
    parser.add_argument("--folder", type=Path, default=Path(".cvp/learning"))
    given = parser.parse_args()
    folder = given.folder.resolve()
    config = prepare(given.kind, folder, given.steps or STEPS[given.kind], given.strong)
    store = Store(str(folder / "store" / given.kind))
    if given.stage != "after":
        run(given.kind, "collection,curation,labelling")
    if given.stage == "before":
        return
    if given.stage == "after":
        tables = train_here(config, store)
    else:
        run(given.kind, "training")
        tables = store.read("models"), store.read("learning_curves")
    tuned = with_model(config, show(*tables))
    if given.kind == "sam":
        show_masks(tuned)
    if given.kind == "grounding_dino":
        show_boxes(tuned)


if __name__ == "__main__":
    main()
