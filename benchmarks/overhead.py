"""What the engine costs: photos to vectors, by us (inline, local processes, a warm Ray) and by a bare loop and
`multiprocessing.Pool`, all with the same network; what writing shards costs without a model.

Run: python benchmarks/overhead.py [--photos N] [--rounds N]

The sides take turns in one run. The loop and `inline` work on one core. Time includes making workers and loading
weights, and ends with the vectors in memory; ours are on the disk as well by then, the others' are not.
Core-seconds are those of all processes. Ray is started before ("warm"); its actors are not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: one core for each worker, theirs and ours

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import in_turn, report
from photos import rows_of
from PIL import Image
from spent import Spent, spent

from pipeline.compute import Compute, connect_ray, map_batches
from pipeline.config import ProjectConfig, parse_config, samples_root
from pipeline.encode import embed
from pipeline.models.compact_encoder import CompactEncoder
from pipeline.store import Store
from pipeline.vectors import vector_schema

WIDTH, HEIGHT, BATCH, WORKERS = 640, 480, 16, 2
IMAGES, DIMENSIONS = 50_000, 512  # of the shard writer

Vectors = np.ndarray


def photographs(folder: Path, count: int) -> list[str]:
    """JPEG files cut out of the photographs of the trees sample."""
    files = sorted((samples_root() / "trees").rglob("*.png"), key=lambda p: p.stat().st_size)[-3:]
    if not files:
        raise SystemExit("run: cvp samples pull trees")
    wholes = [Image.open(file).convert("RGB") for file in files]
    random = np.random.default_rng(0)
    paths = []
    for i in range(count):
        whole = wholes[i % len(wholes)]
        x, y = int(random.integers(whole.width - WIDTH + 1)), int(random.integers(whole.height - HEIGHT + 1))
        paths.append(str(folder / f"{i:05d}.jpg"))
        whole.crop((x, y, x + WIDTH, y + HEIGHT)).save(paths[-1], quality=92)
    return paths


# -- what one would write by hand -----------------------------------------------------------------


def encode(encoder: CompactEncoder, paths: list[str]) -> Vectors:
    """One after the other, in batches of 16."""
    found = []
    for start in range(0, len(paths), BATCH):
        prepared = []
        for path in paths[start : start + BATCH]:
            with Image.open(path) as image:
                prepared.append(encoder.prepare(np.asarray(image.convert("RGB"))))
        found.append(encoder.encode_prepared(prepared))
    return np.concatenate(found)


def loop(paths: list[str]) -> Vectors:
    return encode(CompactEncoder(), paths)


_encoder: CompactEncoder


def _load() -> None:
    global _encoder
    _encoder = CompactEncoder()


def _encode(paths: list[str]) -> Vectors:
    return encode(_encoder, paths)


def pool(paths: list[str]) -> Vectors:
    parts = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    with multiprocessing.get_context("spawn").Pool(WORKERS, _load) as workers:
        return np.concatenate(workers.map(_encode, parts))


# -- we -------------------------------------------------------------------------------------------


def ours(mode: str, rows: pa.Table, folder: Path, config: ProjectConfig) -> Vectors:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        staging = Store(place).staging("embeddings", "b", "f")
        found = pa.concat_tables(embed(rows, config, Compute(mode, WORKERS, BATCH), staging))
        flat = found.column("vector").combine_chunks().flatten().to_numpy()
        return flat.reshape(found.num_rows, -1).copy()


class Gives:
    """A worker that does nothing: it gives random vectors of its rows."""

    def __init__(self, made: pa.Table) -> None:
        self.made, self.at = made, 0

    def __call__(self, rows: pa.Table) -> pa.Table:
        given = self.made.slice(self.at, rows.num_rows)
        self.at += rows.num_rows
        return given


def writer(folder: Path, batch: int) -> None:
    """Shards without a model, against writing the same pieces with pyarrow alone, which makes nothing durable."""
    random = np.random.default_rng(0)
    names = pa.array([f"{i:064x}" for i in range(IMAGES)])
    vectors = pa.array(random.normal(size=IMAGES * DIMENSIONS).astype(np.float32))
    same = {"batch": pa.array(["b"] * IMAGES), "encoder": pa.array(["e"] * IMAGES), "patch": pa.array([0] * IMAGES)}
    columns = {"image_id": names, **same, "vector": pa.FixedSizeListArray.from_arrays(vectors, DIMENSIONS)}
    made = pa.table(columns).cast(vector_schema(DIMENSIONS))
    compute = Compute("inline", 1, batch, 8)
    size = compute.batch_size * compute.batches_per_shard

    def write() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            staging = Store(place).staging("embeddings", "b", "f")
            return map_batches(Gives, {"made": made}, made, compute, staging).num_rows

    def bare() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            paths = [f"{place}/{start}.parquet" for start in range(0, IMAGES, size)]
            for start, path in zip(range(0, IMAGES, size), paths, strict=True):
                pq.write_table(made.slice(start, size), path, compression="zstd")
            return pa.concat_tables([pq.read_table(path) for path in paths]).num_rows

    turn, mine, theirs = in_turn(write, bare, rounds=3)
    wall = spent(write).wall
    report(
        f"{IMAGES:,} vectors of {DIMENSIONS} through shards of {size}, without a model: "
        f"{IMAGES / wall:,.0f} images/s, {made.nbytes / 2**20 / wall:.0f} MiB/s on the clock",
        turn.ours,
        turn.peer,
        peer_name="pyarrow.parquet alone, not durable, no checksums",
        aim="far above any model's speed",
        met=IMAGES / wall > 5000,
        agreement=f"{mine:,} and {theirs:,} rows back",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--writer", type=int, nargs="*", default=[16, 256], help="batch sizes of the shard writer")
    given = parser.parse_args()
    config = parse_config({"name": "p", "profile": "compact", "classes": {"tree": {}}, "source": {"uri": "."}})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for batch in given.writer:
            writer(folder, batch)
        paths = photographs(folder, given.photos)
        rows = rows_of(paths, WIDTH, HEIGHT)
        connect_ray("auto")
        loop(paths[:BATCH])  # torch is imported before the first turn, as it is before the others
        sides: dict[str, Callable[[], Vectors]] = {
            "loop": lambda: loop(paths),
            "inline": lambda: ours("inline", rows, folder, config),
            "Pool": lambda: pool(paths),
            "local": lambda: ours("local", rows, folder, config),
            "Ray, warm": lambda: ours("auto", rows, folder, config),
        }
        turns: dict[str, list[Spent[Vectors]]] = {side: [] for side in sides}
        for _ in range(given.rounds):
            for side, work in sides.items():
                turns[side].append(spent(work))
                last = turns[side][-1]
                print(f"  {side}: {last.wall:.1f} s, {last.cores:.1f} core-s, {last.peak:.0f} MiB", flush=True)
    for side, peer, aim in (("inline", "loop", 1.05), ("local", "Pool", 1.1), ("Ray, warm", "Pool", 1.2)):
        same = np.array_equal(turns[side][-1].result, turns[peer][-1].result)
        for unit in ("wall", "cores"):
            mine, theirs = (statistics.median(getattr(t, unit) for t in turns[s]) for s in (side, peer))
            # Ratios of neighbours in time: the machine's other load changes from round to round.
            ratio = statistics.median(
                getattr(a, unit) / getattr(b, unit) for a, b in zip(turns[side], turns[peer], strict=True)
            )
            report(
                f"{given.photos:,} photos of {WIDTH} x {HEIGHT} to vectors, {side}",
                mine,
                theirs,
                peer_name=peer,
                unit="s" if unit == "wall" else "core-s",
                aim=f"<= {aim:g} times {peer}",
                met=ratio <= aim,
                agreement="equal vectors" if same else "VECTORS DIFFER",
                note=f"{ratio:.3f} times {peer} (median of {given.rounds} rounds)",
            )
        if not same:
            raise SystemExit(f"{side} and {peer} differ")


if __name__ == "__main__":
    main()
