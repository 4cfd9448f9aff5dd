"""Which images a batch is compared with."""

from __future__ import annotations

import pyarrow as pa

from pipeline import schema
from pipeline.config import DriftConfig
from pipeline.predicates import matches


def reference_images(images: pa.Table, splits: pa.Table, config: DriftConfig) -> list[str]:
    """Sorted image_ids that fulfil `drift.reference`, a predicate over `images`, `split` and `gold`.

    Raises:
        ConfigError: it is not a predicate over these columns.
    """
    at = {image: i for i, image in enumerate(splits.column("image_id").to_pylist())}
    rows = schema.where_in(images, "image_id", at)
    placed = splits.take(pa.array([at[i] for i in rows.column("image_id").to_pylist()], pa.int64()))
    for name in ("split", "gold"):
        rows = rows.append_column(name, placed.column(name))
    hits = matches(rows, config.reference, "drift.reference")
    return sorted(set(rows.filter(pa.array(hits)).column("image_id").to_pylist()))
