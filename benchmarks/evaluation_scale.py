"""What evaluation costs with many images, models and slices: core-seconds and memory of each of its tables.

Run: python benchmarks/evaluation_scale.py [--images N] [--detections N] [--models N] [--slices N]
    [--compute inline|local|auto] [--profile]

Rows are made up: half of the images are val, half test, and each model has detections of its own. Each step runs in a
process of its own, in which rows are made before it is measured.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from evaluation import anywhere, rows
from spent import spent

from pipeline import failures, schema, slices
from pipeline.compute import Compute
from pipeline.config import ProjectConfig, parse_config
from pipeline.evaluate import Spread, compare, evaluate, image_errors
from pipeline.evaluate.run import scenes
from pipeline.quality import MEASURES
from pipeline.store import Store

CLASSES = [f"class{k}" for k in range(10)]
OBJECTS = 5  # an image
DIMENSIONS = 64


@dataclass(frozen=True)
class World:
    """What the steps work on."""

    images: int
    detections: int
    models: int
    slices: int
    compute: str

    def spread(self, folder: str) -> Spread:
        """Two workers, where the compute has some."""
        return Spread(Compute(self.compute), Store(folder).staging("evaluation", None, "f"))

    @property
    def config(self) -> ProjectConfig:
        return parse_config({"name": "p", "classes": {c: {} for c in CLASSES}, "source": {"uri": "."}})

    @cached_property
    def ids(self) -> list[str]:
        return [f"{i:07d}" for i in range(self.images)]

    @cached_property
    def drawn(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image, class and xywh of people's objects."""
        random, n = np.random.default_rng(0), OBJECTS * self.images
        return random.integers(0, self.images, n), random.integers(0, len(CLASSES), n), anywhere(random, n)

    @cached_property
    def truth(self) -> pa.Table:
        image, kind, boxes = self.drawn
        return rows("ground_truth", self.ids, CLASSES, image, kind, boxes)

    @cached_property
    def said(self) -> pa.Table:
        return pa.concat_tables([self.of_model(k) for k in range(self.models)])

    def of_model(self, number: int) -> pa.Table:
        """Two thirds of its detections lie near an object, most under its class."""
        random, n = np.random.default_rng(1 + number), self.detections // self.models
        image, kind, boxes = self.drawn
        source, near = random.integers(0, len(image), n), random.random(n) < 2 / 3
        found = boxes[source] + random.normal(0, 0.05 + 0.02 * number, (n, 4)) * np.tile(boxes[source, 2:], (1, 2))
        found[~near] = anywhere(random, int((~near).sum()))
        found[:, 2:] = found[:, 2:].clip(2)
        named = np.where(random.random(n) < 0.9, kind[source], random.integers(0, len(CLASSES), n))
        score = np.where(near, random.beta(4, 2, n), random.beta(1.2, 6, n)).round(3)
        made = rows("detections", self.ids, CLASSES, image[source], named, found, scores=score)
        at = made.column_names.index("producer")
        return made.set_column(at, made.schema.field(at), pa.array([f"m{number}@1#0"] * n))

    @cached_property
    def splits(self) -> pa.Table:
        n = self.images
        split = np.where(np.arange(n) % 2, "val", "test").tolist()
        columns = {"image_id": self.ids, "batch": ["b"] * n, "split": split, "location": self.locations}
        return schema.table("splits").from_columns({**columns, "gold": [True] * n})

    @property
    def locations(self) -> list[str]:
        return [f"site-{i % 200}" for i in range(self.images)]

    @cached_property
    def members(self) -> pa.Table:
        """Slices of a tenth of the images each."""
        random = np.random.default_rng(9)
        inside = [np.flatnonzero(random.random(self.images) < 0.1) for _ in range(self.slices)]
        names = [f"s{k}" for k, some in enumerate(inside) for _ in some]
        where = [self.ids[i] for some in inside for i in some]
        return schema.table("declared_slices").from_columns({"slice": names, "image_id": where, "definition": names})

    @cached_property
    def photos(self) -> pa.Table:
        n = self.images
        same = {"width": 640, "height": 640, "photo_width": 640, "photo_height": 640, "tile_x": 0, "tile_y": 0}
        same |= {"batch": "b", "format": "JPEG", "mode": "RGB", "orientation": 1, "bytes": 100_000}
        columns = {name: [value] * n for name, value in same.items()} | {"location": self.locations}
        columns["attributes"] = pa.array([[]] * n, pa.map_(pa.string(), pa.string()))
        return schema.table("images").from_columns(
            columns | dict.fromkeys(("image_id", "parent_id", "uri", "file_name"), self.ids)
        )

    @cached_property
    def quality(self) -> pa.Table:
        random, n = np.random.default_rng(5), self.images
        measured = {name: random.random(n).astype(np.float32) for name in MEASURES if name != "phash"}
        columns = {"image_id": self.ids, "batch": ["b"] * n, "phash": np.zeros(n, np.int64), "issues": [[]] * n}
        return schema.table("quality").from_columns({**columns, **measured})

    @cached_property
    def vectors(self) -> np.ndarray:
        drawn = np.random.default_rng(6).normal(size=(self.images, DIMENSIONS)).astype(np.float32)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    @cached_property
    def thresholds(self) -> pa.Table:
        """The rows of `evaluation` that later tables read."""
        same = {"split": "test", "slice": "all", "metric": "threshold", "value": 0.5, "support": 1, "images": 1}
        return schema.table("evaluation").from_rows(
            [{"model": f"m{k}@1#0", "class_name": c, **same} for k in range(self.models) for c in CLASSES]
        )

    @cached_property
    def facts(self) -> pa.Table:
        return slices.per_image(self.photos, self.quality, self.splits, slices.image_counts(self.truth, self.ids))

    @cached_property
    def errors(self) -> pa.Table:
        random, parts = np.random.default_rng(7), []
        for k in range(self.models):
            wrong = random.integers(0, 5, self.images)
            columns = {"model": [f"m{k}@1#0"] * self.images, "split": self.splits["split"], "image_id": self.ids}
            parts.append(pa.table({**columns, "right": 5 - wrong, "wrong": wrong, "error": wrong / 5}))
        return pa.concat_tables(parts)


# -- steps: what each reads is made first, by touching it; it says how many rows it gave --------------------------

Step = tuple[tuple[str, ...], Callable[[World], int]]
_ROWS = ("said", "truth", "splits")


def matching(w: World) -> int:
    names = [f"m{k}@1#0" for k in range(w.models)]
    return sum(len(scene.ranking.place) for *_, scene in scenes(w.said, w.truth, w.splits, w.config, names))


def evaluation(w: World) -> int:
    with tempfile.TemporaryDirectory() as folder:
        found = evaluate(w.said, w.truth, w.splits, w.members, w.config, spread=w.spread(folder))
    return sum(t.num_rows for t in found.values())


def comparisons(w: World) -> int:
    more = {"evaluation": w.thresholds}
    with tempfile.TemporaryDirectory() as folder:
        return compare(w.said, w.truth, w.splits, w.members, w.config, **more, spread=w.spread(folder)).num_rows


def errors(w: World) -> int:
    return image_errors(w.said, w.truth, w.splits, w.thresholds, w.config).num_rows


def found_slices(w: World) -> int:
    found = slices.slice_table(w.members, w.errors, w.facts, w.ids, w.vectors, w.config.evaluation)
    return found["slices"].num_rows


def failed(w: World) -> int:
    none = (schema.table("label_errors").empty(), schema.table("masks").empty())
    return failures.find(
        w.said, w.truth, w.photos, w.quality, w.splits, w.thresholds, *none, w.ids, w.vectors, w.config
    ).num_rows


STEPS: dict[str, Step] = {
    "matching": (_ROWS, matching),
    "evaluation": ((*_ROWS, "members"), evaluation),
    "comparisons": ((*_ROWS, "members", "thresholds"), comparisons),
    "errors": ((*_ROWS, "thresholds"), errors),
    "slices": (("members", "errors", "facts", "vectors"), found_slices),
    "failures": ((*_ROWS, "photos", "quality", "thresholds", "vectors"), failed),
}


def measure(step: str, world: World, profile: bool) -> dict[str, Any]:
    needed, work = STEPS[step]
    for name in needed:
        getattr(world, name)
    profiler = cProfile.Profile()
    found = spent(lambda: profiler.runcall(work, world) if profile else work(world))
    if profile:
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(45)
    return {"cores": found.cores, "peak": found.peak, "rows": found.result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("images", 100_000), ("detections", 1_000_000), ("models", 4), ("slices", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--compute", choices=["inline", "local", "auto"], default="inline")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    world = World(given.images, given.detections, given.models, given.slices, given.compute)
    if given.alone:
        print(json.dumps(measure(given.steps[0], world, given.profile)))
        return
    print(f"{'step':<12}{'core-s':>9}{'peak MiB':>10}{'rows':>12}")
    for step in given.steps:
        size = [f"--{n}={getattr(given, n)}" for n in ("images", "detections", "models", "slices", "compute")]
        command = [sys.executable, __file__, "--alone", *size, "--steps", step, *["--profile"] * given.profile]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(f"{step:<12} failed: exit code {done.returncode}", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"{step:<12}{found['cores']:>9.1f}{found['peak']:>10.0f}{found['rows']:>12,}", flush=True)


if __name__ == "__main__":
    main()
