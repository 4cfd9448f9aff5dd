from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import logs
from pipeline.compute import Compute, map_batches
from pipeline.errors import ConfigError
from pipeline.store import Store
from tests.pipeline.compute_work import Squares
from tests.pipeline.test_compute import numbers


@pytest.fixture(autouse=True)
def _quiet_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(logs.VARIABLE, "off")
    yield
    logs.set_up("off")


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_a_line_says_what_where_and_who(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up("json")
    log = logging.getLogger("pipeline.somewhere")
    with logs.labelled(project="p", batch="b"), logs.labelled(shard=3):
        log.warning("lost %d", 2, extra={"rows": 7})
    log.info("outside")
    first, second = lines(capfd.readouterr().err)
    expected = {"level": "warning", "message": "lost 2", "project": "p", "batch": "b", "shard": 3, "rows": 7}
    assert first.items() >= (expected | {"pid": os.getpid()}).items()
    assert "batch" not in second and str(second["at"]).endswith("+00:00")


def test_off_says_nothing_and_other_forms_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up("json")
    logs.set_up("off")
    logging.getLogger("pipeline.somewhere").info("unheard")
    assert not lines(capfd.readouterr().err)
    with pytest.raises(ConfigError, match="no log format 'xml'"):
        logs.set_up("xml")


@pytest.mark.parametrize("mode", ["inline", "local"])
def test_workers_name_project_table_batch_and_shard(
    mode: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logs.set_up("json")
    staging = Store(str(tmp_path / "squares")).staging("detections", "2026/a", "f")
    map_batches(Squares, {"folder": str(tmp_path)}, numbers(8), Compute(mode, 2, 2, 2), staging)
    found = [line for line in lines(capfd.readouterr().err) if line["message"] == "shard done"]
    assert sorted(
        (line["project"], line["table"], line["batch"], line["shard"][:8], line["images"]) for line in found
    ) == [
        ("squares", "detections", "2026/a", "00000000", 4),
        ("squares", "detections", "2026/a", "00000001", 4),
    ]
    assert all((line["pid"] == os.getpid()) == (mode == "inline") for line in found)
