"""Peak memory of embedding a batch, by its size: small JPEGs through the asset `embeddings`, with LanceDB and checks.

Run: python benchmarks/memory.py [--bare] [SIZE ...]

Each size runs in a process of its own, inline. Vectors are plain statistics of pixels, 256 numbers long: a network
costs hours here. The compact profile's network is loaded nevertheless, for its memory is part of every real run; --bare
leaves it out, which shows what grows in plain sight.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from common import status
from PIL import Image

from pipeline import ids, schema
from pipeline.config import weights_root
from pipeline.store import Store

SIZES, DIMENSIONS, EDGE = (1_000, 10_000, 100_000), 256, 32
FLAT = 1.15


def make(folder: Path, count: int) -> None:
    """A project of one batch of small JPEGs, and its table `images`."""
    (folder / "projects" / "p").mkdir(parents=True)
    (folder / "photos" / "b").mkdir(parents=True)
    config = {"name": "p", "profile": "tiny", "classes": {"thing": {}}, "source": {"uri": str(folder / "photos")}}
    (folder / "projects" / "p" / "project.yaml").write_text(yaml.safe_dump(config))
    size = {"width": EDGE, "height": EDGE, "photo_width": EDGE, "photo_height": EDGE, "tile_x": 0, "tile_y": 0}
    same = {"batch": "b", "format": "JPEG", "mode": "RGB", "orientation": 1, "attributes": [], **size}
    random, rows = np.random.default_rng(0), []
    for i in range(count):
        path = folder / "photos" / "b" / f"{i:07d}.jpg"
        Image.fromarray(random.integers(0, 255, (EDGE, EDGE, 3), np.uint8)).save(path)
        data = path.read_bytes()
        image = ids.image_id(data)
        row = {"image_id": image, "parent_id": image, "uri": str(path), "file_name": path.name, "bytes": len(data)}
        rows.append(row | {"location": f"b/{path.name}"} | same)
    store = Store(str(folder / "home" / "store" / "p"))
    store.write("images", schema.table("images").from_rows(rows), "b", fingerprint="made")


def embed() -> None:
    """In the measured process: make the table, and print what it took."""
    from assets.graph import recipes
    from assets.resources import ComputeResource, StoreResource, s3_resource
    from assets.tables import Work, run_recipe
    from pipeline.config import find_project
    from pipeline.models.compact_encoder import CompactEncoder
    from pipeline.models.tiny import TinyEncoder

    TinyEncoder.dimensions = DIMENSIONS
    network = None if "--bare" in sys.argv else CompactEncoder()
    project = find_project("p")
    (recipe,) = (r for r in recipes(project) if r.name == "embeddings")
    work = Work(project, StoreResource().open(project), ComputeResource().of(project), s3_resource(), "b")
    before, start = status("VmHWM") / 1024, time.perf_counter()
    done = run_recipe(recipe, work)
    assert all(finding.passed for finding in done.findings.values())
    took = time.perf_counter() - start
    peak = status("VmHWM") / 1024
    print(json.dumps({"before": before, "peak": peak, "seconds": took, "network": network is not None}))


def main() -> None:
    sizes = [int(size) for size in sys.argv[1:] if size.isdigit()] or SIZES
    peaks = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), size)
            weights = {"CVP_WEIGHTS": str(weights_root())}
            places = weights | {"CVP_HOME": f"{name}/home", "CVP_PROJECTS": f"{name}/projects", "CVP_STORE": ""}
            command = [sys.executable, __file__, "--embed", *(["--bare"] if "--bare" in sys.argv else [])]
            said = subprocess.run(command, env=os.environ | places, check=True, capture_output=True, text=True)
            found = json.loads(said.stdout.splitlines()[-1])
        peaks.append(found["peak"])
        print(
            f"{size:>9,} images: {found['before']:.0f} MiB before, {found['peak']:.0f} MiB at the peak "
            f"({found['peak'] / peaks[0]:.2f} times the first), {size / found['seconds']:,.0f} images/s",
            flush=True,
        )
    if max(peaks) > FLAT * peaks[0]:
        raise SystemExit(f"not flat within {FLAT - 1:.0%}")


if __name__ == "__main__":
    embed() if "--embed" in sys.argv else main()
