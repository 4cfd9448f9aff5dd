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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from ray_nodes import Nodes, nodes

from pipeline.compute import Compute
from pipeline.errors import PipelineError
from pipeline.images import UnusableImage
from pipeline.train import fcos, ray_train
from pipeline.train.state import Fitted
from tests.pipeline.train import test_train_clip as clip
from tests.pipeline.train import test_train_grounding_dino as dino
from tests.pipeline.train import test_train_sam as sam
from tests.pipeline.train.ray_job import job, kept
from tests.pipeline.train.together import Memory

clips = clip.world
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True, scope="module")
def own_ray() -> None:
    """Workers have the variables that were set when Ray was started: here, not those of an earlier test."""
    import ray

    ray.shutdown()


def difference(a: dict[str, Any], b: Fitted) -> float:
    assert a.keys() == b.state.keys()
    return max(float((a[k].double() - b.state[k].double()).abs().max()) for k in b.state)


def on_ray(job: fcos.Job, folder: Path) -> Fitted:
    return ray_train.fit(partial(fcos.fit, job), job.config, kept(folder), Compute("auto"), None)


def test_one_worker_trains_the_same_weights(tmp_path: Path) -> None:
    mine = job(tmp_path, steps=5, checkpoint_every=2)
    alone, fitted = fcos.fit(mine, Memory()), on_ray(mine, tmp_path)
    assert difference(fitted.state, alone) == 0 and fitted.history == alone.history
    assert kept(tmp_path).result() is not None  # until whoever asked for it has used it
    assert not list((tmp_path / "files" / "ray").iterdir())


def test_what_is_wrong_with_a_photo_is_told_as_it_is(tmp_path: Path) -> None:
    mine = job(tmp_path, steps=5, max_failures=0)
    (tmp_path / "p.png").rename(tmp_path / "q.png")  # another photo is still there: the folder is mounted
    with pytest.raises(UnusableImage, match=r"p\.png"):
        on_ray(mine, tmp_path)


def workers() -> set[int]:
    """Processes of Ray Train's workers below this one."""
    todo, found = [os.getpid()], set()
    while todo:
        process = Path("/proc") / str(pid := todo.pop())
        with suppress(OSError):  # it has ended
            if b"RayTrainWorker" in (process / "cmdline").read_bytes():
                found.add(pid)
            todo += [int(c) for task in (process / "task").iterdir() for c in (task / "children").read_text().split()]
    return found


def test_a_killed_worker_costs_no_finished_step_and_a_spent_budget_keeps_the_last(
    clips: dict[str, Any], tmp_path: Path
) -> None:
    """Two workers: one is killed after a checkpoint, then the budget is spent; one process ends what they began."""
    project = clip.config(clips, steps=6, checkpoint_every=1, workers=2, min_workers=2)
    told: list[int] = []
    killed: set[int] = set()

    def progress(step: int, _: int) -> None:
        told.append(step)
        if step >= 2 and not killed:
            killed.update(workers())
            os.kill(min(killed), signal.SIGKILL)
        elif step >= 4:
            assert not workers() & killed
            raise PipelineError("the budget is spent", "raise it")

    with pytest.raises(PipelineError, match="the budget"):
        clip.trained(clips, project, tmp_path / "two", Compute("auto"), progress)
    assert len(killed) == 2 and told == sorted(set(told))
    (left,) = (tmp_path / "two" / "files" / "models").glob("*.pt")
    told.clear()
    both = clip.trained(clips, project, tmp_path / "two", Compute(), lambda step, _: told.append(step))
    alone = clip.trained(clips, project, tmp_path / "one")
    assert told[0] > 4 and told[-1] == 6 and not left.exists()
    (mine,), (other,) = (result.models.to_pylist() for result in (both, alone))
    assert mine["model"] == other["model"]
    found, wanted = (json.loads(row["history"]) for row in (mine, other))
    assert [h["step"] for h in found] == [1, 2, 3, 4, 5, 6]
    assert [h["loss"] for h in found] == pytest.approx([h["loss"] for h in wanted], rel=1e-2)


@pytest.mark.parametrize("kind", [sam, pytest.param(dino, marks=pytest.mark.weights)])
def test_two_workers_tune_the_model_of_one(kind: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = kind.made(tmp_path_factory.mktemp("world"))
    project = kind.config(made, steps=2, workers=2, min_workers=2)
    told: list[tuple[int, int]] = []
    both = kind.trained(made, project, tmp_path / "two", Compute("auto"), lambda *news: told.append(news))
    alone = kind.trained(made, project, tmp_path / "one")
    assert told[-1] == (2, 2)
    (mine,), (other,) = (result.models.to_pylist() for result in (both, alone))
    assert mine["model"] == other["model"] and Path(mine["path"]).is_file()
    assert [p.name for p in Path(mine["path"]).parent.iterdir() if p.is_file()] == [Path(mine["path"]).name]
    found, wanted = ([h["loss"] for h in json.loads(row["history"])] for row in (mine, other))
    assert found == pytest.approx(wanted, rel=1e-2)
    found, wanted = (result.curves["y"].to_pylist() for result in (both, alone))
    assert found == pytest.approx(wanted, abs=0.02)


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
        """The step of the last checkpoint."""
        return int((kept(self.folder).load() or {"step": 0})["step"])

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 300
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end
            time.sleep(0.1)


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
    assert difference(fitted["state"], alone) < 5e-2
