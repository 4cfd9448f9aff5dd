"""The tables: their columns, keys and meaning. One name for asset = table = DuckDB view.

`form` says what a table and a column are, `columns` what several tables share; one module a stage declares its tables,
`tables` finds them by name, and `rows` makes and reads rows that are alike in many of them.
"""

from pipeline.schema.columns import ANNOTATION
from pipeline.schema.form import CORNERS, DOUBLE, FLOAT, STRINGS, Column, Table
from pipeline.schema.rows import (
    annotations,
    best_classes,
    box_array,
    codes,
    held_out,
    thresholds_of,
    where_in,
    with_masks,
)
from pipeline.schema.tables import TABLES, table

__all__ = [
    "ANNOTATION",
    "CORNERS",
    "DOUBLE",
    "FLOAT",
    "STRINGS",
    "TABLES",
    "Column",
    "Table",
    "annotations",
    "best_classes",
    "box_array",
    "codes",
    "held_out",
    "table",
    "thresholds_of",
    "where_in",
    "with_masks",
]
