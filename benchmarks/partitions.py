"""What thousands of batches cost Dagster: one partition each, in its SQLite instance.

Run: python benchmarks/partitions.py [--batches N ...] [--conditions]

A project with N sub-folders in its source, as many partitions, and a materialisation of `images` for each. Measured are
the sensor that adds them, the query of an asset's page through the webserver, a run over one batch, `cvp status`, and,
if asked, two ticks of the conditions over all assets.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import requests
import yaml
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor
from dagster._core.definitions.automation_tick_evaluation_context import AutomationTickEvaluationContext
from dagster._serdes import deserialize_value, serialize_value
from PIL import Image
from spent import spent

sys.path.insert(0, str(Path(__file__).parents[1]))

from assets import launch
from assets.automation import batch_sensor
from assets.definitions import project_definitions
from assets.resources import resources
from pipeline.config import find_project
from tests.assets.conftest import settings

NAME = "squares_batches"
_PAGE = """
query Page($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      partitionStats { numMaterialized numPartitions numFailed numMaterializing }
      partitionKeysByDimension { name partitionKeys }
      assetPartitionStatuses { ... on DefaultPartitionStatuses { materializedPartitions unmaterializedPartitions } }
      assetMaterializations(limit: 50) { partition timestamp runId }
    }
  }
}
"""


def make(root: Path, count: int) -> None:
    """A source with `count` batches; only the last holds a photo."""
    for i in range(count):
        (root / "photos" / f"{i:06d}").mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(root / "photos" / f"{count - 1:06d}" / "a.png")
    (root / "projects" / "squares").mkdir(parents=True)
    (root / "projects" / "squares" / "project.yaml").write_text(yaml.safe_dump(settings()))


def told(what: str, work: Callable[[], Any]) -> Any:
    found = spent(work)
    print(f"  {what:<58}{found.wall:>8.1f} s{found.cores:>8.1f} core-s{found.peak:>8.0f} MiB", flush=True)
    return found.result


def page(url: str, key: list[str]) -> int:
    """The query of an asset's page; how many partitions it shows as made."""
    asked = {"query": _PAGE, "variables": {"key": {"path": key}}}
    answer = requests.post(f"{url}/graphql", json=asked, timeout=600).json()
    assert "errors" not in answer, answer
    return int(answer["data"]["assetNodeOrError"]["partitionStats"]["numMaterialized"])


def serve(root: Path) -> tuple[subprocess.Popen[bytes], str]:
    """The webserver on a free port, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dagster_webserver", "-m", "assets.definitions", "-h", "127.0.0.1"]
    with (root / "log").open("wb") as log:
        server = subprocess.Popen([*command, "-p", str(port)], stdout=log, stderr=log)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 300
    while time.monotonic() < end and server.poll() is None:
        try:
            requests.get(f"{url}/server_info", timeout=5)
            return server, url
        except requests.ConnectionError:
            time.sleep(0.2)
    raise SystemExit((root / "log").read_text()[-3000:])


def evaluate(definitions: dg.Definitions, instance: dg.DagsterInstance, cursor: Any) -> Any:
    """Runs asked for, new cursor and evaluations of one tick, as the daemon makes them.

    Dagster's function for tests, `evaluate_automation_conditions`, reads all partitions from the database once for
    every node of every condition; the daemon reads them once.
    """
    tick = AutomationTickEvaluationContext(
        evaluation_id=cursor.evaluation_id + 1,
        instance=instance,
        asset_graph=definitions.resolve_asset_graph(),
        cursor=deserialize_value(serialize_value(cursor), AssetDaemonCursor),
        materialize_run_tags={},
        observe_run_tags={},
        auto_observe_asset_keys=set(),
        asset_selection=dg.AssetSelection.all(include_sources=True) | dg.AssetSelection.all_asset_checks(),
        logger=logging.getLogger("ticks"),
        emit_backfills=False,
    )
    return tick.evaluate()


def measure(root: Path, count: int, conditions: bool) -> None:
    make(root, count)
    project = find_project("squares")
    definitions = project_definitions(project, resources())
    print(f"{count:,} batches", flush=True)

    with launch.instance() as instance:
        tick = partial(evaluate, definitions, instance)
        before = tick(AssetDaemonCursor.empty())[1] if conditions else None
        context = dg.build_sensor_context(instance=instance, resources=resources(), definitions=definitions)
        result = told("the sensor finds all of them", lambda: batch_sensor(project)(context))
        (request,) = result.dynamic_partitions_requests
        told("they are added", lambda: instance.add_dynamic_partitions(NAME, request.partition_keys))
        if conditions:
            runs, cursor, _ = told("conditions ask for all of them, in one tick", lambda: tick(before))
            assert len(runs) >= count
            assert not told("conditions the next time", lambda: tick(cursor))[0]

        def report() -> None:
            for key in request.partition_keys:
                instance.report_runless_asset_event(dg.AssetMaterialization(["squares", "images"], partition=key))

        told("a materialisation for each of them", report)
    server, url = serve(root)
    try:
        first = told("the query of the asset's page, the first time", lambda: page(url, ["squares", "images"]))
        again = told("the same, again", lambda: page(url, ["squares", "images"]))
        assert first == again == count
    finally:
        server.terminate()
        server.wait()
    size = sum(p.stat().st_size for p in launch.dagster_home().rglob("*") if p.is_file())
    print(f"  Dagster's files: {size / 2**20:.1f} MiB", flush=True)
    last = f"{count - 1:06d}"
    outcome = told("a run over one batch", lambda: launch.run("squares", batches=[last], select="images"))
    assert outcome.success and outcome.executed == [f"images[{last}]"], outcome
    told("cvp status", lambda: launch.status("squares"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1000])
    parser.add_argument("--conditions", action="store_true")
    given = parser.parse_args()
    for count in given.batches:
        with tempfile.TemporaryDirectory() as name:
            for variable in ("CVP_STORE", "DAGSTER_HOME"):
                os.environ.pop(variable, None)
            os.environ |= {"CVP_HOME": f"{name}/home", "CVP_PROJECTS": f"{name}/projects"}
            measure(Path(name), count, given.conditions)


if __name__ == "__main__":
    main()
