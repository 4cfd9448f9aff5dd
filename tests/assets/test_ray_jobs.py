"""Runs as Ray jobs: dagster-ray's launcher, and `ray job submit`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml
from ray_nodes import Nodes, nodes

from pipeline.store import Store
from tests.assets.conftest import World
from tests.assets.test_production import TEMPLATES, launch, processes, repository, stop_sensors, until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def cluster(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A head that takes jobs and one worker, both with the world's environment; the project computes on it."""
    pytest.importorskip("dagster_ray", reason="uv pip install -e '.[ray-jobs]'")
    world.write(compute="auto", workers=1)
    home = tmp_path / "dagster"
    home.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    # Jobs say `dagster` and `cvp`, without a path.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    with nodes(2, with_jobs=True) as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("RAY_JOBS", made.jobs)
        yield made


def test_dagster_launches_a_run_as_a_ray_job(world: World, cluster: Nodes, tmp_path: Path) -> None:
    config = yaml.safe_load((TEMPLATES / "dagster.yaml").read_text())
    config |= yaml.safe_load((TEMPLATES / "run-launcher-ray.yaml").read_text())
    config["run_monitoring"]["poll_interval_seconds"] = 1
    Path(os.environ["DAGSTER_HOME"], "dagster.yaml").write_text(yaml.safe_dump(config))
    with processes(tmp_path) as made, dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("squares_batches", ["a", "b", "c"])
        made.start("web")
        node = repository(made)
        stop_sensors(made, node)
        made.start("daemon")
        run_id = launch(made, node, world)
        until("its end", lambda: instance.get_run_by_id(run_id).is_finished, made)
        assert instance.get_run_by_id(run_id).is_success, made.log()
        events = [record.event_log_entry.message for record in instance.get_records_for_run(run_id).records]
        assert any("Ray run job created" in message for message in events)
    assert Store(world.project.store_uri).batches("detections") == ["a"]


def test_a_run_is_submitted_as_a_ray_job(world: World, cluster: Nodes) -> None:
    command = ["ray", "job", "submit", f"--address={cluster.jobs}", "--", "cvp", "run", "squares", "-b", "a", "-s"]
    said = subprocess.run([*command, "images,detections"], capture_output=True, text=True, timeout=600)
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-3000:]
    assert Store(world.project.store_uri).batches("detections") == ["a"]
