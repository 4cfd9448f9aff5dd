"""The engine at 10,000, 100,000 and a million images, without models: time and memory of each thing that it does.

Run: python benchmarks/million.py [--scales N ...] [--steps NAME ...] [--batch-size N]

Images are rows; `listing` and `hashing` use real files, small JPEGs (with --files N at most). Vectors are drawn. Each
step runs in a process of its own. The last column says how the cost grows from one scale to the next: 1.0 is
proportional to the number of images.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from spent import spent

from pipeline import schema, warehouse
from pipeline.collect import collect_images
from pipeline.compute import Compute
from pipeline.config import SourceConfig
from pipeline.duplicates import near_hashes
from pipeline.ids import content_hash
from pipeline.sources import open_source
from pipeline.store import Store
from pipeline.vectors import Vectors, vector_schema

BATCHES, DIMENSIONS, HASH_LIMIT = 100, 256, 6
ROUND = 33  # commits of vectors in which there is one compaction
_AT_ONCE = 10_000  # rows made as dictionaries
_SUM = "SELECT batch, count(*) AS n, avg(width) AS w FROM images GROUP BY batch"
_JOIN = "SELECT i.location, q.sharpness FROM images i JOIN quality q USING (image_id, batch) ORDER BY 2 DESC LIMIT 10"


class World:
    """What the steps work on, in a folder: made once for a scale."""

    def __init__(self, folder: Path, scale: int, files: int, batches: int) -> None:
        self.folder, self.scale, self.files, self.batches = folder, scale, files, batches
        self.store = Store(str(folder / "store"))

    @property
    def size(self) -> tuple[int, int, int]:
        """What it is made with, beside the folder."""
        return self.scale, self.files, self.batches

    def rows(self, batch: int) -> pa.Table:
        """Rows of `images` of one batch."""
        size = self.scale // self.batches
        names = [f"{batch * size + i:064x}" for i in range(size)]
        same = {"format": "JPEG", "mode": "RGB", "orientation": 1, "width": 640, "height": 480, "photo_width": 640}
        same |= {
            "photo_height": 480,
            "tile_x": 0,
            "tile_y": 0,
            "bytes": 100_000,
            "attributes": [],
            "batch": f"b{batch}",
        }
        parts = []
        for start in range(0, size, _AT_ONCE):
            some = [
                {"image_id": n, "parent_id": n, "uri": f"s3://photos/b{batch}/{n[-12:]}.jpg", "location": f"site-{i}"}
                | {"file_name": f"{n[-12:]}.jpg"}
                | same
                for i, n in enumerate(names[start : start + _AT_ONCE])
            ]
            parts.append(schema.table("images").from_rows(some))
        return pa.concat_tables(parts)

    def hashes(self) -> np.ndarray:
        """Random 64-bit hashes, of which one in fifty is within a few bits of another."""
        random = np.random.default_rng(0)
        made = random.integers(0, 2**64, self.scale, dtype=np.uint64)
        copies, originals = random.choice(self.scale, (2, self.scale // 50), replace=False)
        made[copies] = made[originals] ^ (np.uint64(1) << random.integers(0, 64, len(copies), dtype=np.uint64))
        return made

    def quality(self, batch: int, hashes: np.ndarray) -> pa.Table:
        size = self.scale // self.batches
        images = [f"{batch * size + i:064x}" for i in range(size)]
        table = schema.table("quality")
        zeros = {c.name: np.zeros(size) for c in table.columns if c.type in (schema.FLOAT, schema.DOUBLE)}
        some = hashes[batch * size : (batch + 1) * size].view(np.int64)
        columns = {"image_id": images, "batch": [f"b{batch}"] * size, **zeros, "phash": some, "issues": [[]] * size}
        return table.from_columns({name: pa.array(values) for name, values in columns.items()})

    def vectors(self, batch: int) -> Iterator[pa.Table]:
        """Vectors of one batch, in parts of a thousand."""
        random, size = np.random.default_rng(batch), self.scale // self.batches
        for start in range(0, size, 1000):
            n = min(1000, size - start)
            drawn = random.normal(size=(n, DIMENSIONS)).astype(np.float32)
            drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
            names = [f"{batch * size + start + i:064x}" for i in range(n)]
            columns = {"image_id": names, "batch": [f"b{batch}"] * n, "encoder": ["e"] * n}
            columns |= {"patch": np.zeros(n, np.int32)}
            columns |= {"vector": pa.FixedSizeListArray.from_arrays(pa.array(drawn.ravel()), DIMENSIONS)}
            yield pa.table(columns, schema=vector_schema(DIMENSIONS))


# -- steps, in order: each says what it found ----------------------------------------------------------------


def listing(world: World) -> str:
    """Names, sizes and times of all files of a batch, and its fingerprint."""
    source = open_source(str(world.folder / "photos"))
    return f"{len(source.files('b')):,} files, {source.fingerprint('b')}"


def hashing(world: World) -> str:
    """The table `images` of these files: each is read, hashed and decoded."""
    found, rejected = collect_images(
        open_source(str(world.folder / "photos")),
        "b",
        SourceConfig(uri="."),
        Compute(),
        world.store.staging("images", "b", "f"),
    )
    return f"{found.num_rows:,} images, {rejected.num_rows} rejected"


def tables(world: World) -> str:
    """`images` and `quality` written in 100 batches."""
    hashes = world.hashes()
    for batch in range(world.batches):
        world.store.write("images", world.rows(batch), f"b{batch}", fingerprint=str(batch))
        world.store.write("quality", world.quality(batch, hashes), f"b{batch}", fingerprint=str(batch))
    return f"{sum(p.stat().st_size for p in (world.folder / 'store').rglob('*.parquet')) / 2**20:.0f} MiB"


def reading(world: World) -> str:
    """All of `images` read, and its content hashed."""
    rows = world.store.read("images")
    return f"{rows.nbytes / 2**20:.0f} MiB, {content_hash(rows)}"


def receipts(world: World) -> str:
    """What each of the 200 files says of itself, as every run and `cvp status` ask."""
    told = world.store.remembering()
    found = [told.receipt(name, batch) for name in ("images", "quality") for batch in told.batches(name)]
    return f"{len(found)} receipts"


def duplicates(world: World) -> str:
    """All pairs of perceptual hashes within 6 bits."""
    rows = world.store.read("quality", columns=["phash"])
    pairs = sum(len(some) for some in near_hashes(rows.column("phash").to_numpy().view(np.uint64), HASH_LIMIT))
    return f"{pairs:,} pairs"


def duckdb(world: World) -> str:
    """The file of views, a count by batch, and a join with the ten largest."""
    path = warehouse.build(world.store)
    return f"{warehouse.query(path, _SUM).num_rows} and {warehouse.query(path, _JOIN).num_rows} rows"


def lancedb(world: World) -> str:
    """Vectors of 256 numbers, each batch one commit, compacted on the way; what the first commits cost, and the last.

    The median is that of commits without compaction; in the mean is one compaction in `ROUND`.
    """
    kept, most, took = Vectors(world.store.uri), 0, list[float]()
    for batch in range(world.batches):
        parts = list(world.vectors(batch))
        start = time.process_time()
        kept.replace_batch(f"b{batch}", "e", parts)
        took.append(1e3 * (time.process_time() - start))
        most = max(most, _fragments(kept))
    size = sum(p.stat().st_size for p in (world.folder / "store" / "_vectors").rglob("*") if p.is_file())
    return (
        f"at most {most} fragments, {size / 2**20:.0f} MiB for {world.scale * DIMENSIONS * 4 / 2**20:.0f} of vectors; "
        f"core-ms a commit of {world.scale // world.batches:,}, median and mean: "
        f"{np.median(took[:ROUND]):.0f}, {np.mean(took[:ROUND]):.0f} at first, "
        f"{np.median(took[-ROUND:]):.0f}, {np.mean(took[-ROUND:]):.0f} at last"
    )


def replacing(world: World) -> str:
    """One of these batches made once more."""
    kept = Vectors(world.store.uri)
    kept.replace_batch("b7", "e", world.vectors(7))
    return f"{_fragments(kept)} fragments, {kept._db.open_table(f'vectors_{DIMENSIONS}').count_rows():,} rows"


def fetching(world: World) -> str:
    """The vectors of one of these batches by their names, as zero-shot classes need them."""
    names = [name for part in world.vectors(7) for name in part.column("image_id").to_pylist()]
    return f"{len(Vectors(world.store.uri).fetch(names, 'e', batch='b7')[0]):,} vectors"


def searching(world: World) -> str:
    """The ten nearest of all, exactly."""
    (some, *_) = world.vectors(3)
    vector = some.column("vector").combine_chunks().flatten().to_numpy()[:DIMENSIONS]
    found = Vectors(world.store.uri).search(vector, "e", 10)
    return f"nearest at {found.column('similarity')[0].as_py():.3f}"


def _fragments(kept: Vectors) -> int:
    return int(kept._db.open_table(f"vectors_{DIMENSIONS}").stats()["fragment_stats"]["num_fragments"])


STEPS: dict[str, Callable[[World], str]] = {
    step.__name__: step
    for step in (
        *(listing, hashing, tables, reading, receipts, duplicates, duckdb),
        *(lancedb, replacing, fetching, searching),
    )
}
_OF_FILES = ("listing", "hashing")


def make_files(folder: Path, count: int) -> None:
    """Small JPEGs, each different in its last bytes, which decoders do not read."""
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(sink, "JPEG")
    (folder / "photos" / "b").mkdir(parents=True)
    for i in range(count):
        (folder / "photos" / "b" / f"{i:08d}.jpg").write_bytes(sink.getvalue() + i.to_bytes(8, "little"))


def measure(step: str, world: World) -> dict[str, Any]:
    """A step in a process of its own."""
    command = [sys.executable, __file__, "--step", step, str(world.folder), *map(str, world.size)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{step} failed: {done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    if sys.argv[1:2] == ["--step"]:
        step, folder, *size = sys.argv[2:]
        found = spent(lambda: STEPS[step](World(Path(folder), *map(int, size))))
        print(json.dumps({"wall": found.wall, "cores": found.cores, "peak": found.peak, "found": found.result}))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, help=f"images in a batch; default: {BATCHES} batches at any scale")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    given = parser.parse_args()
    print(f"{'images':>10}  {'step':<12}{'s':>8}{'core-s':>8}{'peak MiB':>10}{'growth':>8}  found")
    before: dict[str, tuple[int, float]] = {}
    for scale in given.scales:
        folder = Path(tempfile.mkdtemp())
        try:
            batches = scale // given.batch_size if given.batch_size else BATCHES
            world = World(folder, scale, min(scale, given.files), batches)
            if set(given.steps) & set(_OF_FILES):
                make_files(folder, world.files)
            for step in given.steps:
                found = measure(step, world)
                size = world.files if step in _OF_FILES else scale
                old = before.get(step)
                growth = math.log(found["cores"] / old[1]) / math.log(size / old[0]) if old and size > old[0] else None
                before[step] = size, found["cores"]
                print(
                    f"{size:>10,}  {step:<12}{found['wall']:>8.1f}{found['cores']:>8.1f}{found['peak']:>10.0f}"
                    f"{'' if growth is None else f'{growth:.2f}':>8}  {found['found']}",
                    flush=True,
                )
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
