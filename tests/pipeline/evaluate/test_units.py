"""Models and slices spread over workers: the same tables, whatever dies on the way."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.compute import Compute
from pipeline.errors import ComputeError
from pipeline.evaluate import Spread, compare, evaluate, paired_draws, units
from pipeline.evaluate.classification import Answers
from pipeline.evaluate.rows import ALL, Resampling
from pipeline.evaluate.units import Classes, measured
from pipeline.store import Staging, Store

IDS = [f"i{k:02d}" for k in range(24)]
RESAMPLING = Resampling(50, 0.95, bca=True)


@pytest.fixture(autouse=True)
def every_slice_is_a_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_UNIT", 1)
    monkeypatch.setattr(units, "_ALONE", 0)


def spread(folder: Path, name: str, mode: str = "local") -> Spread:
    return Spread(Compute(mode, workers=2), Store(str(folder)).staging("evaluation", None, name))


def world(tables, task: str) -> tuple[pa.Table, pa.Table, pa.Table, pa.Table, object]:
    """Three models, two splits, two slices."""
    random = np.random.default_rng(0)
    whole = task == "classification"
    boxes = [(i, "ab"[k % 2], None if whole else (x, 0, x + 9, 9)) for k, i in enumerate(IDS) for x in range(0, 40, 20)]
    boxes = boxes[::2] if whole else boxes
    said = []
    for model in ("one@1#0", "two@1#0", "three@1#0"):
        moved = [None if b is None else np.array(b) + random.integers(-3, 4, 4) for _, _, b in boxes]
        named = ["ab"[random.integers(2)] if random.random() < 0.3 else c for _, c, _ in boxes]
        rows = [(i, c, b, random.random()) for (i, _, _), c, b in zip(boxes, named, moved, strict=True)]
        said.append(tables.boxes(rows, model))
    splits = pa.concat_tables([tables.splits(IDS[::2]), tables.splits(IDS[1::2], "val")])
    members = tables.members({"some": IDS[:9], "others": IDS[12:]})
    config = tables.config(["a", "b"], task=task, evaluation={"bootstrap": 20, "interval": "bca"})
    return pa.concat_tables(said), tables.truth(boxes), splits, members, config


@pytest.mark.parametrize(
    ("mode", "task"),
    [
        ("local", "detection"),
        ("inline", "classification"),
        pytest.param("auto", "detection", marks=pytest.mark.ray),
    ],
)
def test_every_compute_gives_the_same_tables(tables, tmp_path: Path, mode: str, task: str) -> None:
    where = world(tables, task)
    plain = evaluate(*where)
    there = evaluate(*where, spread=spread(tmp_path, "e", mode))
    assert plain.keys() == there.keys() and all(plain[name].equals(there[name]) for name in plain)
    more = {"evaluation": plain["evaluation"]}
    compared = compare(*where, **more, spread=spread(tmp_path, "c", "inline"))
    assert compared.num_rows > 0 and compared.equals(compare(*where, **more))
    assert paired_draws(*where, spread=spread(tmp_path, "d", "inline")).equals(paired_draws(*where))


@dataclass(frozen=True)
class Noted(Classes):
    """Leaves a file for each slice that it measures, and kills its process `times` times over 'some'."""

    notes: str
    times: int

    def measure(self, metrics, name):
        place = Path(self.notes) / f"{self.model} {name}"
        done = len(list(place.parent.glob(f"{place.name}.*")))
        place.with_name(f"{place.name}.{done}").touch()
        if (self.model, name) == ("two", "some") and done < self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        super().measure(metrics, name)


def said(notes: Path, times: int) -> list[Noted]:
    random = np.random.default_rng(0)
    slices = {ALL: np.arange(20), "some": np.arange(5), "others": np.arange(5, 20)}
    kinds = [random.integers(0, 2, 20) for _ in range(3)]
    return [
        Noted(
            model,
            "test",
            slices,
            Answers(["a", "b"], kinds[0], k, np.full(20, 0.7)),
            np.zeros((20, 0)),
            str(notes),
            times,
        )
        for model, k in zip(("one", "two"), kinds[1:], strict=True)
    ]


def test_a_killed_worker_costs_one_unit(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "killed").mkdir()
    plain = measured(said(tmp_path / "plain", 0), RESAMPLING, None)
    killed = measured(said(tmp_path / "killed", 1), RESAMPLING, spread(tmp_path, "k"))
    assert plain.num_rows > 0 and killed.equals(plain)
    again = sorted(p.name for p in (tmp_path / "killed").glob("*.1"))
    assert again == ["two some.1"] and len(list((tmp_path / "killed").iterdir())) == 7


def test_a_unit_that_nothing_survives_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A photo that kills is left out; a model on a slice must not be."""

    def killed(worker, options, rows, compute: Compute, staging: Staging) -> None:
        staging.put("done", rows)
        compute.failed(rows.select(["unit"]).append_column("reason", pa.array(["killed the process (SIGKILL)"] * 6)))

    monkeypatch.setattr(units, "map_batches", killed)
    with pytest.raises(ComputeError, match=r"evaluation of one on test, all: it killed .*SIGKILL") as error:
        measured(said(tmp_path, 0), RESAMPLING, spread(tmp_path, "k"))
    assert "bootstrap" in error.value.remedy
    assert not spread(tmp_path, "k").staging.finished(), "nor is it taken for done afterwards"


def test_small_slices_are_one_unit_and_little_work_is_done_here(
    tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes").mkdir()
    monkeypatch.setattr(units, "_UNIT", 20)
    found, images = units._units(said(tmp_path / "notes", 0))
    assert found["slices"].to_pylist() == [[ALL], ["some", "others"]] * 2 and images == 80
    monkeypatch.setattr(units, "_ALONE", 80 * RESAMPLING.draws + 1)
    here = spread(tmp_path, "here", "ray://nowhere:1")
    assert measured(said(tmp_path / "notes", 0), RESAMPLING, here).num_rows > 0
