"""The map: two coordinates an image, on axes that stay where they are when images are added."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema


def map_of(encoder: str, ids: Sequence[str], vectors: NDArray[np.floating], before: pa.Table) -> dict[str, pa.Table]:
    """The tables `map` and `map_axes`: (n, d) vectors on their first two principal axes.

    The axes of an earlier map of the same encoder are kept, so that a polygon drawn on it goes on meaning the same
    place. The sign of an axis is such that its largest loading is positive.

    Args:
        ids: n image ids. before: `map_axes` as it was, or no rows.
    """
    points = np.asarray(vectors, np.float64)
    known = {row["axis"]: row for row in before.to_pylist() if row["encoder"] == encoder}
    if len(known) == 2 and (not ids or len(known[0]["direction"]) == points.shape[1]):
        axes = [known[0], known[1]]
    else:
        axes = _principal(encoder, points) if len(ids) else []
    columns = {"image_id": list(ids), "encoder": [encoder] * len(ids)}
    for name, axis in zip("xy", axes, strict=False):
        columns[name] = ((points - np.array(axis["mean"])) @ np.array(axis["direction"])).tolist()
    rows = pa.table(columns).sort_by("image_id") if axes else schema.table("map").empty()
    return {"map": schema.table("map").conform(rows), "map_axes": schema.table("map_axes").from_rows(axes)}


def _principal(encoder: str, points: NDArray[np.float64]) -> list[dict[str, object]]:
    mean = points.mean(axis=0)
    covariance = np.cov(points.T, bias=True).reshape(points.shape[1], points.shape[1])
    axes = np.linalg.eigh(covariance)[1][:, ::-1].T
    second = axes[1] if len(axes) > 1 else np.zeros(points.shape[1])
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
