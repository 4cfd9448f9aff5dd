"""Other tools in environments of their own: their pins would change the project's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import home

_ROOT = home() / "peers"  # before a test moves CVP_HOME
_TIMEOUT = 900


def peer(*packages: str) -> Path:
    """The Python of an environment with `packages`, made once; skips the test where it cannot be made."""
    folder = _ROOT / "-".join(p.split("==")[0] for p in packages)
    python = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        try:
            _run(sys.executable, "-m", "venv", *(["--without-pip"] if _uv() else []), str(folder))
            install = [_uv(), "pip", "install", "--python", str(python)] if _uv() else [python, "-m", "pip", "install"]
            _run(*map(str, install), "--quiet", *packages)
        except (OSError, subprocess.SubprocessError) as error:
            words = getattr(error, "stderr", "") or str(error)
            pytest.skip(f"cannot install {', '.join(packages)}: {str(words).strip()[-300:]}")
        (folder / ".ready").touch()
    return python


def ask(python: Path, script: str, *arguments: str, **environment: str) -> Any:
    """What a script prints as its last line, JSON."""
    made = subprocess.run(
        [str(python), "-c", script, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
    )
    assert made.returncode == 0, made.stderr[-4000:]
    return json.loads(made.stdout.strip().splitlines()[-1])


def _uv() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.is_file() else shutil.which("uv")


def _run(*command: str) -> None:
    environment = {**os.environ, "UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", "")}
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=_TIMEOUT)
