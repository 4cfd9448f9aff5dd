"""Rows of `images`, `quality` and people's `labels` with all columns filled in, for several tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema

QUALITY = {
    "brightness": 0.5,
    "contrast": 0.2,
    "shadows": 0.2,
    "highlights": 0.8,
    "sharpness": 500.0,
    "thumbnail_sharpness": 0.5,
    "entropy": 7.0,
    "colourfulness": 20.0,
    "dark_share": 0.0,
    "bright_share": 0.0,
    "aspect_ratio": 1.0,
    "phash": 0,
}


def image_rows(ids: Sequence[str], batch: Sequence[str] = "b", **columns: Sequence[Any] | Any) -> pa.Table:
    """One row an id; `columns` are sequences (one value a row) or one value for all."""
    base: dict[str, Any] = {
        "tile_x": 0, "tile_y": 0, "width": 100, "height": 100, "photo_width": 100,
        "photo_height": 100, "format": "PNG", "mode": "RGB", "orientation": 1, "bytes": 1, "attributes": [],
    }  # fmt: skip
    rows = []
    for i, image in enumerate(ids):
        own = {"image_id": image, "uri": image, "file_name": f"{image}.png", "parent_id": image, "location": image}
        given = {
            k: v[i] if isinstance(v, (list, tuple, np.ndarray)) else v for k, v in ({"batch": batch} | columns).items()
        }
        rows.append(base | own | given)
    return schema.table("images").from_rows(rows)


def quality_rows(ids: Sequence[str], batch: str | Sequence[str] = "b", **columns: Sequence[Any]) -> pa.Table:
    """One row an id, unremarkable but for the sequences in `columns`."""
    batches = [batch] * len(ids) if isinstance(batch, str) else batch
    rows = [
        QUALITY | {"image_id": image, "batch": batches[i], "issues": []} | {k: v[i] for k, v in columns.items()}
        for i, image in enumerate(ids)
    ]
    return schema.table("quality").from_rows(rows)


def unit(vectors: Any) -> NDArray[np.float32]:
    """(n, d) float32 rows of length 1."""
    v = np.asarray(vectors, np.float64)
    return (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)


def as_labels(annotations: pa.Table) -> pa.Table:
    """People's annotations as they are in `labels`."""
    n = annotations.num_rows
    columns = {c.name: annotations.column(c.name) for c in schema.ANNOTATION}
    more = {"status": ["human"] * n, "decided_by": ["people"] * n, "parts": pa.array([[]] * n, schema.STRINGS)}
    return schema.table("labels").from_columns(columns | more)
