"""Decoding ahead of the model: photos a second with a model that takes no CPU, as one on a GPU, but some ms a photo.

    python benchmarks/ahead.py --photos 256 --ms 5 20 80

A model that only sleeps sees shards of eight batches of 16 photos. The pace of decoding alone and of the model alone
bound what is possible: the lower one is the most. "Batch by batch" is a worker that decodes a batch, on threads, too,
when the model is done with the one before.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.ahead import cores
from pipeline.compute import AheadWorker, Compute, Worker, map_batches
from pipeline.images import Pixels, Reader, UnusableImage
from pipeline.store import Store

SIZE = (1600, 1200)


class Sleeps(AheadWorker):
    """A model that takes `seconds` a photo."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.reader = seconds, Reader()

    def read(self, rows: pa.Table) -> Iterator[Pixels | UnusableImage]:
        return self.reader.whole(rows)

    def answer(self, rows: pa.Table, read: Iterable[Pixels | UnusableImage]) -> pa.Table:
        seen = sum(not isinstance(image, UnusableImage) for image in read)
        time.sleep(self.seconds * seen)
        return rows.select(["uri"])


class BatchByBatch:
    """The same, but nothing is read while it sleeps."""

    def __init__(self, seconds: float) -> None:
        self.model = Sleeps(seconds)

    def __call__(self, rows: pa.Table) -> pa.Table:
        return self.model(rows)


def photos(folder: Path, count: int) -> pa.Table:
    """Rows of `images` of so many JPEGs, of which there are a few on the disk."""
    random = np.random.default_rng(0)
    for k in range(16):
        small = random.integers(0, 255, (SIZE[1] // 8, SIZE[0] // 8, 3), np.uint8)
        Image.fromarray(small).resize(SIZE).save(folder / f"{k}.jpg", quality=90)
    place = {"tile_x": 0, "tile_y": 0, "width": SIZE[0], "height": SIZE[1], "photo_width": SIZE[0]}
    row = place | {"photo_height": SIZE[1]}
    return pa.Table.from_pylist([{"uri": str(folder / f"{k % 16}.jpg"), **row} for k in range(count)])


def pace(worker: type[Worker] | Any, seconds: float, rows: pa.Table, folder: Path) -> float:
    """Photos a second."""
    staging = Store(str(folder / "store")).staging("detections", "b", "f")
    began = time.perf_counter()
    map_batches(worker, {"seconds": seconds}, rows, Compute(), staging)
    took = time.perf_counter() - began
    staging.clear()
    return rows.num_rows / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=256)
    parser.add_argument("--ms", type=float, nargs="+", default=[5, 20, 80])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = photos(folder, given.photos)
        print(f"{given.photos} photos of {SIZE[0]} x {SIZE[1]}, {cores()} threads; photos a second:")
        print("| model | decoding alone | model alone | batch by batch | ahead | share of the most |")
        print("|---|---|---|---|---|---|")
        for ms in given.ms:
            rounds = [
                [pace(kind, s, rows, folder) for kind, s in ((Sleeps, 0), (BatchByBatch, ms / 1e3), (Sleeps, ms / 1e3))]
                for _ in range(given.rounds)
            ]
            decoding, before, after = (statistics.median(r[i] for r in rounds) for i in range(3))
            most = min(decoding, 1e3 / ms)
            shares = f"{before / most:.2f} -> {after / most:.2f}"
            print(
                f"| {ms:g} ms | {decoding:.0f} | {1e3 / ms:.0f} | {before:.1f} | {after:.1f} | {shares} |", flush=True
            )


if __name__ == "__main__":
    main()
