"""A small project on disk with photos, labels and a review queue, for the tests of reviewing and exchange."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline import masks, schema
from pipeline.config import Project, load_project
from pipeline.ids import annotation_ids, image_id
from pipeline.store import Store

WIDTH, HEIGHT = 160, 120
BATCHES = ("2026-01", "2026 02 ä")


def build(root: Path, monkeypatch: pytest.MonkeyPatch, images: int = 3, boxes: int = 4, **config: Any) -> Project:
    """Two batches of `images` photos with `boxes` waiting labels each: cat, dog, cat with a mask, dog …"""
    for name in ("CVP_STORE", "CVP_SAMPLES", "CVP_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CVP_HOME", str(root / "home"))
    monkeypatch.setenv("CVP_PROJECTS", str(root / "projects"))
    folder = root / "projects" / "pets"
    folder.mkdir(parents=True)
    text = {"name": "pets", "classes": {"cat": {}, "dog": {}}, "source": {"uri": "../../photos"}} | config
    (folder / "project.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    project = load_project(folder)
    store = Store(project.store_uri)
    for number, batch in enumerate(BATCHES):
        frames = [_photo(root / "photos" / batch / f"{k:02d}.png", batch, number * 100 + k) for k in range(images)]
        labels = [row for k, frame in enumerate(frames) for row in _labels(frame, k, boxes)]
        store.write("images", schema.table("images").from_rows(frames), batch)
        store.write("labels", schema.table("labels").from_rows(labels), batch)
        waiting = [row for row in labels if row["status"] == "needs_review"]
        columns = [c.name for c in schema.table("review_queue").columns if not c.optional]
        queue = [
            {k: row[k] for k in row if k in columns} | {"rank": i, "reason": "uncertain score"} | _blank(columns, row)
            for i, row in enumerate(waiting, start=1)
        ]
        store.write("review_queue", schema.table("review_queue").from_rows(queue), batch)
    return project


def _blank(columns: list[str], row: dict[str, Any]) -> dict[str, Any]:
    """Values for columns of the queue that these tests say nothing about."""
    kinds = {c.name: c for c in schema.table("review_queue").columns}
    known = {*row, "rank", "reason"}
    return {name: _default(kinds[name].type) for name in columns if name not in known}


def _default(kind: Any) -> Any:
    text = str(kind)
    return "" if text == "string" else [] if text.startswith("list") else False if text == "bool" else 0


def _photo(path: Path, batch: str, seed: int) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    pixels = draw.integers(40, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[20:60, 30:80] = (200, 80, 40)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    name = image_id(path.read_bytes())
    return {
        "image_id": name, "batch": batch, "uri": str(path), "file_name": path.name, "parent_id": name, "tile_x": 0,
        "tile_y": 0, "width": WIDTH, "height": HEIGHT, "photo_width": WIDTH, "photo_height": HEIGHT, "format": "PNG",
        "mode": "RGB", "orientation": 1, "bytes": path.stat().st_size, "location": name, "attributes": [],
    }  # fmt: skip


def _labels(frame: dict[str, Any], number: int, count: int) -> list[dict[str, Any]]:
    rows = []
    for k in range(count):
        x, y = 8 + 34 * (k % 4), 10 + 28 * (k // 4)
        box = [float(x), float(y), x + 30.25, y + 24.5]
        kind = "cat" if k % 2 == 0 else "dog"
        (name,) = annotation_ids([frame["image_id"]], "m@1#0", [kind], np.array([box], np.float32))
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[y + 2 : y + 20, x + 2 : x + 25] = True
        rows.append(
            {
                "annotation_id": name, "image_id": frame["image_id"], "batch": frame["batch"], "producer": "m@1#0",
                "class_name": kind, "score": 0.5 + 0.01 * k + 0.001 * number, "truncated": False, "ignore": False,
                "is_crowd": False, "status": "needs_review" if k < count - 1 or count == 1 else "accepted",
                "threshold": 0.9, "precision": 0.95, "parts": [name], "decided_by": "score below 0.9",
                "mask": masks.encode(mask) if k == 2 else None,
                **dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
            }
        )  # fmt: skip
    return rows
