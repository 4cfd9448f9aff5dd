"""The production templates on a real Postgres: web UI and daemon as processes of their own, and a host that dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.graph import recipes
from assets.plan import RANGE_END, RANGE_START, asset_keys
from pipeline.config import Project
from pipeline.store import Store
from tests import postgres
from tests.assets.conftest import World

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "docs" / "production"
LABELLER = """
import time
from pathlib import Path
from pipeline.models.roles import Detections

class Slow:
    producer = "slow@1"
    def __init__(self, ontology, **options): self.gate, self.seen = Path("{gate}"), Path("{seen}")
    def detect(self, images):
        while self.gate.exists() and len(list(self.seen.iterdir())) >= 2: time.sleep(0.05)
        (self.seen / str(time.time_ns())).touch()
        return [Detections() for _ in images]
"""
LAUNCH = """mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
    ... on InvalidSubsetError { message }
    ... on RunConfigValidationInvalid { errors { message } } } }"""
STOP = """mutation($id: String!, $selector: String!) { stopSensor(id: $id, jobSelectorId: $selector) { __typename } }"""
SENSORS = """{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name }
    sensors { name id sensorState { selectorId } } } } } }"""
HEALTH = "{ instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } } }"


@pytest.mark.parametrize("name", ["dagster.yaml", "dagster-postgres.yaml"])
def test_the_templates_are_what_dagster_reads(name: str, tmp_path: Path) -> None:
    from dagster._core.instance.config import dagster_instance_config

    (tmp_path / "dagster.yaml").write_text((TEMPLATES / name).read_text())
    config, _ = dagster_instance_config(str(tmp_path))
    assert config["telemetry"] == {"enabled": False} and config["run_monitoring"]["enabled"]
    assert config["run_launcher"]["class"] == "WatchedRunLauncher"
    if name == "dagster-postgres.yaml":
        assert config["storage"]["postgres"]["postgres_db"]["password"] == {"env": "DAGSTER_PG_PASSWORD"}


class Processes:
    """The web UI and the daemon, each with all that it starts in a group of its own, as on hosts of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._running = folder, dict[str, subprocess.Popen[bytes]]()
        with socket.socket() as made:
            made.bind(("127.0.0.1", 0))
            self.port = int(made.getsockname()[1])

    def start(self, name: str) -> None:
        command = {
            "web": ["dagster-webserver", "-h", "127.0.0.1", "-p", str(self.port)],
            "daemon": ["dagster-daemon", "run"],
        }[name]
        program, *rest = command
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [Path(sys.executable).with_name(program), *rest, "-w", ROOT / "workspace.yaml"],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """As when the power goes: everything of that host at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._running[name].pid, signal.SIGKILL)
        self._running.pop(name).wait()

    def close(self) -> None:
        for name in list(self._running):
            self.kill(name)

    def ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/graphql", body)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["data"]

    def log(self) -> str:
        return "".join(f"{p.name}\n{p.read_text()[-3000:]}" for p in self.folder.glob("*.log"))


@contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    made = Processes(folder)
    try:
        yield made
    finally:
        made.close()


def until(what: str, test: Callable[[], Any], made: Processes, seconds: float = 240) -> Any:
    """What `test` gives, as soon as it is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError, KeyError):
            if found := test():
                return found
        time.sleep(0.3)
    raise AssertionError(f"not within {seconds} s: {what}\n{made.log()}")


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(900)
def test_a_run_whose_host_dies_is_marked_failed_and_goes_on_elsewhere(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dagster_postgres", reason="uv pip install -e '.[postgres]'")
    gate, seen = tmp_path / "gate", tmp_path / "seen"
    gate.touch(), seen.mkdir()
    (world.folder / "slow.py").write_text(LABELLER.format(gate=gate, seen=seen))
    world.write(labelling={"labellers": [{"name": "slow", "path": "slow.py:Slow"}]}, batch_size=1)
    with postgres.serving() as variables, processes(tmp_path) as made:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        home = tmp_path / "dagster"
        home.mkdir()
        monkeypatch.setenv("DAGSTER_HOME", str(home))
        template = (TEMPLATES / "dagster-postgres.yaml").read_text()
        hasty = template.replace("poll_interval_seconds: 30", "poll_interval_seconds: 1")
        hasty = hasty.replace("grace_seconds: 60.0", "grace_seconds: 3.0")
        assert hasty.count("_seconds: 1\n") == 1 and "grace_seconds: 3.0" in hasty
        (home / "dagster.yaml").write_text(hasty)
        with dg.DagsterInstance.get() as instance:
            instance.add_dynamic_partitions("squares_batches", ["a", "b", "c"])
            made.start("web")
            node = repository(made)
            stop_sensors(made, node)
            made.start("daemon")
            run_id = launch(made, node, world.project)
            until("the run at work", lambda: len(list(seen.iterdir())) >= 2, made)
            assert instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.STARTED
            until("a healthy daemon", lambda: healthy(made), made)
            before = Store(world.project.store_uri).receipt("images", "a")

            made.kill("daemon")
            gate.unlink()
            time.sleep(1)
            assert instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.STARTED, "nobody has noticed yet"
            made.start("daemon")  # on another host
            until("the dead run marked failed", lambda: instance.get_run_by_id(run_id).is_failure, made)
            retry = until("another try", lambda: retried(instance, run_id), made)
            until("its end", lambda: instance.get_run_by_id(retry).is_finished, made)
            assert instance.get_run_by_id(retry).is_success, made.log()
    store = Store(world.project.store_uri)
    assert store.batches("detections") == ["a"] and store.receipt("images", "a") == before, "what was done is kept"
    assert len(list(seen.iterdir())) >= 6


def launch(
    made: Processes, node: dict[str, Any], project: Project, tables: Sequence[str] = ("images", "detections")
) -> str:
    """Have batch a collected and looked at by the labeller; the run's id."""
    keys = asset_keys([r for r in recipes(project) if r.name in tables])
    selector = {
        "repositoryName": node["name"],
        "repositoryLocationName": node["location"]["name"],
        "pipelineName": f"{project.name}_pipeline",
        "assetSelection": [{"path": list(key.path)} for key in keys],
    }
    tags = [{"key": RANGE_START, "value": "a"}, {"key": RANGE_END, "value": "a"}]
    params = {"selector": selector, "runConfigData": {}, "mode": "default", "executionMetadata": {"tags": tags}}
    found = made.ask(LAUNCH, params=params)["launchPipelineExecution"]
    assert found["__typename"] == "LaunchRunSuccess", found
    return str(found["run"]["runId"])


def repository(made: Processes) -> dict[str, Any]:
    """What the web UI has loaded, once it answers."""
    return until("the web UI", lambda: made.ask(SENSORS)["repositoriesOrError"]["nodes"], made)[0]


def stop_sensors(made: Processes, node: dict[str, Any]) -> None:
    """Nothing starts but what the test starts."""
    for sensor in node["sensors"]:
        made.ask(STOP, id=sensor["id"], selector=sensor["sensorState"]["selectorId"])


def healthy(made: Processes) -> bool:
    statuses = made.ask(HEALTH)["instance"]["daemonHealth"]["allDaemonStatuses"]
    return all(s["healthy"] for s in statuses if s["required"])


def retried(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """The run that was started in place of another."""
    found = instance.get_runs(filters=dg.RunsFilter(tags={"dagster/parent_run_id": run_id}))
    return found[0].run_id if found else None
