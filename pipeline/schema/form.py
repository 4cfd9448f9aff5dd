"""What a table and a column are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataError, StoreError

STRING, FLOAT, DOUBLE = pa.string(), pa.float32(), pa.float64()
INT, LONG, BOOL = pa.int32(), pa.int64(), pa.bool_()
TIME = pa.timestamp("us", tz="UTC")
CLOCK = pa.timestamp("us")
CORNERS = ("x1", "y1", "x2", "y2")  # columns of a box
STRINGS = pa.list_(pa.string())
DOUBLES = pa.list_(pa.float64())
ATTRIBUTES = pa.map_(pa.string(), pa.string())


@dataclass(frozen=True)
class Column:
    """One column. A column that is not `optional` may hold no nulls."""

    name: str
    type: pa.DataType
    doc: str
    optional: bool = False


@dataclass(frozen=True)
class Table:
    """One table. `batched` tables hold one Parquet file per batch, the others one in all."""

    name: str
    doc: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    batched: bool = False

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(c.name, c.type, nullable=c.optional) for c in self.columns])

    def empty(self) -> pa.Table:
        return self.schema.empty_table()

    def from_rows(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """A valid table from dictionaries; keys that are missing become null."""
        return self.conform(pa.Table.from_pylist(list(rows), schema=_nullable(self.schema)))

    def from_columns(self, columns: Mapping[str, Any]) -> pa.Table:
        """A valid table from equally long columns; columns that are missing become null."""
        length = len(next(iter(columns.values()))) if columns else 0
        arrays = {c.name: columns.get(c.name, pa.nulls(length, c.type)) for c in self.columns}
        unknown = sorted(set(columns) - set(arrays))
        if unknown:
            raise DataError(f"table {self.name!r} has no column {unknown[0]!r}", "see pipeline/schema/")
        return self.conform(pa.table(arrays))

    def conform(self, table: pa.Table) -> pa.Table:
        """`table` with exactly this schema: columns ordered, cast, and checked for nulls.

        Raises:
            DataError: a column is missing, of an uncastable type, or null where it may not be.
        """
        arrays = []
        for column in self.columns:
            if column.name not in table.column_names:
                raise DataError(
                    f"table {self.name!r} lacks the column {column.name!r}",
                    f"it needs: {', '.join(c.name for c in self.columns)}",
                )
            values = table.column(column.name)
            if values.null_count and not column.optional:
                raise DataError(
                    f"{values.null_count} nulls in {self.name}.{column.name}",
                    "this column must have a value in every row",
                )
            try:
                arrays.append(values.cast(column.type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise DataError(
                    f"{self.name}.{column.name} must be {column.type}: {error}",
                    "fix the function that makes this table",
                ) from error
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def upgraded(self, table: pa.Table, columns: Sequence[str] | None = None, path: str = "") -> pa.Table:
        """A stored table of an earlier version with the optional columns that it lacks, all null.

        Args:
            columns: those that were asked for; None for all.
            path: where it lies, for errors.

        Raises:
            StoreError: it lacks one that is not optional.
        """
        wanted = [c for c in self.columns if columns is None or c.name in columns]
        lacking = [c for c in wanted if c.name not in table.column_names]
        if not lacking:
            return table
        if needed := [c.name for c in lacking if not c.optional]:
            raise StoreError(
                f"{path or self.name} is damaged, or was made by an older version: it lacks {', '.join(needed)}",
                f"make it again: cvp run PROJECT --select {self.name}",
            )
        for column in lacking:
            table = table.append_column(pa.field(column.name, column.type), pa.nulls(table.num_rows, column.type))
        return table.select([c.name for c in wanted if c.name in table.column_names])

    def duplicate_keys(self, table: pa.Table) -> int:
        """How many rows repeat another row's key."""
        if not table.num_rows:
            return 0
        # Columns that say the same everywhere, as batch and producer do, would only cost memory.
        telling = [name for name in self.key if _varies(table.column(name))]
        different = table.group_by(telling, use_threads=False).aggregate([]).num_rows if telling else 1
        return table.num_rows - different


def _varies(column: pa.ChunkedArray) -> bool:
    extremes = pc.min_max(column).as_py()
    return column.null_count > 0 or extremes["min"] != extremes["max"]


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])
