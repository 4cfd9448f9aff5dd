"""Photos to vectors of CLIP ViT-B/32 at full size on a GPU: `pipeline.encode.embed`, inline and in local processes,
against the loop one would write by hand (DataLoader workers, pinned memory, bfloat16), and against what this
machine's cores can decode at all. Random weights: speed does not depend on them.

Run: python benchmarks/embedding.py [--photos N] [--batch N] [--workers N ...]

Both sides open the same files, make them small with the same filter and compute in the same precision; ours writes
its vectors to disk. Ours is timed from its first finished piece on, since starting workers and loading the network
are paid once; the loop, whose network is loaded, from its start, since its workers read far ahead of the first piece.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import common  # not `from`: `make bench` runs where there may be no GPU
import numpy as np
import pyarrow as pa
import torch
from photos import rows_of
from PIL import Image

from pipeline.compute import Compute
from pipeline.config import ProjectConfig, parse_config, samples_root
from pipeline.encode import embed
from pipeline.models import clip_net
from pipeline.store import Store

ARCHITECTURE = "ViT-B-32/laion2b_s34b_b79k"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def photographs(folder: Path, count: int) -> list[str]:
    """The day photos of the scenes sample, each many times under other names."""
    found = sorted((samples_root() / "scenes").glob("*-day/images/*.jpg"))
    if not found:
        raise SystemExit("run: cvp samples pull scenes")
    paths = [str(folder / f"{i:06d}.jpg") for i in range(count)]
    for i, path in enumerate(paths):
        shutil.copyfile(found[i % len(found)], path)
    return paths


class Photos(torch.utils.data.Dataset):
    def __init__(self, paths: list[str], look: Callable[[Image.Image], torch.Tensor]) -> None:
        self.paths, self.look = paths, look

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        with Image.open(self.paths[i]) as image:
            return self.look(image.convert("RGB"))


class Rate:
    """Photos a second from the first finished piece on."""

    def __init__(self) -> None:
        self.told: list[tuple[float, int]] = []

    def __call__(self, done: int, _: int) -> None:
        self.told.append((time.perf_counter(), done))

    @property
    def value(self) -> float:
        (start, first), (end, last) = self.told[0], self.told[-1]
        return (last - first) / (end - start)


def by_hand(paths: list[str], network: torch.nn.Module, what: clip_net.Design, batch: int) -> tuple[float, np.ndarray]:
    data = Photos(paths, clip_net.preprocess(what))
    loader = torch.utils.data.DataLoader(data, batch, num_workers=len(os.sched_getaffinity(0)), pin_memory=True)
    start, found = time.perf_counter(), []
    with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
        for images in loader:
            vectors = network.encode_image(images.to(DEVICE, non_blocking=True))
            found.append(torch.nn.functional.normalize(vectors.float(), dim=-1))
    vectors = torch.cat(found).cpu().numpy()
    return len(paths) / (time.perf_counter() - start), vectors


def ours(
    mode: str, workers: int, batch: int, rows: pa.Table, config: ProjectConfig, folder: Path
) -> tuple[float, np.ndarray]:
    rate = Rate()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        staging = Store(place).staging("embeddings", "b", "f")
        compute = Compute(mode, workers, batch, 1, progress=rate)
        found = pa.concat_tables(embed(rows, config, compute, staging))
    flat = found.column("vector").combine_chunks().flatten().to_numpy()
    return rate.value, flat.reshape(found.num_rows, -1)


def _decode(path: str) -> int:
    with Image.open(path) as image:
        return len(np.asarray(image.convert("RGB")))


def decoded(paths: list[str]) -> float:
    """Photos a second that all cores decode and do nothing else with."""
    count = len(os.sched_getaffinity(0))
    with get_context("spawn").Pool(count) as pool:
        pool.map(_decode, paths[: 8 * count])
        start = time.perf_counter()
        sum(1 for _ in pool.imap_unordered(_decode, paths, chunksize=64))
        return len(paths) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 4, 8])
    given = parser.parse_args()
    if DEVICE == "cpu":
        print("no CUDA device: these figures are of a CPU")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = photographs(folder, given.photos)
        with Image.open(paths[0]) as image:
            width, height = image.size
        rows = rows_of(paths, width, height)
        what = clip_net.design(ARCHITECTURE)
        network = clip_net.build(what)
        clip_net.save(folder / "net.safetensors", network, what)
        network = network.to(DEVICE)
        config = parse_config(
            {"name": "p", "profile": "foundation", "classes": {"tree": {}}, "source": {"uri": "."}}
            | {"models": {"encoder": str(folder / "net.safetensors")}}
        )
        ceiling = decoded(paths)
        print(f"{len(os.sched_getaffinity(0))} cores decode {ceiling:,.0f} photos/s")
        hand, reference = by_hand(paths, network, what, given.batch)
        where = torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU"
        for mode, workers in (("inline", 1), *(("local", count) for count in given.workers)):
            rate, vectors = ours(mode, workers, given.batch, rows, config, folder)
            cosine = float((vectors * reference).sum(axis=1).min())
            common.report(
                f"CLIP ViT-B/32, {given.photos:,} JPEGs of {width} x {height}, {mode}"
                + (f", {workers} workers" if mode == "local" else "")
                + f"; {where}, {len(os.sched_getaffinity(0))} cores",
                rate,
                hand,
                peer_name="DataLoader by hand, pinned memory, bfloat16",
                unit="photos/s",
                more_is_better=True,
                aim=1.0,
                agreement=f"cosine of vectors at least {cosine:.5f}",
                note=f"the cores decode {ceiling:,.0f} photos/s and nothing else: we reach {rate / ceiling:.0%}",
            )


if __name__ == "__main__":
    main()
