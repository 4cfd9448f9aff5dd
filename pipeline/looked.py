"""Who has looked at which image: told apart from who found nothing there, so that only what is new is looked at.

Rows of `detection_counts` and `prediction_counts` have one row for each image and producer, 0 found included. They
stand for rows of `detections` and `predictions` only where they tell the truth of these: the two tables are files of
their own, and a run may die between writing one and the other.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema

MARK = "looked"
KEYS = ["image_id", "batch", "producer"]  # of a mark


def marked(rows: pa.Table, images: pa.Table, producer: str) -> pa.Table:
    """`rows` with a mark for each of the `images` (image_id, batch) that `producer` has looked at; see `apart`."""
    return pa.concat_tables([_nullable(rows), _nullable(marks(images, producer))], promote_options="default")


def marks(images: pa.Table, producer: str) -> pa.Table:
    """A mark for each of the `images` (image_id, batch)."""
    rows = images.select(["image_id", "batch"])
    rows = rows.append_column("producer", pa.array([producer] * rows.num_rows, pa.string()))
    return rows.append_column(MARK, pa.array([True] * rows.num_rows, pa.bool_()))


def apart(rows: pa.Table, table: str) -> tuple[pa.Table, pa.Table]:
    """The rows of `table` among those with marks, and the marks (image_id, batch, producer)."""
    is_mark = pc.is_valid(rows[MARK])
    said = schema.table(table).conform(rows.filter(pc.invert(is_mark)).drop_columns(MARK))
    return said, rows.filter(is_mark).select(KEYS)


def counted(looked: pa.Table, rows: pa.Table) -> pa.Table:
    """`looked` (with image_id and producer) with a column `found`: how many of `rows` each of its pairs has."""
    return looked.append_column("found", pc.cast(_number(looked, rows), pa.int32()))


def standing(counts: pa.Table, rows: pa.Table) -> pa.Table:
    """Those of `counts` that are true of `rows`."""
    return counts.filter(pc.equal(_number(counts, rows), counts["found"]))


def rows_of(rows: pa.Table, counts: pa.Table) -> pa.Table:
    """The rows that `counts` are about."""
    return rows.filter(pc.is_in(_pairs(rows), _pairs(counts)))


def _number(looked: pa.Table, rows: pa.Table) -> pa.Array:
    told = pc.value_counts(_pairs(rows))
    place = pc.index_in(_pairs(looked), told.field("values"))
    return pc.fill_null(told.field("counts").take(place), 0)


def _pairs(rows: pa.Table) -> pa.Array:
    joined = pc.binary_join_element_wise(rows["image_id"], rows["producer"], "\x1f")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _nullable(rows: pa.Table) -> pa.Table:
    return rows.cast(pa.schema([field.with_nullable(True) for field in rows.schema]))
