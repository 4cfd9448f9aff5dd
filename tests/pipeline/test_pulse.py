from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import pulse
from pipeline.compute import Load
from pipeline.pulse import Pulse
from pipeline.store import Store

PULSE = Pulse("detections", "a", "host", 7, began=100.0, seen=110.0, done=30, kept=10, total=130)


def test_rate_and_time_left_leave_out_what_was_done_before() -> None:
    assert PULSE.rate == pytest.approx(2.0) and PULSE.left == pytest.approx(50.0)
    assert replace(PULSE, done=10).left is None and replace(PULSE, total=0).left is None
    assert replace(PULSE, done=130).left == 0


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 200), st.floats(0, 1e6))
def test_no_pulse_promises_less_than_no_time(kept: int, more: int, rest: int, seconds: float) -> None:
    found = replace(PULSE, kept=kept, done=kept + more, total=kept + more + rest, seen=100.0 + seconds)
    assert found.rate >= 0 and (found.left is None or found.left >= 0)


def test_work_is_told_while_it_goes_on_and_not_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "FIRST", 0.01)
    monkeypatch.setattr(pulse, "EVERY", 0.02)
    store = Store(str(tmp_path / "p"))
    with pulse.beating(store, "masks", "2026/a b", "local") as beat:
        beat.load(Load(workers=2, busy=2, waiting=5, lost=0, kept=16, total=80))
        beat.load(Load(workers=2, busy=2, waiting=3, lost=1, kept=16, total=80, nodes={"node-3 (10.0.0.3)": 2}))
        beat.progress(48, 80)
        found = until_done(store, 48)
        assert (found.table, found.batch, found.pid) == ("masks", "2026/a b", os.getpid())
        assert (found.done, found.kept, found.total) == (48, 16, 80)
        assert (found.workers, found.busy, found.waiting, found.lost) == (2, 2, 3, 1)
        assert found.nodes == {"node-3 (10.0.0.3)": 2} and found.memory > 1 and beat.longest_queue == 5
    assert pulse.read(store) == []


def test_short_work_writes_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "p"))
    with pulse.beating(store, "masks", None, "inline"):
        pass
    assert not (tmp_path / "p" / "_pulse").exists()


def test_a_killed_process_leaves_its_pulse_which_grows_old_and_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "p"))
    code = (
        "import sys, time; from pipeline import pulse; from pipeline.store import Store; pulse.FIRST = 0.01\n"
        "with pulse.beating(Store(sys.argv[1]), 'quality', 'a', 'inline'): time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, store.uri])
    while not pulse.read(store):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = pulse.read(store)
    assert left.silent(left.seen + 5) == 0 and left.silent(left.seen + 300) == pytest.approx(300)
    monkeypatch.setattr(pulse, "_FORGOTTEN", 0.0)
    monkeypatch.setattr(pulse, "FIRST", 0.01)
    with pulse.beating(store, "masks", None, "inline"):
        until_done(store, 0, "masks")
        assert [p.table for p in pulse.read(store)] == ["masks"]


def test_a_damaged_or_foreign_pulse_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "p" / "_pulse"
    folder.mkdir(parents=True)
    (folder / "x.json").write_text("{")
    (folder / "y.json").write_text(json.dumps({"colour": "red"}))
    assert pulse.read(Store(str(tmp_path / "p"))) == []


def until_done(store: Store, done: int, table: str = "masks") -> Pulse:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for found in pulse.read(store):
            if found.done == done and found.table == table:
                return found
        time.sleep(0.01)
    raise AssertionError("nobody told it")
