"""Whatever is written meets a disk that takes no more: an error with a remedy, and nothing cut short under its name."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import warehouse, weights
from pipeline.cli import results
from pipeline.errors import StoreUnavailable, WeightsError
from pipeline.lines import Lines
from pipeline.models import fcos
from pipeline.models.probe import Probe
from pipeline.store import Store
from pipeline.train.state import FileCheckpoints

ROOM = 2048  # bytes


@contextmanager
def full() -> Iterator[None]:
    """The kernel refuses to let any file grow beyond ROOM."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)  # Python would keep modules cut short
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _checkpoint(path: Path) -> None:
    import torch

    FileCheckpoints(str(path), "i").save({"weights": torch.zeros(5000)})


def _detector(path: Path) -> None:
    import torch

    fcos.save(path, {"weights": torch.zeros(5000)}, fcos.FcosConfig(("tree",)))


def _probe(path: Path) -> None:
    Probe(("a",), np.zeros((1, 5000), np.float32), np.zeros(1, np.float32), "e").save(path)


def _warehouse(path: Path) -> None:
    warehouse.build(Store(str(path.parent / "store")), path)


def _answer(path: Path) -> None:
    results.write(pa.table({"x": np.random.default_rng(0).random(5000)}), "csv", path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "checkpoint": _checkpoint,
    "detector": _detector,
    "probe": _probe,
    "warehouse": _warehouse,
    "answer": _answer,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_told_and_what_was_there_stays(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "made"
    path.write_text("from before")
    with full(), pytest.raises(StoreUnavailable, match=f"cannot write {path}: ") as error:
        WRITERS[kind](path)
    assert "free space" in error.value.remedy
    assert path.read_text() == "from before" and [p.name for p in tmp_path.iterdir()] == ["made"]
    WRITERS[kind](path)
    assert path.stat().st_size > ROOM


def test_lines_that_do_not_fit_are_no_lines(tmp_path: Path) -> None:
    book = Lines(Store(str(tmp_path)), str(tmp_path / "book"))
    book.append([b"one\n"])
    with full(), pytest.raises(StoreUnavailable, match=f"cannot write to {tmp_path / 'book'}: "):
        book.append([b"x" * ROOM + b"\n"])
    assert [p.read_bytes() for p in (tmp_path / "book").iterdir()] == [b"one\n"]


def test_weights_and_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "net.pth"
    source.write_bytes(b"w" * 2 * ROOM)
    monkeypatch.setenv("CVP_WEIGHTS", str(tmp_path / "cache"))
    with full(), pytest.raises(WeightsError, match="cannot copy"):
        weights.pull(source.as_uri())
    assert not list((tmp_path / "cache").rglob("*.pth"))
    monkeypatch.setenv("CVP_WEIGHTS", "/proc/cache")  # where not even root may make a folder
    with pytest.raises(StoreUnavailable, match="cannot write /proc/cache: "):
        weights.pull(source.as_uri())
    with pytest.raises(StoreUnavailable, match="cannot write /proc/store/"):
        Store("/proc/store").folder("models")
