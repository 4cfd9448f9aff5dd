"""A training and what it has learnt so far, in the store, wherever it runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.compute import Compute
from pipeline.errors import PipelineError
from pipeline.store import Store
from pipeline.train import loop, ray_train
from pipeline.train.run import Place
from pipeline.train.state import FileCheckpoints, Fitted, Progress
from tests.pipeline import test_store
from tests.pipeline.train.test_train_loop import Line, config
from tests.pipeline.train.together import Memory, peers

s3, store = test_store.s3, test_store.store


def test_what_one_machine_began_another_ends(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(steps=12, checkpoint_every=5)
    steps: list[int] = []

    def on(machine: str, progress: Progress) -> Fitted:
        monkeypatch.setenv("CVP_HOME", str(tmp_path / machine))
        place = Place(Store(store.uri), Compute(), progress)
        return place.run(partial(loop.fit, Line(), settings), settings, place.checkpoints("line", "its identity"))

    def dies(step: int, _: int) -> None:
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on("first", dies)
    fitted = on("second", lambda step, _: steps.append(step))
    undisturbed = loop.fit(Line(), settings, Memory())
    assert steps == list(range(6, 13)) and fitted.history == undisturbed.history
    assert all(torch.equal(fitted.state[k], v) for k, v in undisturbed.state.items())
    # Whoever asked died before the result was used: it is not learnt again.
    again = on("third", lambda step, _: steps.append(step))
    assert len(steps) == 7 and again.history == fitted.history
    kept = Place(store, Compute()).checkpoints("line", "its identity")
    kept.clear()
    assert kept.load() is None and not list(store.files.entries(f"{store.root}/files"))


class _Late:
    """Checkpoints of which a worker sees an older one first."""

    def __init__(self, *steps: int) -> None:
        self._steps = list(steps)

    def load(self) -> dict[str, Any]:
        return {"step": self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]}


def test_workers_begin_with_the_same_checkpoint() -> None:
    shared = [
        ray_train._Shared(kept, mine)  # type: ignore[arg-type]
        for kept, mine in zip((_Late(20), _Late(10, 15, 20), _Late(15, 20)), peers(3), strict=True)
    ]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda one: one.load(), shared)) == [{"step": 20}] * 3


def test_a_finished_training_is_not_begun_by_workers(tmp_path: Path) -> None:
    kept = FileCheckpoints(str(tmp_path / "c.pt"), "x")
    kept.finish(Fitted({"w": torch.ones(2)}, 3.0, [{"step": 1, "loss": 0.5, "lr": 0.1}], "cpu"))
    with pytest.raises(PipelineError, match="done"):
        ray_train._Shared(kept, peers(1)[0]).load()
    result = kept.result()
    assert result is not None and torch.equal(result.state["w"], torch.ones(2)) and result.seconds == 3.0
