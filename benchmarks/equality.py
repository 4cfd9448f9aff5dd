"""The same tables wherever the work runs: inline, local processes, Ray on one node, on three, and on three of which
one is killed in the middle.

Each way runs a project from photos to verdict in a store of its own, through `cvp run`; Ray's nodes are `ray start`
on this machine, each with one CPU and a loopback address, reached through ray://. Content hashes of every table are
compared, and of the vectors in LanceDB. Not compared: where files lie, how long things took, and what is reckoned
from that (see TIMED).

Run: OMP_NUM_THREADS=1 python benchmarks/equality.py [--project trees] [--project scenes] [--way NAME ...] [--batch B …]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import yaml
from ray_nodes import Nodes, nodes

from pipeline import schema
from pipeline.config import projects_root, samples_root, weights_root
from pipeline.ids import content_hash
from pipeline.store import Store

# Columns that hold places and durations, and tables that are made of them: they differ between any two runs.
TIMED = {
    "models": {"path", "seconds"},
    "deployment": {"path", "milliseconds_torch", "milliseconds_onnx"},
    "slice_history": {"at"},
    "alarms": {"at"},
}
RECKONED = {"costs", "verdict", "report", "warehouse"}
WAYS = {"inline": 0, "local": 0, "ray, one node": 1, "ray, three nodes": 3, "one of them lost": 3}  # and Ray nodes
RUN_SECONDS = 3600
MIDDLE = "detections"


def contents(store: Store) -> dict[str, str]:
    """Content hash of every table, by table and batch; and of the vectors."""
    found = {}
    for name, table in schema.TABLES.items():
        if name in RECKONED:
            continue
        for batch in store.batches(name) if table.batched else [None]:
            rows = store.read_or_empty(name, batch)
            found[f"{name}/{batch or ''}"] = content_hash(rows.drop_columns(sorted(TIMED.get(name, set()))))
    return found | {"vectors/": content_hash(_vectors(store))}


def _vectors(store: Store) -> pa.Table:
    """What LanceDB holds, without the number of the commit that brought it."""
    import lancedb

    database, keys = lancedb.connect(f"{store.uri}/_vectors"), ["image_id", "batch", "encoder", "patch"]
    tables = [database.open_table(name).to_arrow() for name in sorted(database.list_tables().tables)]
    rows = [table.select([*keys, "vector"]) for table in tables]
    return pa.concat_tables(rows).sort_by([(name, "ascending") for name in keys]) if rows else pa.table({})


class Way:
    """A project in a store of its own, computed one way."""

    def __init__(self, root: Path, project: Path, name: str, cluster: Nodes | None = None, **settings: object) -> None:
        self.cluster, self.name = cluster, project.name
        self.folder = root / name.replace(" ", "-")
        target = self.folder / "projects" / project.name
        shutil.copytree(project, target)
        given = yaml.safe_load((target / "project.yaml").read_text())
        (target / "project.yaml").write_text(yaml.safe_dump(given | settings, sort_keys=False))

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "store" / self.name))

    @property
    def environment(self) -> dict[str, str]:
        """Of a run of it."""
        left_out = ("CVP_STORE", "DAGSTER_HOME", "RAY_ADDRESS")
        return {k: v for k, v in os.environ.items() if k not in left_out} | {
            "CVP_HOME": str(self.folder),
            "CVP_PROJECTS": str(self.folder / "projects"),
            "CVP_WEIGHTS": str(weights_root()),
            "CVP_SAMPLES": str(samples_root()),
            **(self.cluster.environment if self.cluster else {}),
        }

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """`cvp run` on it."""
        command = [Path(sys.executable).with_name("cvp"), "run", self.name, *options]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def finish(self, running: subprocess.Popen[bytes]) -> dict[str, str]:
        """Wait for its end; the hashes of its tables."""
        if running.wait(RUN_SECONDS):
            raise SystemExit(f"{self.folder.name}: failed\n{(self.folder / 'log').read_text()[-3000:]}")
        return contents(self.store)

    def until_in_the_middle(self, running: subprocess.Popen[bytes]) -> None:
        """Wait until some shards of a batch are finished and its table is not."""
        staging = self.folder / "store" / self.name / "_staging" / MIDDLE
        while running.poll() is None and not list(staging.glob("*/*/*.parquet")):
            time.sleep(0.05)


def disturbed(way: Way, node: int, *options: str) -> dict[str, str]:
    """Run with a node killed in the middle; the hashes of its tables."""
    assert way.cluster is not None
    running = way.start(*options)
    way.until_in_the_middle(running)
    way.cluster.kill(node)
    if running.poll() is not None:
        raise SystemExit(f"{way.folder.name}: the node was not killed in the middle")
    return way.finish(running)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", action="append", help="default: trees")
    parser.add_argument("--way", action="append", choices=list(WAYS), help="beside inline; default: all")
    parser.add_argument("--batch", action="append", default=[], help="only this one, as in cvp run")
    parser.add_argument("--epochs", type=float, default=0.02, help="of training, as in cvp run")
    given = parser.parse_args()
    options = ["--epochs", str(given.epochs), *(word for batch in given.batch for word in ("--batch", batch))]
    unequal = 0
    with tempfile.TemporaryDirectory() as place:
        for name in given.project or ["trees"]:
            unequal += compared(Path(place), projects_root() / name, given.way or list(WAYS), options)
    if unequal:
        raise SystemExit(f"{unequal} tables differ")


def compared(root: Path, project: Path, ways: list[str], options: list[str]) -> int:
    """Run a project every way and print the comparison; the number of tables and batches that differ."""
    expected: dict[str, str] = {}
    unequal = 0
    for name in dict.fromkeys(["inline", *ways]):
        count = WAYS[name]
        started = time.monotonic()
        with _cluster(count) as cluster:
            mode = cluster.address if cluster else name
            way = Way(root / project.name, project, name, cluster, compute=mode, workers=max(2, count))
            lost = name == "one of them lost"
            found = disturbed(way, 2, *options) if lost else way.finish(way.start(*options))
        expected = expected or found
        keys = sorted({*expected, *found})
        different = [key for key in keys if found.get(key) != expected.get(key)]
        unequal += len(different)
        tables = len({key.split("/")[0] for key in keys})
        print(
            f"{project.name}, {name:<18}{len(keys):>4} batches of {tables} tables:{len(different):>4} different, in "
            f"{time.monotonic() - started:.0f} s  {', '.join(different)}",
            flush=True,
        )
    return unequal


@contextmanager
def _cluster(count: int) -> Iterator[Nodes | None]:
    if not count:
        yield None
        return
    with nodes(count) as made:
        yield made


if __name__ == "__main__":
    main()
