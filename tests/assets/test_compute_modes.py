"""One project, every way to compute: the same tables, bit for bit."""

from pathlib import Path

import pytest

from assets import launch
from pipeline.store import Store
from tests.assets.conftest import World
from tests.assets.test_launch import contents


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["local", pytest.param("auto", marks=pytest.mark.ray)])
@pytest.mark.timeout(600)
def test_tables_do_not_depend_on_where_they_are_computed(
    finished: World, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(Store(finished.project.store_uri))
    monkeypatch.setenv("CVP_HOME", str(tmp_path / "other"))
    finished.write(compute=mode, batch_size=2)
    outcome = launch.run("squares")
    assert outcome.success, outcome.failure
    assert contents(Store(finished.project.store_uri)) == expected
