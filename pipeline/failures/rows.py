"""Rows of `failures`, and what all of them need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
Columns = dict[str, Any]


def table(model: str, rows: pa.Table, columns: Columns, evidence: Mapping[str, Flags], about: pa.Table) -> pa.Table:
    """Rows of `failures`: annotations, what is said of each, and the facts `about` its image."""
    flags = {
        **evidence,
        "confused": np.array([name is not None for name in columns["confused_with"]], bool),
        "label_error": np.array([name is not None for name in columns["doubted_by"]], bool),
        **{name: _flags(about, name) for name in ("dark", "blurry", "unlike_training")},
    }
    given = {k: pa.array(v, from_pandas=True) for k, v in columns.items() if v is not None}
    kept = ("image_id", "batch", "annotation_id", "class_name", *schema.CORNERS)
    facts = ("brightness", "sharpness", "distance", "nearest")
    return schema.table("failures").from_columns(
        {
            "model": pa.array([model] * rows.num_rows, pa.string()),
            **{k: rows.column(k) for k in kept},
            **{k: about.column(k) for k in facts},
            **given,
            "causes": _lists(flags),
        }
    )


def _flags(rows: pa.Table, name: str) -> Flags:
    return np.asarray(rows.column(name).to_numpy(zero_copy_only=False), bool)


def _lists(flags: Mapping[str, Flags]) -> pa.Array:
    """(n,) lists of the names that hold."""
    table = np.stack(list(flags.values()), axis=1)
    _, which = np.nonzero(table)
    offsets = np.concatenate([[0], np.cumsum(table.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.array(list(flags), object)[which], pa.string()))


def doubted(doubts: pa.Table, at: Ints) -> Columns:
    """How strong the doubts at (n,) rows are, and whose; null where there is none, -1."""
    rows = doubts.select(["suspicion", "model"]).take(pa.array(at, mask=at < 0))
    return {"suspicion": rows["suspicion"].to_pylist(), "doubted_by": rows["model"].to_pylist()}
