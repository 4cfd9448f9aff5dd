"""A `cvp run` that is killed: Dagster learns of it, and asks for its batches again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from assets import launch, origin
from assets.definitions import project_definitions
from assets.resources import resources
from pipeline.pulse import Beat
from pipeline.store import Store
from tests.assets.conftest import World

STUCK = """
import time
from pathlib import Path
from pipeline.models.roles import Detections

class Stuck:
    def __init__(self, ontology): pass
    def detect(self, images):
        Path(__file__).with_name("at-work").touch()
        while Path(__file__).with_name("gate").exists(): time.sleep(0.05)
        return [Detections() for _ in images]
"""


@pytest.fixture
def killed(world: World) -> Iterator[World]:
    """A world whose `cvp run` was killed in the middle of its first detections."""
    (world.folder / "stuck.py").write_text(STUCK)
    (world.folder / "gate").touch()
    world.write(labelling={"labellers": [{"name": "stuck", "path": "stuck.py:Stuck"}]})
    command = [Path(sys.executable).with_name("cvp"), "run", "squares", "--select", "images,detections"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: (world.folder / "at-work").exists() or running.poll() is not None)
    assert running.poll() is None
    with launch.instance() as instance:
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.STARTED and origin.gone(instance, run) is None
        assert origin.mark_gone(instance) == []
        running.send_signal(signal.SIGKILL)
        until(lambda: origin.gone(instance, run) is not None)  # before anybody has waited for it, too
    running.wait()
    (world.folder / "gate").unlink()
    yield world


def until(happened: object, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.1)


def asked_for(world: World, instance: dg.DagsterInstance, cursor: object) -> tuple[set[str | None], object]:
    """Batches whose detections a tick of the conditions asks for."""
    keys = [["squares", name] for name in ("images", "rejected_files", "detections")]
    found = dg.evaluate_automation_conditions(
        defs=project_definitions(world.project, resources()),
        instance=instance,
        cursor=cursor,
        asset_selection=dg.AssetSelection.assets(*keys),
    )
    return set(found.get_requested_partitions(dg.AssetKey(["squares", "detections"]))), found.cursor


@pytest.mark.slow
def test_a_killed_run_is_marked_by_the_next_and_its_batches_are_asked_for_again(killed: World) -> None:
    with launch.instance() as instance:
        (run,) = instance.get_runs()
        asked, cursor = asked_for(killed, instance, None)
        again = dg.AssetMaterialization(["squares", "images"], partition="a")
        instance.report_runless_asset_event(again)
        asked, cursor = asked_for(killed, instance, cursor)
        assert asked == set(), "Dagster takes the dead run for one in progress"
        assert origin.mark_gone(instance) == [run.run_id]
        dead = instance.get_run_by_id(run.run_id)
        assert dead is not None and dead.is_failure
        (event,) = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
        assert "cvp run squares goes on" in event.message
        asked, cursor = asked_for(killed, instance, cursor)
        assert asked == {"a"}
    outcome = launch.run("squares", select="images,detections")
    assert outcome.success and "detections[a]" in outcome.executed, outcome.failure
    with launch.instance() as instance:
        assert [r.status.value for r in instance.get_runs()] == ["SUCCESS", "FAILURE"]


@pytest.mark.slow
def test_the_launcher_of_the_instance_notices_it(killed: World) -> None:
    with launch.instance() as instance:
        (run,) = instance.get_runs()
        assert instance.run_monitoring_enabled and instance.run_launcher.supports_check_run_worker_health
        health = instance.run_launcher.check_run_worker_health(run)
        assert health.status.value == "FAILED" and f"process {run.tags[origin.PID]} on" in health.msg
        alive = run.with_tags({**run.tags, **origin.tags("squares")})
        assert instance.run_launcher.check_run_worker_health(alive).status.value == "RUNNING"


def test_a_later_process_of_the_same_number_is_another(instance: dg.DagsterInstance) -> None:
    mine = origin.tags("squares")
    made = instance.create_run_for_job(job(), tags={**mine, origin.BORN: f"{mine[origin.BORN]}0"})
    assert "ended without a word" in str(origin.gone(instance, made))
    assert origin.gone(instance, instance.create_run_for_job(job(), tags=mine)) is None
    assert origin.gone(instance, instance.create_run_for_job(job())) is None


def test_of_a_run_elsewhere_only_a_pulse_that_stopped_long_ago_tells(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = {**origin.tags("squares"), origin.HOST: "elsewhere", origin.PID: "7"}
    run = instance.create_run_for_job(job(), tags=elsewhere)
    assert origin.gone(instance, run) is None
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "elsewhere")
        patch.setattr(os, "getpid", lambda: 7)
        Beat(Store(world.project.store_uri), "detections", "a", "inline")._write()
    assert origin.gone(instance, run) is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    assert "no sign of life from elsewhere 7" in str(origin.gone(instance, run))


def test_a_run_elsewhere_that_left_no_pulse_is_judged_by_its_last_event(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = origin.tags("squares")
    for other in ({origin.HOST: "elsewhere"}, {origin.BORN: "another-boot 1"}):  # or a machine of the same name
        run = instance.create_run_for_job(job(), tags={**mine, **other, origin.PID: "7"})
        assert origin.gone(instance, run) is None
        with monkeypatch.context() as patch:
            now = time.time()
            patch.setattr(time, "time", lambda: now + 1800)  # noqa: B023 - called in this very turn
            assert origin.gone(instance, run) is None
            patch.setattr(time, "time", lambda: now + 7200)  # noqa: B023
            assert "no sign of life from" in str(origin.gone(instance, run))


def job() -> dg.JobDefinition:
    @dg.op
    def nothing() -> None:
        pass

    @dg.job
    def empty() -> None:
        nothing()

    return empty
