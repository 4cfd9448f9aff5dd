"""Training on Ray: what one process trains, whatever dies on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.files import LocalFiles
from pipeline.train import fcos, ray_train
from tests.pipeline.train.ray_job import Memory, job

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def difference(a: fcos.Fitted | dict[str, Any], b: fcos.Fitted) -> float:
    state = a["state"] if isinstance(a, dict) else a.state
    assert state.keys() == b.state.keys()
    return max(float((state[k].double() - b.state[k].double()).abs().max()) for k in b.state)


def test_one_worker_trains_the_same_weights_and_two_nearly_so(tmp_path: Path) -> None:
    settings = {"steps": 5, "checkpoint_every": 2}
    alone = fcos.fit(job(tmp_path, **settings), Memory())
    one = ray_train.fit(job(tmp_path, **settings), str(tmp_path / "ray"), "one", "auto", LocalFiles())
    assert difference(one, alone) == 0 and one.history == alone.history
    two = ray_train.fit(
        job(tmp_path, **settings, workers=2, min_workers=2), str(tmp_path / "ray"), "two", "auto", LocalFiles()
    )
    # Adam divides tiny gradients by their own size, so the order of a sum shows in some weights.
    assert 0 < difference(two, alone) < 5e-3
    assert [h["step"] for h in two.history] == [1, 2, 3, 4, 5]
    assert [h["loss"] for h in two.history] == pytest.approx([h["loss"] for h in alone.history], rel=1e-2)
    assert not list((tmp_path / "ray").iterdir())  # a finished run leaves nothing behind
