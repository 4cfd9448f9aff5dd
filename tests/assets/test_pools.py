"""Two projects in one queue, whose labellers share a pool: the shipped dagster.yaml, on SQLite."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
import yaml

from pipeline.config import load_project
from pipeline.store import Store
from tests.assets.conftest import World, settings
from tests.assets.test_production import TEMPLATES, launch, processes, repository, stop_sensors, until

NAMES = ("squares", "circles")
# Says when it has its model in memory, and keeps it there until it may go on.
LABELLER = """
import time
from pathlib import Path
from pipeline.models.roles import Detections

class Held:
    def __init__(self, ontology, name):
        self.said = Path("{folder}") / "said"
        self.gate, self.name = self.said.with_name("gate"), name
    def say(self, what):
        with self.said.open("a") as file: file.write(f"{{self.name}} {{what}}\\n")
    def detect(self, images):
        self.say("in")
        while self.gate.exists(): time.sleep(0.05)
        time.sleep(0.2)
        self.say("out")
        return [Detections() for _ in images]
"""


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(900)
def test_two_projects_take_turns_at_a_pool_and_do_the_rest_at_the_same_time(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, gate, home = tmp_path / "said", tmp_path / "gate", tmp_path / "dagster"
    gate.touch(), said.touch(), home.mkdir()
    for name in NAMES:
        folder = world.root / "projects" / name
        folder.mkdir(exist_ok=True)
        (folder / "held.py").write_text(LABELLER.format(folder=tmp_path))
        held = {"name": "held", "path": "held.py:Held", "options": {"name": name}}
        text = yaml.safe_dump(settings(name=name, labelling={"labellers": [held]}, batch_size=1))
        (folder / "project.yaml").write_text(text)
    projects = {name: load_project(world.root / "projects" / name) for name in NAMES}
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    (home / "dagster.yaml").write_text((TEMPLATES / "dagster.yaml").read_text())
    with processes(tmp_path) as made, dg.DagsterInstance.get() as instance:
        for name in NAMES:
            instance.add_dynamic_partitions(f"{name}_batches", ["a"])
        made.start("web")
        node = repository(made)
        stop_sensors(made, node)
        runs = [launch(made, node, project, ("images", "quality", "detections")) for project in projects.values()]
        made.start("daemon")
        until("the first at the pool", lambda: said.read_text(), made)
        first = said.read_text().split()[0]
        (other,) = {*NAMES} - {first}
        store = Store(projects[other].store_uri)
        until("the other at work outside the pool", lambda: store.receipt("quality", "a"), made)
        assert said.read_text() == f"{first} in\n" and store.receipt("detections", "a") is None
        info = instance.event_log_storage.get_concurrency_info("gpu")
        assert info.slot_count == 1 and info.active_slot_count == 1
        gate.unlink()
        until("both ends", lambda: all(instance.get_run_by_id(run).is_finished for run in runs), made)
        assert all(instance.get_run_by_id(run).is_success for run in runs), made.log()
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0
    lines = said.read_text().splitlines()
    assert lines == [f"{name} {what}" for name in (first, other) for _ in range(6) for what in ("in", "out")]
