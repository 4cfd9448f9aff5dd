"""What trainings give: rows of `models` and of `learning_curves`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import schema, weights
from pipeline.train.state import Fitted


@dataclass(frozen=True)
class TrainingResult:
    """Rows of `models`, and of `curves` (learning curves; empty for a detector)."""

    models: pa.Table
    curves: pa.Table

    @classmethod
    def nothing(cls) -> TrainingResult:
        return cls(schema.table("models").empty(), schema.table("curves").empty())


def models_row(
    name: str, kind: str, training_set: pa.Table, path: Path, details: dict[str, Any], fitted: Fitted
) -> pa.Table:
    """The row of `models` for the checkpoint at `path`; `details` become its column `config`."""
    row = {
        "model": name,
        "kind": kind,
        "snapshot": snapshot_of(training_set),
        "path": str(path),
        "sha256": weights.file_sha256(path),
        "config": json.dumps(details, sort_keys=True),
        "labels_per_class": None,
        "seconds": fitted.seconds,
        "device": fitted.device,
        "history": json.dumps(fitted.history),
    }
    return schema.table("models").from_rows([row])


def snapshot_of(training_set: pa.Table) -> str:
    """The snapshot that all rows of a `training_set` carry."""
    return str(training_set["snapshot"][0].as_py())


def file_stem(name: str) -> str:
    """A producer as a file's name."""
    return name.replace("@", "-").replace("#", "-")
