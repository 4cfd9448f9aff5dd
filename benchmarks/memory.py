"""Peak memory of making a batch, by its size: small JPEGs through the asset `embeddings`, with LanceDB and checks, or
`detections`, of which a labeller draws four an image.

Run: python benchmarks/memory.py [--bare] [--table embeddings|detections] [--mode inline|local|auto] [SIZE ...]

Each size runs in a process of its own: inline, or with two local processes, or (auto) with two actors of a Ray that it
starts. Told are the peak of that process, and the largest of its workers. Vectors are plain statistics of pixels, 256
numbers long: a network costs hours here. The compact profile's network is loaded nevertheless, for its memory is part
of every real run; --bare leaves it out, which shows what grows in plain sight.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
_LABELLER = """
import numpy as np
from pipeline.models.roles import Detections

class Four:
    def __init__(self, ontology):
        corners = np.array([[0, 0, 9, 9], [9, 0, 19, 9], [0, 9, 9, 19], [9, 9, 19, 19]], np.float32)
        self.found = Detections(corners, np.full(4, 0.5, np.float32), ("thing",) * 4)

    def detect(self, images):
        return [self.found for _ in images]
"""


def make(folder: Path, count: int, mode: str) -> None:
    """A project of one batch of small JPEGs, and its table `images`."""
    (folder / "projects" / "p").mkdir(parents=True)
    (folder / "photos" / "b").mkdir(parents=True)
    (folder / "projects" / "p" / "four.py").write_text(_LABELLER)
    config = {"name": "p", "profile": "tiny", "classes": {"thing": {}}, "source": {"uri": str(folder / "photos")}}
    config |= {"labelling": {"labellers": [{"name": "four", "path": "four.py:Four"}]}, "compute": mode, "workers": 2}
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


@contextmanager
def workers() -> Iterator[list[float]]:
    """Collects the peaks, in MiB, of the processes that do the work: direct children, or Ray's actors."""
    peaks, over = dict[int, float](), threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            for path in Path("/proc").glob("[0-9]*/stat"):
                try:
                    name, parent = path.read_text().partition("(")[2].rpartition(") ")[::2]
                    pid = int(path.parent.name)
                    if (int(parent.split()[1]) == os.getpid() and "python" in name) or mine(pid, name):
                        peaks[pid] = status("VmHWM", pid) / 1024
                except (OSError, StopIteration):  # it has ended
                    continue

    def mine(pid: int, name: str) -> bool:
        return name.startswith("ray::_Shards") and os.environ["CVP_HOME"] in Path(f"/proc/{pid}/environ").read_text()

    watcher, found = threading.Thread(target=watch, daemon=True), list[float]()
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
        found += peaks.values()


def embed(table: str, bare: bool) -> None:
    """In the measured process: make the table, and print what it took."""
    from assets.graph import recipes
    from assets.resources import ComputeResource, StoreResource, s3_resource
    from assets.tables import Work, run_recipe
    from pipeline.config import find_project
    from pipeline.models.compact_encoder import CompactEncoder
    from pipeline.models.tiny import TinyEncoder

    TinyEncoder.dimensions = DIMENSIONS
    network = None if bare else CompactEncoder()
    project = find_project("p")
    (recipe,) = (r for r in recipes(project) if r.name == table)
    work = Work(project, StoreResource().open(project), ComputeResource().of(project), s3_resource(), "b")
    before, start = status("VmHWM") / 1024, time.perf_counter()
    with workers() as others:
        done = run_recipe(recipe, work)
    assert all(finding.passed for finding in done.findings.values())
    took = time.perf_counter() - start
    peak = status("VmHWM") / 1024
    told = {"before": before, "peak": peak, "workers": max(others, default=0.0), "seconds": took}
    print(json.dumps(told | {"network": network is not None}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="*", default=SIZES, metavar="SIZE")
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--table", choices=["embeddings", "detections"], default="embeddings")
    parser.add_argument("--mode", choices=["inline", "local", "auto"], default="inline")
    parser.add_argument("--embed", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.embed:
        embed(given.table, given.bare)
        return
    peaks = []
    for size in given.sizes:
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), size, given.mode)
            weights = {"CVP_WEIGHTS": str(weights_root())}
            places = weights | {"CVP_HOME": f"{name}/home", "CVP_PROJECTS": f"{name}/projects", "CVP_STORE": ""}
            command = [sys.executable, __file__, "--embed", "--table", given.table, *(["--bare"] if given.bare else [])]
            said = subprocess.run(command, env=os.environ | places, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(said.stdout.splitlines()[-1])
        peaks.append(found["peak"])
        print(
            f"{size:>9,} images: {found['before']:.0f} MiB before, {found['peak']:.0f} MiB at the peak "
            f"({found['peak'] / peaks[0]:.2f} times the first), {found['workers']:.0f} MiB of the largest worker, "
            f"{size / found['seconds']:,.0f} images/s",
            flush=True,
        )
    if max(peaks) > FLAT * peaks[0]:
        raise SystemExit(f"not flat within {FLAT - 1:.0%}")


if __name__ == "__main__":
    main()
