"""A day on which a batch arrives every hour and two runs crash: the sensor, the conditions and the hourly schedule."""

import signal
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import dagster as dg
import pytest

from assets import launch
from assets.automation import batch_sensor
from assets.definitions import project_definitions
from assets.resources import resources
from pipeline.store import Store
from tests.assets.conftest import World, add_batch

HOURLY, HOURS, CRASHES = "images,detections", 24, (5, 17)
# Twice a day, all that labels are made of. Hour by hour that would be the same, at ten times the seconds.
LABELLED_AT = (11, 23)
LABELS = "collection,quality,embeddings,duplicates,splits,labelling"
# Kills the process it works in, once, where a file beside it says so.
LABELLER = """
import os, signal
from pathlib import Path
from pipeline.models.roles import Detections

class Squares:
    def __init__(self, ontology):
        self.crash = Path(__file__).with_name("crash")

    def detect(self, images):
        if self.crash.exists():
            self.crash.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return [Detections([[1, 1, 9, 9]], [0.5], ("square",)) for _ in images]
"""


def run(batches: list[str] | None, select: str = HOURLY) -> None:
    """What the daemon starts, in a process of its own where it is to crash."""
    outcome = launch.run("squares", batches=batches, select=select)
    assert outcome.success, outcome.failure


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_of_24_batches_in_a_day_with_two_crashes_every_one_is_labelled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path).enter(monkeypatch)
    world.folder.mkdir(parents=True)
    world.source.mkdir()
    (world.folder / "labellers.py").write_text(LABELLER)
    world.write(labelling={"labellers": [{"name": "own", "kind": "python", "path": "labellers.py:Squares"}]})
    definitions = project_definitions(world.project, resources())
    hourly = definitions.resolve_schedule_def("squares_new_data")
    store, behind = Store(world.project.store_uri), False
    with launch.instance() as instance:
        _, cursor = asked_for(definitions, instance, None)
    for hour in range(HOURS):
        batch = f"2026-11-26-{hour:02d}"
        add_batch(world.source, batch, 2, seed=100 * hour, labelled=not hour)
        with launch.instance() as instance:
            asked, cursor = tick(world, definitions, instance, cursor)
        assert asked == [batch], "the conditions ask for the new batch, once"
        if hour in CRASHES:
            (world.folder / "crash").touch()
            process = get_context("spawn").Process(target=run, args=(asked,))
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL and "detections" in states(batch, "missing")
            behind = True
            continue
        run(asked)
        if behind:  # no tick asks for the lost batch again; the hourly schedule sees that it is not there
            with launch.instance() as instance:
                (request,) = hourly.evaluate_tick(dg.build_schedule_context(instance=instance)).run_requests
            assert dg.AssetKey(["squares", "detections"]) in request.asset_selection
            run(None)
            behind = False
        if hour in LABELLED_AT:
            run(None, LABELS)
    made = Counter((row["asset"], row["batch"]) for row in store.read_ledger().to_pylist())
    batches = [f"2026-11-26-{hour:02d}" for hour in range(HOURS)]
    once = ("images", "detections", "masks", "labels")
    assert {key: times for key, times in made.items() if key[0] in once} == {(a, b): 1 for a in once for b in batches}
    for table in ("detections", "labels"):
        found = Counter(zip(*(store.read(table).column(n).to_pylist() for n in ("batch", "image_id")), strict=True))
        assert Counter(batch for batch, _ in found) == dict.fromkeys(batches, 2) and set(found.values()) == {1}


def tick(
    world: World, definitions: dg.Definitions, instance: dg.DagsterInstance, cursor: object
) -> tuple[list[str | None], object]:
    """One tick of the sensor and of the conditions: batches whose detections are asked for."""
    context = dg.build_sensor_context(instance=instance, resources=resources(), definitions=definitions)
    result = batch_sensor(world.project)(context)
    assert isinstance(result, dg.SensorResult)
    for request in result.dynamic_partitions_requests or []:
        instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
    return asked_for(definitions, instance, cursor)


def asked_for(
    definitions: dg.Definitions, instance: dg.DagsterInstance, cursor: object
) -> tuple[list[str | None], object]:
    """One tick of the conditions."""
    keys = [["squares", name] for name in ("images", "rejected_files", "detections")]
    found = dg.evaluate_automation_conditions(
        defs=definitions, instance=instance, cursor=cursor, asset_selection=dg.AssetSelection.assets(*keys)
    )
    return sorted(found.get_requested_partitions(dg.AssetKey(["squares", "detections"]))), found.cursor


def states(batch: str, word: str) -> list[str]:
    """Names of the assets of a batch that are in this state."""
    return [r["asset"] for r in launch.status("squares").to_pylist() if r["batch"] == batch and r["state"] == word]
