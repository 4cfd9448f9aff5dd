"""Random labels, hostile ones included, for the tests of what goes out and comes back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import masks, schema

CLASSES = [
    "cat", "traffic light", "<b>&\"'dog", "Bäume, 山", "a\tb\nc", "x\x01y", " edge ", "]]>", "cvp", "true", "null",
]  # fmt: skip
STATUSES = ["accepted", "verified", "needs_review", "rejected", "human"]


def images(count: int = 12, seed: int = 0) -> pa.Table:
    """Rows of `images` of many sizes, in two batches."""
    draw = np.random.default_rng(seed)
    rows = []
    for k in range(count):
        width, height = (int(v) for v in draw.integers(24, 320, 2))
        rows.append(
            {
                "image_id": draw.bytes(32).hex(), "batch": ["2026-01 north", "b"][k % 2], "uri": f"/photos/{k}.png",
                "file_name": f"sub dir/ä & <{k}>.v2.png", "parent_id": "p", "tile_x": 0, "tile_y": 0, "width": width,
                "height": height, "photo_width": width, "photo_height": height, "format": "PNG", "mode": "RGB",
                "orientation": 1, "bytes": 1, "location": "x", "attributes": [],
            }
        )  # fmt: skip
    return schema.table("images").from_rows(rows)


def _mask(draw: np.random.Generator, height: int, width: int) -> str:
    kind = draw.integers(5)
    mask = np.zeros((height, width), bool)
    if kind == 1:
        mask[:] = True
    elif kind == 2:
        mask = draw.random((height, width)) < 0.5
    elif kind > 2:
        y, x = sorted(draw.integers(0, height, 2)), sorted(draw.integers(0, width, 2))
        mask[y[0] : y[1] + 1, x[0] : x[1] + 1] = draw.random((y[1] - y[0] + 1, x[1] - x[0] + 1)) < 0.9
    return masks.encode(mask)


def labels(of: pa.Table, count: int = 1000, seed: int = 0) -> pa.Table:
    """`count` rows of `labels` on the images `of`: boxes, masks, both, or labels of the whole image."""
    draw = np.random.default_rng(seed)
    frames = of.to_pylist()
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        frame = frames[int(draw.integers(len(frames)))]
        size = np.array([frame["width"], frame["height"]])
        low, high = np.sort(draw.random((2, 2)), axis=0) * size
        box = [*low, *np.maximum(high, np.minimum(low + 1, size))]
        if draw.random() < 0.1:
            box = [0.0, 0.0, *(float(v) for v in size)]
        form = draw.random()
        name = draw.bytes(12).hex()
        rows.append(
            {
                "annotation_id": name, "image_id": frame["image_id"], "batch": frame["batch"],
                "producer": "m@1#ab", "class_name": CLASSES[int(draw.integers(len(CLASSES)))],
                "score": float(draw.random()), "truncated": bool(draw.integers(2)), "ignore": bool(draw.integers(2)),
                "is_crowd": bool(draw.integers(2)), "status": STATUSES[int(draw.integers(5))],
                "threshold": float(draw.random()) if draw.random() < 0.5 else None,
                "precision": float(draw.random()) if draw.random() < 0.5 else None,
                "certificate": draw.bytes(8).hex() if draw.random() < 0.5 else None,
                "parts": [name, *(draw.bytes(12).hex() for _ in range(int(draw.integers(3))))],
                "decided_by": "score \x02 <below> \u2028 & 'that'",
                "mask": _mask(draw, frame["height"], frame["width"]) if 0.3 < form < 0.6 else None,
                **dict(zip(("x1", "y1", "x2", "y2"), box if form < 0.8 else [None] * 4, strict=True)),
            }
        )  # fmt: skip
    return schema.table("labels").from_rows(rows)


def equal(one: pa.Table, other: pa.Table) -> None:
    """Assert that two tables of labels agree: boxes to a hundredth of a pixel, all else exactly."""
    order = [("batch", "ascending"), ("annotation_id", "ascending")]
    a, b = one.sort_by(order), other.sort_by(order)
    assert a.num_rows == b.num_rows
    np.testing.assert_allclose(schema.box_array(a), schema.box_array(b), atol=0.01)
    for name in a.column_names:
        if name not in ("x1", "y1", "x2", "y2"):
            assert a.column(name).to_pylist() == b.column(name).to_pylist(), name
