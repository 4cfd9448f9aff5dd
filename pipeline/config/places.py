"""Where things lie: from the environment."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Where everything that is made lies: CVP_HOME, or .cvp in the working directory."""
    return Path(os.environ.get("CVP_HOME", ".cvp")).expanduser().resolve()


def store_root() -> str:
    """Root of all tables: CVP_STORE (a folder or s3://bucket/prefix), or CVP_HOME/store."""
    return os.environ.get("CVP_STORE") or str(home() / "store")


def samples_root() -> Path:
    return Path(os.environ.get("CVP_SAMPLES") or home() / "samples")


def weights_root() -> Path:
    return Path(os.environ.get("CVP_WEIGHTS") or home() / "weights")


def projects_root() -> Path:
    """Folder whose sub-folders hold a project.yaml each: CVP_PROJECTS, or projects/ beside this package."""
    return Path(os.environ.get("CVP_PROJECTS") or Path(__file__).parents[2] / "projects").resolve()
