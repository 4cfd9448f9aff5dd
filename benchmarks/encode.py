"""Encoding photographs with CLIP ViT-B/32 at full size, against the glue one would write: one photo at a time
through open_clip's own transform and `encode_image`. Random weights: speed does not depend on them.

Run: python benchmarks/encode.py

Both sides use every core. The core-seconds say what batches save; the wall clock adds what decoding beside the
network saves, and holds for this machine's load while it was measured.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.pop("OMP_NUM_THREADS", None)  # before torch is loaded

import numpy as np
import torch
from common import report
from photos import rows_of
from PIL import Image

from pipeline.config import parse_config, samples_root
from pipeline.encode import EncodeWorker
from pipeline.models import clip_net

PHOTOS, WIDTH, HEIGHT, ROUNDS, BATCH = 48, 1200, 900, 3, 16
ARCHITECTURE = "ViT-B-32/laion2b_s34b_b79k"


def photographs(folder: Path) -> list[Path]:
    """JPEG files cut out of the largest photograph of the trees sample."""
    files = sorted((samples_root() / "trees").rglob("*.png"), key=lambda p: p.stat().st_size)
    if not files:
        raise SystemExit("run: cvp samples pull trees")
    whole = Image.open(files[-1]).convert("RGB")
    random = np.random.default_rng(0)
    paths = []
    for i in range(PHOTOS):
        x, y = int(random.integers(whole.width - WIDTH)), int(random.integers(whole.height - HEIGHT))
        paths.append(folder / f"{i:03d}.jpg")
        whole.crop((x, y, x + WIDTH, y + HEIGHT)).save(paths[-1], quality=92)
    return paths


def timed(work: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
    """Wall seconds, core-seconds, and the result."""
    wall, cores = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cores, result


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = photographs(folder)
        os.environ["CVP_HOME"] = name  # kept text vectors would spare the network
        rows = rows_of([str(path) for path in paths], WIDTH, HEIGHT)
        what = clip_net.design(ARCHITECTURE)
        network, look = clip_net.build(what), clip_net.preprocess(what)
        clip_net.save(folder / "net.safetensors", network, what)
        config = parse_config(
            {"name": "p", "profile": "foundation", "classes": {"tree": {}}, "source": {"uri": "."}}
            | {"models": {"encoder": str(folder / "net.safetensors")}}
        )
        worker = EncodeWorker(config)

        def ours() -> np.ndarray:
            parts = [worker(rows.slice(start, BATCH)) for start in range(0, rows.num_rows, BATCH)]
            flat = [part.column("vector").combine_chunks().flatten().to_numpy() for part in parts]
            return np.concatenate(flat).reshape(len(paths), -1)

        def glue() -> np.ndarray:
            found = []
            for path in paths:
                with torch.no_grad():
                    vector = network.encode_image(look(Image.open(path))[None])
                    found.append((vector / vector.norm(dim=-1, keepdim=True)).numpy())
            return np.concatenate(found)

        ours(), glue()
        turns = [(timed(ours), timed(glue)) for _ in range(ROUNDS)]
    apart = float(np.abs(turns[-1][0][2] - turns[-1][1][2]).max())
    for unit, which in (("s", 0), ("core-s", 1)):
        mine, theirs = (statistics.median(turn[side][which] for turn in turns) for side in (0, 1))
        report(
            f"CLIP ViT-B/32, {PHOTOS} JPEG photos of {WIDTH} x {HEIGHT}, {torch.get_num_threads()} threads, "
            f"{PHOTOS / mine:.1f} images per {unit}",
            mine,
            theirs,
            peer_name="open_clip, one photo at a time",
            aim="faster",
            met=mine < theirs,
            unit=unit,
            agreement=f"vectors differ by at most {apart:.0e}",
        )


if __name__ == "__main__":
    main()
