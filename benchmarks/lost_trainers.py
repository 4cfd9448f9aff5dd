"""A detector trained on Ray while one of its two workers is killed, and then a machine, beside one trained inline.

The project is made inline up to its training set. Then `models` is made inline, and on a cluster of a head that only
manages and two machines: one worker is killed (SIGKILL) after the first checkpoint, and one machine, with
all of its processes, after the next one. Printed are how long either loss held training up, from the death
to the next checkpoint, and what the rows of `models` say.

Run: OMP_NUM_THREADS=1 python benchmarks/lost_trainers.py [--project trees] [--steps 40]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
import yaml
from equality import Way
from ray_nodes import Nodes, nodes

from pipeline.config import projects_root

BEFORE = "collection,curation,labelling,training_set"
CHECKPOINT_EVERY = 10


def trainer(cluster: Nodes, number: int) -> int:
    """The process of Ray Train's worker on a node."""
    for pid in cluster.processes(number):
        with suppress(OSError):
            if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    raise SystemExit(f"no worker trains on node {number}")


def known(way: Way) -> int:
    """The step of the last checkpoint; 0 while there is none."""
    found = [*(way.folder / "store" / way.name / "files" / "models").glob("*.checkpoint.pt")]
    return int(torch.load(found[0], weights_only=True)["state"]["step"]) if found else 0


def until(way: Way, running: subprocess.Popen[bytes], step: int) -> float:
    """Wait for a checkpoint of that step or later, or for the end; seconds that it took."""
    start = time.monotonic()
    while running.poll() is None and known(way) < step:
        time.sleep(0.2)
    return time.monotonic() - start


def disturbed(way: Way, cluster: Nodes) -> None:
    running = way.start("--select", "models")
    until(way, running, CHECKPOINT_EVERY)
    first = known(way)
    os.kill(trainer(cluster, 1), signal.SIGKILL)
    print(f"a worker killed after the checkpoint of step {first}; ", end="")
    print(f"the next one {until(way, running, first + 1):.0f} s later", flush=True)
    second = known(way)
    cluster.kill(2)
    print(f"a machine killed after the checkpoint of step {second}; ", end="")
    print(f"the next one {until(way, running, second + 1):.0f} s later", flush=True)
    way.finish(running)


def told(name: str, way: Way) -> list[float]:
    """Print the row of `models`; the losses in it."""
    (row,) = way.store.read("models").to_pylist()
    history = json.loads(row["history"])
    steps, losses = [one["step"] for one in history], [one["loss"] for one in history]
    assert steps == list(range(1, len(steps) + 1)), steps
    print(
        f"{name}: {row['model']}, {len(steps)} steps, loss {losses[0]:.4f} to {losses[-1]:.4f}, {row['seconds']:.0f} s"
    )
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="trees")
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    project = projects_root() / given.project
    training = yaml.safe_load((project / "project.yaml").read_text()).get("training", {})
    training |= {"steps": given.steps, "checkpoint_every": CHECKPOINT_EVERY, "workers": 2}
    with tempfile.TemporaryDirectory() as place, nodes(3, head_cpus=0) as cluster:
        inline = Way(Path(place), project, "inline", compute="inline", training=training)
        inline.finish(inline.start("--select", BEFORE))
        ray = Way(Path(place), project, "ray", cluster, compute=cluster.address, training=training)
        shutil.copytree(inline.folder / "store", ray.folder / "store")
        inline.finish(inline.start("--select", "models"))
        disturbed(ray, cluster)
        losses, others = told("inline", inline), told("on Ray", ray)
    apart = max(abs(a - b) / a for a, b in zip(losses, others, strict=True))
    print(f"losses differ by at most {apart:.2%}")


if __name__ == "__main__":
    main()
