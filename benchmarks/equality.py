"""The same tables wherever the work runs: inline, local processes, Ray on one node, on three, on three of which one is
killed in the middle, and on two with photos and tables on S3.

Each way runs a project from photos to verdict in a store of its own, through `cvp run`; Ray's nodes are `ray start`
on this machine, each with one CPU and a loopback address, reached through ray://; S3 is SeaweedFS. Content hashes of
every table are compared, and of the vectors in LanceDB. Not compared: where files lie, how long things took, and what
is reckoned from that (see TIMED).

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

from pipeline import s3, schema
from pipeline.config import projects_root, samples_root, weights_root
from pipeline.ids import content_hash
from pipeline.store import Store

# Columns that hold places and durations, and tables that are made of them: they differ between any two runs.
TIMED = {
    "images": {"uri"},
    "models": {"path", "seconds"},
    "deployment": {"path", "milliseconds_torch", "milliseconds_onnx"},
    "slice_history": {"at"},
    "alarms": {"at"},
}
RECKONED = {"costs", "verdict", "report", "warehouse"}
WAYS = {  # and Ray nodes
    "inline": 0,
    "local": 0,
    "ray, one node": 1,
    "ray, three nodes": 3,
    "one of them lost": 3,
    "ray, two nodes, S3": 2,
}
# On S3 a DuckDB file needs an extension that DuckDB fetches from the internet; the report reads from it.
BUT_WAREHOUSE = (
    "collection,curation,labelling,training,evaluation,review,choice,deployment,reference,drift,alarms,costs,prices"
)
RUN_SECONDS = 3600
BUCKET = "tables"
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

    options = s3.lance() if store.uri.startswith("s3://") else None
    database = lancedb.connect(f"{store.uri}/_vectors", storage_options=options)
    keys = ["image_id", "batch", "encoder", "patch"]
    tables = [database.open_table(name).to_arrow() for name in sorted(database.list_tables().tables)]
    rows = [table.select([*keys, "vector"]) for table in tables]
    return pa.concat_tables(rows).sort_by([(name, "ascending") for name in keys]) if rows else pa.table({})


class Way:
    """A project in a store of its own, computed one way.

    Args:
        stores: where its store lies, if on S3 (s3://BUCKET/PREFIX); its photos are copied to there, too.
    """

    def __init__(
        self, root: Path, project: Path, name: str, cluster: Nodes | None = None, stores: str = "", **settings: object
    ) -> None:
        self.cluster, self.name = cluster, project.name
        self.folder = root / name.replace(" ", "-")
        self.stores = stores or str(self.folder / "store")
        target = self.folder / "projects" / project.name
        shutil.copytree(project, target)
        given = yaml.safe_load((target / "project.yaml").read_text())
        if stores:
            given["source"]["uri"] = _uploaded(samples_root() / given["source"]["uri"].removeprefix("samples://"))
        (target / "project.yaml").write_text(yaml.safe_dump(given | settings, sort_keys=False))

    @property
    def store(self) -> Store:
        return Store(f"{self.stores}/{self.name}")

    @property
    def environment(self) -> dict[str, str]:
        """Of a run of it."""
        left_out = ("CVP_STORE", "DAGSTER_HOME", "RAY_ADDRESS")
        return {k: v for k, v in os.environ.items() if k not in left_out} | {
            "CVP_HOME": str(self.folder),
            "CVP_STORE": self.stores,
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


def _uploaded(folder: Path) -> str:
    """A folder of photos, copied to S3."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        s3.client().upload_file(str(path), BUCKET, f"photos/{folder.name}/{path.relative_to(folder).as_posix()}")
    return f"s3://{BUCKET}/photos/{folder.name}"


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
        with _stores(root / "s3", name.endswith("S3")) as stores, _cluster(count) as cluster:
            mode = cluster.address if cluster else name
            way = Way(root / project.name, project, name, cluster, stores, compute=mode, workers=max(2, count))
            lost = name == "one of them lost"
            more = [*options, "--select", BUT_WAREHOUSE] if stores else options
            found = disturbed(way, 2, *more) if lost else way.finish(way.start(*more))
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
def _stores(folder: Path, wanted: bool) -> Iterator[str]:
    """A prefix on an S3 server of our own, whose settings this process and the nodes have; "" where not wanted."""
    if not wanted:
        yield ""
        return
    sys.path.append(str(Path(__file__).parents[1]))
    from tests.weed import serving

    before = dict(os.environ)
    with serving(folder) as server:
        os.environ.update(server.environment)
        try:
            yield f"s3://{BUCKET}/stores"
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def _cluster(count: int) -> Iterator[Nodes | None]:
    if not count:
        yield None
        return
    with nodes(count) as made:
        yield made


if __name__ == "__main__":
    main()
