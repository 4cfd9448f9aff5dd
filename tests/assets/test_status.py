"""`cvp status` of a job that runs in another process, and of one that was killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from assets import launch
from pipeline import pulse
from pipeline.store import Store
from tests.assets.conftest import World

LABELLER = """
import time
from pathlib import Path
from pipeline.models.roles import Detections

class Slow:
    def __init__(self, ontology): self.folder = Path("{folder}")
    def detect(self, images):
        while len(list(self.folder.glob("seen*"))) >= 10 and not (self.folder / "go").exists(): time.sleep(0.02)
        (self.folder / f"seen{{time.time_ns()}}").touch()
        return [Detections() for _ in images]
"""


def cvp(*arguments: str) -> str:
    command = [Path(sys.executable).with_name("cvp"), *arguments]
    # Wide enough that no cell is folded.
    return subprocess.run(
        command, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_status_tells_what_runs_where_how_fast_and_what_died(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.folder / "slow.py").write_text(LABELLER.format(folder=tmp_path))
    world.add("d", 20, seed=300)  # in shards of eight: the first is done, the second waits in its third image
    world.write(labelling={"labellers": [{"name": "slow", "path": "slow.py:Slow"}]}, batch_size=1)
    command = [Path(sys.executable).with_name("cvp"), "--log", "json", "run", "squares", "--batch", "d"]
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen([*command, "--select", "images,detections"], stderr=log, stdout=log)
    store = Store(world.project.store_uri)
    end = time.monotonic() + 200
    while time.monotonic() < end and running.poll() is None:
        if any(p.done == 8 for p in pulse.read(store)):
            break
        time.sleep(0.1)
    else:
        raise AssertionError((tmp_path / "log").read_text())
    shown = cvp("status", "squares")
    (line,) = [line for line in shown.splitlines() if re.match(r" *detections +d ", line)]
    figures = r"8 of 20 +[\d.]+ +[\d.]+ (s|min) +[12] +[\d,]{2,}"
    assert re.search(rf"{figures} +1 of 1 busy, inline +{socket.gethostname()} {running.pid}", line), line
    assert re.search(r"about [\d.]+ (s|min) of work left in all", shown), shown

    running.send_signal(signal.SIGKILL)
    running.wait()
    monkeypatch.setattr(pulse, "SILENT", 0.0)
    assert [p.silent(time.time()) > 0 for p in pulse.read(store)] == [True]
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    (shard,) = [x for x in lines if x["message"] == "shard done" and x["table"] == "detections"]
    assert (shard["project"], shard["batch"], shard["shard"].split("-")[0]) == ("squares", "d", "00000000")

    (tmp_path / "go").touch()
    outcome = launch.run("squares", batches=["d"], select="images,detections")
    assert outcome.success, outcome.failure
    with launch.instance() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(["squares", "detections"]))
    page = event.asset_materialization.metadata
    assert page["memory_mib"].value > 10 and page["workers"].value == 1 and page["lost_workers"].value == 0
    assert page["longest_queue"].value == 1 and page["images_kept"].value == 8
    seconds = store.receipt("detections", "d").written_by["seconds"]
    assert page["images_per_second"].value == round(12 / seconds, 1), "what was kept is not this run's work"
