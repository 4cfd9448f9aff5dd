"""Real files with their rows of `images`, for the tests of the stages that open images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline import collect, ids, schema
from pipeline.compute import Compute
from pipeline.config import ProjectConfig, SourceConfig, parse_config
from pipeline.images import Pixels
from pipeline.sources import Source
from pipeline.store import Store


def speckled(seed: int, height: int = 60, width: int = 80) -> Pixels:
    """A coloured ground with a bright rectangle on it."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), rng.integers(0, 120, 3), np.uint8)
    y, x = rng.integers(0, height // 2), rng.integers(0, width // 2)
    image[y : y + height // 3, x : x + width // 3] = rng.integers(150, 255, 3)
    return image


def save(folder: Path, images: Sequence[Pixels], batch: str = "b") -> pa.Table:
    """Each image as a PNG in `folder`, and the rows of `images` that describe them."""
    rows = []
    for k, pixels in enumerate(images):
        path = folder / f"{k:03d}.png"
        Image.fromarray(pixels).save(path)
        rows.append(row(path, pixels.shape[1], pixels.shape[0], batch))
    return schema.table("images").from_rows(rows)


def collect_images(
    source: Source, batch: str, config: SourceConfig, compute: Compute | None = None
) -> tuple[pa.Table, pa.Table]:
    """The tables `images` and `rejected_files`, from scratch."""
    with TemporaryDirectory() as folder:
        staging = Store(folder).staging("images", batch, "f")
        return collect.collect_images(source, batch, config, compute or Compute(), staging)


def row(path: Path, width: int, height: int, batch: str = "b", **more: Any) -> dict[str, Any]:
    """One row of `images`."""
    image = ids.image_id(path.read_bytes())
    found: dict[str, Any] = {"image_id": image, "batch": batch, "uri": str(path), "file_name": path.name}
    found |= {"parent_id": image, "tile_x": 0, "tile_y": 0, "width": width, "height": height}
    found |= {"photo_width": width, "photo_height": height, "format": "PNG", "mode": "RGB", "orientation": 1}
    return found | {"bytes": path.stat().st_size, "location": image, "attributes": []} | more


def tiny_config(**more: Any) -> ProjectConfig:
    """A project of two classes on the tiny profile."""
    return parse_config(
        {"name": "p", "profile": "tiny", "classes": {"cat": {}, "dog": {}}, "source": {"uri": "."}} | more
    )
