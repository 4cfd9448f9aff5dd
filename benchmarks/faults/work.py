"""The work that is disturbed: a few statistics of generated photos, on two workers, into a store and LanceDB.

Run as a script with a folder, it does the work that lies there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measures import Measures
from PIL import Image

from pipeline import ids, schema
from pipeline.compute import Compute, map_batches
from pipeline.store import Store
from pipeline.vectors import Vectors, vector_schema

PHOTOS, BATCH, PER_SHARD, WORKERS = 160, 4, 4, 2
SHARD = BATCH * PER_SHARD
END_SECONDS = 240
_ZEROS = ("shadows", "highlights", "sharpness", "thumbnail_sharpness", "entropy", "colourfulness")
_ZEROS += ("dark_share", "bright_share", "aspect_ratio")
_FORKS = get_context("forkserver")  # a process whose imports are done, for every run
# What LanceDB imports at length, but not itself: it has threads, which do not survive a fork.
_FORKS.set_forkserver_preload(["work", "lance_namespace", "pyarrow.dataset"])


class Forked:
    """A process that is forked instead of started anew, with the calls of `subprocess.Popen` that are used here."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._process = _FORKS.Process(target=_forked, args=(folder, environment))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self.pid} did not end within {timeout} s")
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


Process = Forked | subprocess.Popen[bytes]


@dataclass
class Try:
    """One run of the work in a folder of its own, which says where its photos and its store are, and who does it."""

    folder: Path
    failed: list[pa.Table] = field(default_factory=list)

    @classmethod
    def new(cls, folder: Path, photos: str, store: str = "", poison: str = "", compute: str = "local") -> Try:
        (folder / "notes").mkdir(parents=True)
        told = {"photos": photos, "store": store or str(folder / "store"), "poison": poison, "compute": compute}
        (folder / "work.json").write_text(json.dumps(told))
        return cls(folder)

    @property
    def told(self) -> dict[str, str]:
        return dict(json.loads((self.folder / "work.json").read_text()))

    @property
    def store(self) -> Store:
        return Store(self.told["store"])

    def run(self) -> None:
        """Measure the photos and write the table; two of the numbers go into LanceDB as if they were vectors."""
        rows = pa.ipc.open_file(self.told["photos"]).read_all()
        staging = self.store.staging("quality", "b", "f")
        compute = Compute(self.told["compute"], WORKERS, BATCH, PER_SHARD, failed=self.failed.append)
        options = {"notes": str(self.folder / "notes"), "poison": self.told["poison"]}
        measured = map_batches(Measures, options, rows, compute, staging)
        Vectors(self.store.uri).replace_batch("b", "e", [vectors(measured)])
        self.store.write("quality", table(measured), "b", fingerprint="f")
        staging.clear()

    def start(self, **environment: str) -> Process:
        """The work in a process, the first of a group of its own."""
        if "LD_PRELOAD" not in environment:  # which is read when a process starts
            return Forked(self.folder, environment)
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, __file__, str(self.folder)]
            return subprocess.Popen(
                command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
            )

    def again(self) -> None:
        """The work in a process that nobody hurts."""
        code = self.start().wait(END_SECONDS)
        if code:
            raise SystemExit(f"the undisturbed run after the fault failed ({code}): {self.log()}")

    def log(self) -> str:
        return (self.folder / "log").read_text()[-3000:]

    def wait(self, process: Process, photos: int) -> None:
        """Until so many photos are measured, or the process has ended."""
        end, notes = time.monotonic() + END_SECONDS, self.folder / "notes"
        while process.poll() is None and time.monotonic() < end:
            if BATCH * sum(1 for _ in notes.glob("*.done")) > photos:
                return
            time.sleep(0.005)

    def measured(self) -> Counter[str]:
        """How often each photo was measured."""
        notes = (path.read_text().split() for path in (self.folder / "notes").glob("*.done"))
        return Counter(image for images in notes for image in images)

    def workers(self) -> list[int]:
        return [int(path.stem) for path in (self.folder / "notes").glob("*.pid")]


def table(measured: pa.Table) -> pa.Table:
    """Rows of `quality`; what was not measured is zero."""
    zeros = dict.fromkeys(_ZEROS, 0.0) | {"phash": 0, "issues": []}
    return schema.table("quality").from_rows([row | zeros for row in measured.to_pylist()])


def vectors(measured: pa.Table) -> pa.Table:
    """Two numbers of each photo, as if an encoder had made them."""
    n = measured.num_rows
    values = np.stack([measured.column(name).to_numpy() for name in ("brightness", "contrast")], axis=1)
    flat = pa.array(values.astype(np.float32).ravel())
    columns = {"image_id": measured.column("image_id"), "batch": pa.array(["b"] * n), "encoder": pa.array(["e"] * n)}
    columns |= {"patch": pa.array([0] * n), "vector": pa.FixedSizeListArray.from_arrays(flat, 2)}
    return pa.table(columns).cast(vector_schema(2))


def make_photos(folder: Path) -> str:
    """Generated JPEGs; the file with their rows of `images`."""
    made = []
    for k in range(PHOTOS):
        path = folder / f"{k:04d}.jpg"
        rough = np.random.default_rng(k).integers(0, 255, (30, 40, 3), np.uint8)
        Image.fromarray(rough).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
        image = ids.image_id(path.read_bytes())
        row: dict[str, Any] = {"image_id": image, "batch": "b", "uri": str(path), "file_name": path.name}
        row |= {"parent_id": image, "tile_x": 0, "tile_y": 0, "width": 640, "height": 480}
        row |= {"photo_width": 640, "photo_height": 480, "format": "JPEG", "mode": "RGB", "orientation": 1}
        made.append(row | {"bytes": path.stat().st_size, "location": image, "attributes": []})
    rows = schema.table("images").from_rows(made)
    with pa.ipc.new_file(str(folder / "rows.arrow"), rows.schema) as writer:
        writer.write_table(rows)
    return str(folder / "rows.arrow")


def results(work: Try) -> list[pa.Table]:
    """The tables at the end: the Parquet one, and all rows in LanceDB."""
    stored = Vectors(work.store.uri)._db.open_table("vectors_2").to_arrow()
    return [work.store.read("quality", "b"), stored.drop_columns(["generation"])]


def differences(found: list[pa.Table], wanted: list[pa.Table]) -> tuple[int, int, int]:
    """Rows lost, doubled, and different from those of the undisturbed run, in all tables."""
    lost = doubled = different = 0
    for mine, theirs in zip(found, wanted, strict=True):
        rows, right = Counter(_values(mine)), Counter(_values(theirs))
        names, known = Counter(_names(mine)), Counter(_names(theirs))
        lost += (known - names).total()
        doubled += (names - known).total()
        different += sum(row not in right for row in rows)
    return lost, doubled, different


def _names(rows: pa.Table) -> list[str]:
    return [str(name) for name in rows.column(rows.column_names[0]).to_pylist()]


def _values(rows: pa.Table) -> Iterator[tuple[str, ...]]:
    return (tuple(map(str, row.values())) for row in rows.to_pylist())


def do(folder: Path) -> None:
    """The work, and the photos that no process survived."""
    given = Try(folder)
    given.run()
    (folder / "failed.json").write_text(json.dumps([r["image_id"] for t in given.failed for r in t.to_pylist()]))


def _forked(folder: Path, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    with (folder / "log").open("ab") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    do(folder)


if __name__ == "__main__":
    do(Path(sys.argv[1]))
