"""Photos for benchmarks, as rows of `images`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline import ids, schema


def rows_of(paths: list[str], width: int, height: int) -> pa.Table:
    """Rows of `images` for JPEG files of one size."""
    size = {"width": width, "height": height, "photo_width": width, "photo_height": height, "tile_x": 0, "tile_y": 0}
    same = {"batch": "b", "format": "JPEG", "mode": "RGB", "orientation": 1, "bytes": 1, "attributes": [], **size}
    rows = []
    for path in paths:
        image = ids.image_id(Path(path).read_bytes())
        rows.append({"image_id": image, "uri": path, "file_name": path, "parent_id": image, "location": path, **same})
    return schema.table("images").from_rows(rows)
