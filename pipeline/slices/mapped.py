"""The map: two coordinates an image, on axes that stay where they are when images are added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema

_BLOCK = 16 * 1024


def map_of(encoder: str, ids: Sequence[str], vectors: NDArray[np.floating], before: pa.Table) -> dict[str, pa.Table]:
    """The tables `map` and `map_axes`: (n, d) vectors on their first two principal axes.

    The axes of an earlier map of the same encoder are kept, so that a polygon drawn on it goes on meaning the same
    place. The sign of an axis is such that its largest loading is positive.

    Args:
        ids: n image ids. before: `map_axes` as it was, or no rows.
    """
    known = {row["axis"]: row for row in before.to_pylist() if row["encoder"] == encoder}
    if len(known) == 2 and (not ids or len(known[0]["direction"]) == vectors.shape[1]):
        axes = [known[0], known[1]]
    else:
        axes = _principal(encoder, vectors) if len(ids) else []
    columns: dict[str, Any] = {"image_id": pa.array(ids, pa.string())}
    columns["encoder"] = pa.repeat(pa.scalar(encoder), len(ids))
    for name, axis in zip("xy", axes, strict=False):
        direction = np.array(axis["direction"])
        parts = [np.zeros(0), *(part @ direction for part in _centred(vectors, np.array(axis["mean"])))]
        columns[name] = np.concatenate(parts)
    rows = pa.table(columns).sort_by("image_id") if axes else schema.table("map").empty()
    return {"map": schema.table("map").conform(rows), "map_axes": schema.table("map_axes").from_rows(axes)}


def _centred(vectors: NDArray[np.floating], mean: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Vectors less their mean, some at a time: in double precision all would take twice their memory."""
    return (vectors[top : top + _BLOCK] - mean for top in range(0, len(vectors), _BLOCK))


def _principal(encoder: str, vectors: NDArray[np.floating]) -> list[dict[str, object]]:
    mean = np.asarray(vectors.mean(axis=0, dtype=np.float64))
    covariance = sum(part.T @ part for part in _centred(vectors, mean)) / len(vectors)
    axes = np.linalg.eigh(covariance)[1][:, ::-1].T
    second = axes[1] if len(axes) > 1 else np.zeros(vectors.shape[1])
    found = []
    for k, axis in enumerate((axes[0], second)):
        sign = -1.0 if axis[np.abs(axis).argmax()] < 0 else 1.0
        found.append({"encoder": encoder, "axis": k, "mean": mean.tolist(), "direction": (sign * axis).tolist()})
    return found


def inside(corners: Sequence[tuple[float, float]], places: pa.Table) -> list[str]:
    """The images of the table `map` whose place lies within a polygon."""
    from matplotlib.path import Path

    points = np.stack([places.column("x").to_numpy(), places.column("y").to_numpy()], axis=1)
    within = Path(np.asarray(corners, np.float64)).contains_points(points)
    return places.filter(pa.array(within, pa.bool_())).column("image_id").to_pylist()
