"""Which images a batch is compared with."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import DriftConfig
from pipeline.predicates import matches


def reference_images(images: pa.Table, splits: pa.Table, config: DriftConfig) -> list[str]:
    """Sorted image_ids that fulfil `drift.reference`, a predicate over `images`, `split` and `gold`.

    Raises:
        ConfigError: it is not a predicate over these columns.
    """
    place = pc.index_in(images.column("image_id"), splits.column("image_id").combine_chunks())
    rows = images.filter(pc.is_valid(place))
    placed = splits.select(["split", "gold"]).take(place.drop_null())
    for name in ("split", "gold"):
        rows = rows.append_column(name, placed.column(name))
    hits = matches(rows, config.reference, "drift.reference")
    return sorted(rows.filter(pa.array(hits)).column("image_id").unique().to_pylist())
