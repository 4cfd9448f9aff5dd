"""Training on Ray: what one process trains, whatever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from ray_nodes import Nodes, nodes

from pipeline.files import LocalFiles
from pipeline.train import fcos, ray_train
from tests.pipeline.train.ray_job import Memory, job

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def difference(a: fcos.Fitted | dict[str, Any], b: fcos.Fitted) -> float:
    state = a["state"] if isinstance(a, dict) else a.state
    assert state.keys() == b.state.keys()
    return max(float((state[k].double() - b.state[k].double()).abs().max()) for k in b.state)


def test_one_worker_trains_the_same_weights_and_two_nearly_so(tmp_path: Path) -> None:
    settings = {"steps": 5, "checkpoint_every": 2}
    alone = fcos.fit(job(tmp_path, **settings), Memory())
    one = ray_train.fit(job(tmp_path, **settings), str(tmp_path / "ray"), "one", "auto", LocalFiles())
    assert difference(one, alone) == 0 and one.history == alone.history
    two = ray_train.fit(
        job(tmp_path, **settings, workers=2, min_workers=2), str(tmp_path / "ray"), "two", "auto", LocalFiles()
    )
    # Adam divides tiny gradients by their own size, so the order of a sum shows in some weights.
    assert 0 < difference(two, alone) < 5e-3
    assert [h["step"] for h in two.history] == [1, 2, 3, 4, 5]
    assert [h["loss"] for h in two.history] == pytest.approx([h["loss"] for h in alone.history], rel=1e-2)
    assert not list((tmp_path / "ray").iterdir())  # a finished run leaves nothing behind


def test_a_list_of_checkpoints_that_was_cut_short_costs_a_new_start(tmp_path: Path) -> None:
    """Ray Train itself would refuse for ever."""
    (tmp_path / "ray" / "run").mkdir(parents=True)
    (tmp_path / "ray" / "run" / ray_train.SNAPSHOT).write_text('{"ray_version": "2.')
    settings = {"steps": 3, "checkpoint_every": 2}
    fitted = ray_train.fit(job(tmp_path, **settings), str(tmp_path / "ray"), "run", "auto", LocalFiles())
    assert fitted.history == fcos.fit(job(tmp_path, **settings), Memory()).history


class Step(NamedTuple):
    """What a worker notes of a step (`ray_job.noted`)."""

    number: int
    rank: int
    workers: int
    pid: int
    node: int


class Training:
    """A training on a cluster, from a process of its own, and what its workers noted."""

    def __init__(self, cluster: Nodes, folder: Path, **settings: Any) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "tests.pipeline.train.ray_job", cluster.address, str(folder)]
        self.process = subprocess.Popen([*command, json.dumps(settings)], env={**os.environ, **cluster.environment})

    def steps(self) -> list[Step]:
        lines = [line for path in self.folder.glob("*.steps") for line in path.read_text().splitlines(keepends=True)]
        return sorted(Step(*map(int, line.split())) for line in lines if line.endswith("\n"))

    def checkpoint(self) -> int:
        """The step of the last checkpoint that Ray knows of."""
        known = []
        with suppress(FileNotFoundError, json.JSONDecodeError):  # it is just being written
            known = json.loads((self.folder / "ray" / "run" / ray_train.SNAPSHOT).read_text())["checkpoint_results"]
        return max((int(one["metrics"]["step"]) for one in known), default=0)

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 300
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end
            time.sleep(0.02)


@contextmanager
def started(cluster: Nodes, folder: Path, **settings: Any) -> Iterator[Training]:
    training = Training(cluster, folder, **settings)
    try:
        yield training
    finally:
        training.process.kill()
        training.process.wait()


def first(steps: list[Step], old: list[Step]) -> Step:
    """The first step of the processes that have no part in `old`."""
    return min(step for step in steps if step.pid not in {known.pid for known in old})


@pytest.mark.timeout(900)
def test_a_lost_worker_and_a_lost_machine_cost_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    """Two workers on two machines; one is killed, then a machine: the one that is left ends what they began."""
    settings = {"steps": 50, "checkpoint_every": 10}
    alone = fcos.fit(job(tmp_path / "alone", **settings), Memory())
    with nodes(3, head_cpus=0) as cluster, started(cluster, tmp_path, **settings, workers=2) as training:
        training.until(lambda: training.checkpoint() >= 10)
        before, kept = training.steps(), training.checkpoint()
        os.kill(before[-1].pid, signal.SIGKILL)
        training.until(lambda: training.checkpoint() >= kept + 10)
        both, kept_then = training.steps(), training.checkpoint()
        cluster.kill(2)
        assert training.process.wait(400) == 0
    steps = training.steps()
    resumed, ended = first(both, before), first(steps, both)
    assert resumed.workers == 2 and kept < resumed.number <= before[-1].number + 1
    assert ended.workers == 1 and kept_then < ended.number <= both[-1].number + 1
    fitted = torch.load(tmp_path / "fitted.pt", weights_only=True)
    assert [h["step"] for h in fitted["history"]] == list(range(1, 51))
    assert [h["loss"] for h in fitted["history"]] == pytest.approx([h["loss"] for h in alone.history], rel=5e-2)
    assert difference(fitted, alone) < 5e-2
