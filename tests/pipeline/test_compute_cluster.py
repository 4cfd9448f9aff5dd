"""Shards on Ray nodes that are processes of their own, through ray://: bounds, shares of GPUs, and a node that dies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from namespaces import machines, possible
from ray_nodes import Autoscaled, Nodes, nodes

import pipeline

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
SHARDS = 36


def work(cluster: Nodes, folder: Path, **settings: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.pipeline.ray_work", cluster.address, str(folder), json.dumps(settings)]
    environment = {**os.environ, **cluster.environment}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def notes(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("*.note")]


def outlived(cluster: Nodes, folder: Path, lose: Callable[[], None]) -> None:
    """Work on two nodes, one of which is lost in the middle, ends with every shard, at most one of them done twice."""
    running = work(cluster, folder, workers=2, min_workers=2)
    end = time.monotonic() + 300
    while len({n["node"] for n in notes(folder)}) < 2 and running.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    lose()
    done = len(notes(folder))
    said, _ = running.communicate(timeout=400)
    assert running.returncode == 0 and done < SHARDS, said
    found = notes(folder)
    assert len({n["node"] for n in found}) == 2 and SHARDS <= len(found) <= SHARDS + 1
    machines = json.loads((folder / "machines.json").read_text())
    assert len(machines) == 2, f"cvp status tells on which machines workers are: {machines}"


def test_a_node_lost_in_the_middle_costs_a_shard_and_no_row(tmp_path: Path) -> None:
    """Two nodes with an actor each: the other does what is left, and the rows come back whole and in order."""
    with nodes(2) as cluster:
        outlived(cluster, tmp_path, lambda: cluster.kill(1))


def test_a_machine_that_is_unplugged_costs_a_shard_and_no_row(tmp_path: Path) -> None:
    """Nodes in network namespaces of their own: the processes of one live on, but nobody hears of them any more."""
    if not possible():
        pytest.skip("needs root, and a kernel that makes network namespaces")
    with machines(3) as cluster:
        outlived(cluster, tmp_path, lambda: cluster.unplug(2))


def test_no_more_actors_than_gpus_unless_they_share(tmp_path: Path) -> None:
    """Two workers on one GPU: one actor, which has it; asked for none, both, on CPUs."""
    with nodes(1, cpus=2, gpus=1) as cluster:
        for name, settings, actors, gpus in (("null", {}, 1, {"0"}), ("none", {"gpus": 0}, 2, {""})):
            (tmp_path / name).mkdir()
            running = work(cluster, tmp_path / name, workers=2, min_workers=2, **settings)
            said, _ = running.communicate(timeout=400)
            assert running.returncode == 0, said
            found = notes(tmp_path / name)
            assert len(found) == SHARDS and len({n["pid"] for n in found}) == actors
            assert {n["gpus"] or "" for n in found} == gpus
            assert ("the cluster has 1 GPUs" in said) == (name == "null")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise ModuleNotFoundError('not here')", "a Ray actor cannot start: ModuleNotFoundError: not here"),
        ("# other", "the package on "),
    ],
)
def test_a_node_with_other_code_ends_the_run(tmp_path: Path, code: str, told: str) -> None:
    """A package that cannot be imported stands for none, and one with a comment more for another version."""
    other = tmp_path / "other" / "pipeline"
    shutil.copytree(Path(pipeline.__file__).parent, other)
    with (other / "__init__.py").open("a") as file:
        file.write(code)
    (tmp_path / "out").mkdir()
    with nodes(1, head_cpus=0) as cluster:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(other.parent))
            cluster.add()
        running = work(cluster, tmp_path / "out", workers=2)
        said, _ = running.communicate(timeout=400)
    assert running.returncode == 1 and told in said, said
    assert not notes(tmp_path / "out")


def test_actors_share_gpus_and_wait_for_their_number(tmp_path: Path) -> None:
    """Four actors on two GPUs: two on each, none before all are up, one shard each at a time; five are too many."""
    with nodes(1, cpus=2, gpus=2) as cluster:
        running = work(cluster, tmp_path, workers=4, min_workers=4, cpus=0.5, gpus=0.5)
        said, _ = running.communicate(timeout=400)
        assert running.returncode == 0, said
        found = notes(tmp_path)
        sharing = {n["gpus"]: {m["pid"] for m in found if m["gpus"] == n["gpus"]} for n in found}
        assert len(found) == SHARDS and sorted(map(len, sharing.values())) == [2, 2]
        at_once = [sum(m["began"] <= n["began"] < m["ended"] for m in found) for n in found]
        assert max(at_once) <= 4 and {n["threads"] for n in found} == {"1"}

        (tmp_path / "more").mkdir()
        running = work(cluster, tmp_path / "more", workers=5, min_workers=5, gpus=0.5, cpus=0.1, patience=20)
        said, _ = running.communicate(timeout=400)
        assert running.returncode == 1 and "of 5 Ray actors came up within 20 s" in said, said
        assert not notes(tmp_path / "more")


def test_machines_come_with_the_work_and_go_after_it(tmp_path: Path) -> None:
    """A head without CPUs: Ray's autoscaler starts a machine for each actor asked for, and ends them when idle."""
    with nodes(1, head_cpus=0, kind=Autoscaled) as cluster:
        assert isinstance(cluster, Autoscaled)
        running = work(cluster, tmp_path, workers=2, min_workers=2)
        said, _ = running.communicate(timeout=400)
        assert running.returncode == 0, said
        assert len(notes(tmp_path)) == SHARDS and len({n["node"] for n in notes(tmp_path)}) == 2
        end = time.monotonic() + 120
        while "worker" in (status := cluster.status()) and time.monotonic() < end:
            time.sleep(1)
        assert "1 ray.head.default" in status and "worker" not in status
