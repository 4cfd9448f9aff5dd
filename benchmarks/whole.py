"""The pipeline as a whole over drawn rows: every table that needs no model, made by its own recipe.

Run: python benchmarks/whole.py [--images N] [--batches N] [--gold N] [--steps NAME ...] [--first N]

Drawn are `images`, labels of people on some of them, `quality`, vectors of 256 numbers, and two boxes an image from a
detector; the tables after them are made in the order of the graph, those with batches batch after batch (with --first,
only so many batches). Each step runs in a process of its own; its imports are in the peak but not in the core-seconds.
At the end: `cvp status`, a tick of the sensor and of the schedule `new_data`, three tables read, and what README asks
the warehouse. For thousands of batches: `--first 1 --steps draw seal status sensor schedule reading queries`, where all
batches have the first one's files, and all tables but the drawn ones no rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import yaml
from spent import spent

from assets import launch
from assets.automation import batch_sensor, schedules
from assets.graph import recipes
from assets.labelling import labellers_of
from assets.resources import ComputeResource, StoreResource, resources, s3_resource
from assets.tables import Recipe, Work, run_recipe
from pipeline import schema, warehouse
from pipeline.config import Project, find_project
from pipeline.models.tiny import ENCODER, TinyEncoder
from pipeline.vectors import Vectors, vector_schema

NAME, DIMENSIONS, BOXES, CLASSES = "drawn", 256, 2, ("car", "person")
TinyEncoder.dimensions = DIMENSIONS
_QUERIES = {
    "trust": "SELECT class_name, threshold, coverage FROM trust WHERE certified",
    "labels": "SELECT class_name, status, count(*) FROM labels GROUP BY ALL ORDER BY ALL",
    "brightest": "SELECT i.location, q.brightness FROM images i JOIN quality q USING (image_id, batch)"
    " ORDER BY 2 DESC LIMIT 10",
    "verdict": "SELECT * FROM verdict",
}


class World:
    """A project in a folder, and what its drawn tables hold."""

    def __init__(self, root: Path, images: int, batches: int, gold: int) -> None:
        self.root, self.size, self.batches = root, images // batches, batches
        self.gold_each = max(1, gold // batches)

    @property
    def arguments(self) -> list[str]:
        """That make it again in another process."""
        return [str(self.root), str(self.size * self.batches), str(self.batches), str(self.gold_each * self.batches)]

    def name(self, batch: int) -> str:
        return f"b{batch:06d}"

    @cached_property
    def project(self) -> Project:
        return find_project(NAME)

    def found(self) -> None:
        """The project's file, and an empty folder for each batch of its source."""
        settings = {
            "name": NAME,
            "profile": "tiny",
            "classes": {name: {} for name in CLASSES},
            "source": {"uri": str(self.root / "photos")},
            "labelling": {"labellers": [{"name": "drawn", "kind": "profile"}], "tags": False},
            "training": {"kind": "none"},
            "trust": {"target": 0.5},
            "evaluation": {"slices": [{"name": "dusk", "where": "brightness < 0.3"}]},
        }
        (self.root / "projects" / NAME).mkdir(parents=True)
        (self.root / "projects" / NAME / "project.yaml").write_text(yaml.safe_dump(settings))
        for batch in range(self.batches):
            (self.root / "photos" / self.name(batch)).mkdir(parents=True)

    def work(self, batch: str | None, sources: Callable[[], Mapping[str, str]] = dict) -> Work:
        project = self.project
        compute = ComputeResource().of(project)
        return Work(project, StoreResource().open(project), compute, s3_resource(), batch, sources=sources)

    def drawn(self, batch: int) -> dict[str, dict[str, pa.Table]]:
        """Rows of one batch, by recipe and table."""
        random, size, name = np.random.default_rng(batch), self.size, self.name(batch)
        ids = np.array([f"{v:016x}{batch * size + i:048x}" for i, v in enumerate(random.integers(0, 2**62, size))])
        folder = self.root / "photos" / name
        sizes = {"width": 640, "height": 480, "photo_width": 640, "photo_height": 480, "tile_x": 0, "tile_y": 0}
        same = sizes | {"format": "JPEG", "mode": "RGB", "orientation": 1, "bytes": 100_000, "batch": name}
        columns = {"image_id": ids, "parent_id": ids, "file_name": [f"{i:07d}.jpg" for i in range(size)]}
        columns |= {"uri": [f"{folder}/{f}" for f in columns["file_name"]]}
        columns |= {"location": [f"{name}/{f}" for f in columns["file_name"]]}
        columns |= {key: [value] * size for key, value in same.items()}
        columns |= {"attributes": pa.array([[]] * size, schema.table("images").schema.field("attributes").type)}
        labelled = ids[np.sort(random.choice(size, min(self.gold_each, size), replace=False))]
        corners = random.uniform(0, 300, (size * BOXES, 4)).astype(np.float32)
        corners[:, 2:] = corners[:, :2] + random.uniform(20, 150, (size * BOXES, 2))
        owner, classes = np.repeat(ids, BOXES), np.array(CLASSES)[random.integers(0, 2, size * BOXES)]
        sure = np.isin(owner, labelled)
        moved = (corners + random.normal(0, 4, corners.shape)).clip(0, [640, 480] * 2)
        said = {"image_ids": owner, "batch": name, "producer": labellers_of(self.project)[0], "classes": classes}
        truth = {"image_ids": owner[sure], "batch": name, "producer": "human", "classes": classes[sure]}
        source = {"image_id": labelled, "batch": [name] * len(labelled), "source": ["drawn"] * len(labelled)}
        empty = {t: schema.table(t).empty() for t in ("rejected_files", "proposals", "unanswered", "yields")}
        return {
            "images": {"images": _table("images", columns), "rejected_files": empty["rejected_files"]},
            "ground_truth": {
                "ground_truth": schema.annotations("ground_truth", **truth, boxes=corners[sure]),
                "annotated_images": _table("annotated_images", source),
            },
            "quality": {"quality": self._quality(ids, name, random)},
            "embeddings": {"embeddings": self._embedded(ids, name)},
            "detections": {
                "detections": schema.annotations(
                    "detections", **said, boxes=moved, scores=random.uniform(0.05, 1, len(owner))
                ),
                **{t: empty[t] for t in ("proposals", "unanswered", "yields")},
            },
        }

    def _quality(self, ids: Any, name: str, random: np.random.Generator) -> pa.Table:
        spec = schema.table("quality")
        measured = {c.name: random.uniform(0.2, 0.8, len(ids)) for c in spec.columns if c.type == schema.FLOAT}
        measured |= {"sharpness": random.uniform(100, 900, len(ids)), "entropy": random.uniform(6, 8, len(ids))}
        hashes = random.integers(-(2**63), 2**63, len(ids))
        copies = random.choice(len(ids), (2, len(ids) // 50), replace=False)
        hashes[copies[0]] = hashes[copies[1]] ^ 1
        columns = {"image_id": ids, "batch": [name] * len(ids), "phash": hashes, "issues": [[]] * len(ids)}
        return _table("quality", columns | measured)

    def _embedded(self, ids: Any, name: str) -> pa.Table:
        columns = {"image_id": ids, "batch": [name] * len(ids), "encoder": [ENCODER] * len(ids)}
        return _table("embeddings", columns | {"patch": [0] * len(ids), "dimensions": [DIMENSIONS] * len(ids)})

    def vectors(self, batch: int, ids: list[str]) -> Iterator[pa.Table]:
        """Unit vectors of a batch, in parts of a thousand."""
        random = np.random.default_rng([batch, 1])
        for start in range(0, len(ids), 1000):
            some = ids[start : start + 1000]
            points = random.normal(size=(len(some), DIMENSIONS)).astype(np.float32)
            points /= np.linalg.norm(points, axis=1, keepdims=True)
            columns = {"image_id": some, "batch": [self.name(batch)] * len(some), "encoder": [ENCODER] * len(some)}
            columns |= {"patch": np.zeros(len(some), np.int32)}
            columns |= {"vector": pa.FixedSizeListArray.from_arrays(pa.array(points.ravel()), DIMENSIONS)}
            yield pa.table(columns, schema=vector_schema(DIMENSIONS))


def _table(name: str, columns: Mapping[str, Any]) -> pa.Table:
    typed = {c.name: c.type for c in schema.table(name).columns}
    return schema.table(name).from_columns({k: pa.array(v, typed[k]) for k, v in columns.items()})


# -- steps ----------------------------------------------------------------------------------------


def draw(world: World, first: int) -> str:
    """The tables that need models or photos, each under the fingerprint of the work that would make it."""
    known = world.work("").source.fingerprints()
    made = {r.name: r for r in recipes(world.project)}
    for batch in range(min(first, world.batches)):
        work = world.work(world.name(batch), lambda: known)
        for name, tables in world.drawn(batch).items():
            _write(made[name], work, tables)
    return f"{min(first, world.batches):,} batches of {world.size:,}"


def vectors(world: World, first: int) -> str:
    """A vector of each image, in LanceDB."""
    kept, store = Vectors(world.project.store_uri), StoreResource().open(world.project)
    for batch in range(world.batches):
        ids = store.read("images", world.name(batch), ["image_id"]).column("image_id").to_pylist()
        kept.replace_batch(world.name(batch), ENCODER, world.vectors(batch, ids))
    return f"{world.batches:,} commits of {world.size:,}"


def seal(world: World, first: int) -> str:
    """All tables after the drawn ones of the first batch, without rows, and then its files once for each other batch:
    what is asked of them costs the same."""
    for recipe in recipes(world.project):
        if recipe.name not in _DRAWN:
            empty = {table: schema.table(table).empty() for table in recipe.outputs}
            _write(recipe, world.work(world.name(0) if recipe.batched else None), empty)
    made = list(Path(world.project.store_uri).glob(f"*/batch={world.name(0)}/data.parquet"))
    for path in made:
        for batch in map(world.name, range(1, world.batches)):
            copy = path.parents[1] / f"batch={batch}" / path.name
            copy.parent.mkdir()
            copy.hardlink_to(path)
    return f"{len(made) * world.batches:,} files"


def _write(recipe: Recipe, work: Work, tables: Mapping[str, pa.Table]) -> None:
    mark = recipe.fingerprint(work)
    assert mark is not None, recipe.name
    for table, rows in tables.items():
        told = {"code": recipe.code_version, "checks": {}, "at": ""}
        work.store.write(table, rows, work.batch, fingerprint=recipe.stamp(work, mark), written_by=told)


def make(world: World, name: str, first: int) -> str:
    """The tables of one recipe."""
    (recipe,) = (r for r in recipes(world.project) if r.name == name)
    batches = [world.name(b) for b in range(min(first, world.batches))] if recipe.batched else [None]
    rows = 0
    for batch in batches:
        done = run_recipe(recipe, world.work(batch))
        blocked = [n for n, finding in done.findings.items() if not finding.passed]
        assert done.contents, blocked
        rows += int(done.metadata[name]["dagster/row_count"])
    return f"{rows:,} rows" + (f", {len(batches):,} batches" if recipe.batched else "")


def status(world: World, first: int) -> str:
    found = launch.status(NAME)
    counts = found.column("state").value_counts().to_pylist()
    return ", ".join(f"{c['counts']:,} {c['values']}" for c in counts)


def sensor(world: World, first: int) -> str:
    with launch.instance() as instance:
        context = dg.build_sensor_context(instance=instance, resources=resources())
        found = batch_sensor(world.project)(context)
        return f"{sum(len(r.partition_keys) for r in found.dynamic_partitions_requests):,} batches"


def schedule(world: World, first: int) -> str:
    (tick, *_) = schedules(world.project)
    with launch.instance() as instance:
        asked = tick(dg.build_schedule_context(instance=instance))
        return type(asked).__name__


def reading(world: World, first: int) -> str:
    store = StoreResource().open(world.project)
    return ", ".join(f"{store.read(name).num_rows:,} {name}" for name in ("images", "detections", "quality"))


def queries(world: World, first: int) -> str:
    path = warehouse.build(StoreResource().open(world.project))
    found = {name: spent(lambda sql=sql: warehouse.query(path, sql).num_rows) for name, sql in _QUERIES.items()}
    return ", ".join(f"{name} {s.result} rows {s.cores:.1f} core-s" for name, s in found.items())


_DRAWN = ("images", "ground_truth", "quality", "embeddings", "detections")
_QUESTIONS: dict[str, Callable[[World, int], str]] = {
    f.__name__: f for f in (status, sensor, schedule, reading, queries)
}


def steps(project: Project) -> list[str]:
    """Names of all steps, in order."""
    return ["draw", "vectors", *(r.name for r in recipes(project) if r.name not in _DRAWN), *_QUESTIONS]


def step(name: str, world: World, first: int) -> None:
    """In the measured process."""
    work = {"draw": draw, "vectors": vectors, "seal": seal, **_QUESTIONS}.get(name)
    found = spent(lambda: work(world, first) if work else make(world, name, first))
    print(json.dumps({"wall": found.wall, "cores": found.cores, "peak": found.peak, "found": found.result}))


def main() -> None:
    if sys.argv[1:2] == ["--step"]:
        name, first, root, *size = sys.argv[2:]
        step(name, World(Path(root), *map(int, size)), int(first))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--gold", type=int, default=1_000, help="images that people have labelled")
    parser.add_argument("--steps", nargs="+")
    parser.add_argument("--skip", nargs="+", default=[])
    parser.add_argument("--first", type=int, default=10**9)
    parser.add_argument("--keep", type=Path, help="a folder to keep it in, or to go on with")
    given = parser.parse_args()
    root = given.keep or Path(tempfile.mkdtemp())
    os.environ |= {"CVP_HOME": f"{root}/home", "CVP_PROJECTS": f"{root}/projects", "CVP_STORE": ""}
    os.environ.pop("DAGSTER_HOME", None)
    world = World(root, given.images, given.batches, given.gold)
    try:
        if not (root / "projects").is_dir():
            world.found()
        print(f"{given.images:,} images in {given.batches:,} batches, {given.gold:,} of them labelled by people")
        print(f"{'step':<18}{'s':>8}{'core-s':>8}{'peak MiB':>10}  found")
        for name in given.steps or steps(world.project):
            if name in given.skip:
                continue
            command = [sys.executable, __file__, "--step", name, str(given.first), *world.arguments]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name} failed: {done.stderr[-3000:]}")
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{name:<18}{found['wall']:>8.1f}{found['cores']:>8.1f}{found['peak']:>10.0f}  {found['found']}",
                flush=True,
            )
    finally:
        if not given.keep:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
