"""What faults cost: each many times at random moments, the tables afterwards against an undisturbed run's.

Run: python benchmarks/faults [--tries N] [--seed N] [--only WORD ...]

Each try measures 160 generated photos on two local processes, in shards of 16, into a store and LanceDB, hurts it, and
does what a user would do: run it again, if it did not end by itself. A photo is said to be worked on again when a
worker had measured it before. A native crash is a SIGSEGV that the worker sends itself at one photo; the
full disk is a tmpfs that is too small (it needs root); the clock is the work's own, through libfaketime; the S3
server is SeaweedFS, and the endpoint a server that charges for answers and lets three requests in ten hang. Where a Ray
node is lost, the two workers are actors on nodes of their own.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[2]))
# Processes that are started import from the same places: this folder, the project, and benchmarks.
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:3], os.environ.get("PYTHONPATH", "")])

import elsewhere
import local
import pyarrow as pa
from ray_nodes import nodes
from work import Try, differences, make_photos, results

PROCESSES = {
    "SIGKILL of a worker": local.kill_worker,
    "SIGKILL of the driver": local.kill_driver,
    "SIGKILL of driver and workers": local.kill_run,
    "run killed, a shard cut short": local.cut_shard,
    "the disk is full": local.fill_disk,
    "the clock jumps, run killed": local.jump_clock,
    "an image crashes natively": local.crash_natively,
}
SERVER, DAGSTER, RAY = "SIGKILL of the S3 server", "SIGKILL of the Dagster run", "a Ray node is lost"
ENDPOINT = "the endpoint hangs, asker killed"


@dataclass(frozen=True)
class Found:
    """Of one try. `again`: what was worked on before; `twice`: answers paid for more than once."""

    lost: int
    doubled: int
    different: int
    again: int
    twice: int = 0


class Trials:
    """All tries of one kind, in folders of their own."""

    def __init__(self, root: Path, tries: int, seed: int) -> None:
        self.root, self.tries, self.seed = root, tries, seed
        (root / "photos").mkdir()
        self.photos = make_photos(root / "photos")
        calm = Try.new(root / "calm", self.photos)
        calm.again()
        self.wanted = results(calm)
        self.images = self.wanted[0].column("image_id").to_pylist()

    def chance(self, kind: str) -> random.Random:
        """Of each kind its own: with `--only` it is hurt at the same moments as in a run of all."""
        return random.Random(f"{self.seed} {kind}")

    def of_processes(
        self, hurt: Callable[[Try, random.Random], None], where: str = "", compute: str = "local"
    ) -> Iterator[Found]:
        kind = getattr(hurt, "func", hurt).__name__
        chance = self.chance(kind)
        for k in range(self.tries):
            name = f"{kind}-{k}"
            poison = chance.choice(self.images) if hurt is local.crash_natively else ""
            work = Try.new(self.root / name, self.photos, f"{where}/{name}" if where else "", poison, compute)
            hurt(work, chance)
            keep = pa.array([image != poison for image in self.images])
            wanted = [rows.filter(keep) if poison else rows for rows in self.wanted]
            again = sum(times - 1 for times in work.measured().values())
            yield Found(*differences(results(work), wanted), again)

    def of_the_server(self) -> Iterator[Found]:
        with elsewhere.serving(self.root / "weed") as server:
            yield from self.of_processes(partial(elsewhere.kill_server, server=server), "s3://tables")

    def of_ray(self) -> Iterator[Found]:
        with nodes(3, head_cpus=0) as cluster:
            yield from self.of_processes(partial(elsewhere.lose_node, cluster=cluster), compute=cluster.address)

    def of_the_endpoint(self) -> Iterator[Found]:
        chance = self.chance("hang")
        for k in range(self.tries):
            lost, doubled, twice = elsewhere.hang(self.root / f"hang-{k}", chance)
            yield Found(lost, doubled, 0, 0, twice)

    def of_dagster(self) -> Iterator[Found]:
        graph = elsewhere.Graph(self.root / "graph")
        _, took = graph.run(self.root / "graph" / "calm")
        wanted, chance = graph.tables(self.root / "graph" / "calm"), self.chance("run")
        for k in range(self.tries):
            home = self.root / "graph" / f"{k}"
            ended, _ = graph.run(home, chance.uniform(0, took))
            if not ended:
                graph.run(home)
            yield Found(*differences(graph.tables(home), wanted), graph.repeated(home))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="words that a fault's name must hold one of")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        trials = Trials(Path(place), given.tries, given.seed)
        kinds: dict[str, Callable[[], Iterator[Found]]] = {
            name: partial(trials.of_processes, hurt) for name, hurt in PROCESSES.items()
        }
        kinds |= {SERVER: trials.of_the_server, DAGSTER: trials.of_dagster, RAY: trials.of_ray}
        kinds |= {ENDPOINT: trials.of_the_endpoint}
        print(
            f"{'fault':<34}{'tries':>6}{'lost':>6}{'doubled':>9}{'different':>11}{'again, most':>13}{'paid twice':>12}"
        )
        bad = 0
        for name, kind in kinds.items():
            if given.only and not any(word in name for word in given.only):
                continue
            if name == "the disk is full" and not local.may_mount():
                print(f"{name:<34} left out: only root may mount a tmpfs")
                continue
            start, found = time.monotonic(), list(kind())
            bad += _line(name, found, time.monotonic() - start)
    if bad:
        raise SystemExit(f"{bad} rows lost, doubled or different, or answers paid for twice")


def _line(name: str, found: list[Found], seconds: float) -> int:
    lost, doubled, different, twice = (
        sum(getattr(one, key) for one in found) for key in ("lost", "doubled", "different", "twice")
    )
    most = max(one.again for one in found)
    print(
        f"{name:<34}{len(found):>6}{lost:>6}{doubled:>9}{different:>11}{most:>13}{twice:>12}   ({seconds:.0f} s)",
        flush=True,
    )
    return lost + doubled + different + twice


if __name__ == "__main__":
    main()
