"""A few of every fault: the benchmark that counts them must find nothing lost, doubled, different or paid twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import home

FAULTS = Path(__file__).parents[1] / "benchmarks" / "faults"
OF_PROCESSES = ("worker", "driver", "short", "natively")


def faults(*words: str, tries: int) -> str:
    # `home`: where the tools of the tests lie, whatever the shell says.
    command = [sys.executable, FAULTS, "--tries", str(tries), "--seed", "0", "--only", *words]
    given = os.environ | {"CVP_HOME": str(home())}
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_killed_processes_cut_shards_and_fatal_photos_cost_nothing() -> None:
    said = faults(*OF_PROCESSES, tries=1)
    assert all(word in said for word in OF_PROCESSES)


@pytest.mark.slow
def test_a_full_disk_costs_nothing() -> None:
    assert "the disk is full" in faults("disk", tries=2)


@pytest.mark.slow
def test_a_killed_dagster_run_and_a_hanging_endpoint_cost_nothing() -> None:
    said = faults("Dagster", "endpoint", tries=1)
    assert "Dagster" in said and "endpoint" in said


@pytest.mark.slow
@pytest.mark.network
def test_a_jumping_clock_and_a_killed_s3_server_cost_nothing() -> None:
    said = faults("clock", "S3", tries=1)
    assert "clock" in said and "S3" in said
