"""A query's answer as a table on the screen, CSV, JSON or Parquet."""

from __future__ import annotations

import json
import math
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError, suggest
from pipeline.files import replaced, writing

FORMATS = ("table", "csv", "json", "parquet")
_MOST_ROWS = 200
_LONGEST = 60
_NUMBERS = pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal


def check(form: str) -> None:
    """Raises:
    ConfigError: there is no such format.
    """
    if form not in FORMATS:
        raise ConfigError(f"there is no format {form!r}", suggest(form, FORMATS))


def write(answer: pa.Table, form: str, output: Path | None) -> None:
    """Write `answer` to a file, or to the screen.

    Args:
        form: table, csv, json (an array of objects) or parquet.

    Raises:
        ConfigError: Parquet would go to a terminal.
        StoreError: the file cannot be written.
    """
    if form == "parquet" and output is None and sys.stdout.isatty():
        raise ConfigError("Parquet is not for a terminal", "add --output FILE, or pipe it somewhere")
    if form == "table" and output is None:
        _show(answer)
        return
    data = _encoded(answer, form)
    if output is None:
        with writing("standard output"):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    elif output.exists() and not output.is_file():  # a pipe, a device
        with writing(output):
            output.write_bytes(data)
    else:
        with replaced(output.resolve()) as made:
            made.write_bytes(data)


def _encoded(answer: pa.Table, form: str) -> bytes:
    if form == "json":
        rows = [_finite(row) for row in answer.to_pylist(maps_as_pydicts="lossy")]
        return (json.dumps(rows, indent=1, ensure_ascii=False, default=_plain, allow_nan=False) + "\n").encode()
    if form == "table":
        from io import StringIO

        sink = StringIO()
        _show(answer, sink)
        return sink.getvalue().encode()
    buffer = pa.BufferOutputStream()
    if form == "parquet":
        import pyarrow.parquet as pq

        pq.write_table(answer, buffer, compression="zstd")
    else:
        import pyarrow.csv as csv

        csv.write_csv(_flat(answer), buffer)
    return bytes(buffer.getvalue())


def _plain(value: Any) -> Any:
    """Times as ISO 8601, DuckDB's wide integers and decimals as numbers, all else as text."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _finite(value: Any) -> Any:
    """`value` with null for NaN and infinities, which JSON cannot hold."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(answer: pa.Table) -> pa.Table:
    """Lists, maps and structs as JSON text, which CSV can hold."""
    for i, field in enumerate(answer.schema):
        if pa.types.is_nested(field.type):
            values = answer.column(i).to_pylist(maps_as_pydicts="lossy")
            text = [None if v is None else json.dumps(_finite(v), ensure_ascii=False, default=_plain) for v in values]
            answer = answer.set_column(i, field.name, pa.array(text, pa.string()))
    return answer


def _show(answer: pa.Table, file: Any = None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=file, width=200 if file is not None else None, highlight=False)
    if not answer.num_columns:
        return
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for field in answer.schema:
        is_number = any(test(field.type) for test in _NUMBERS)
        table.add_column(Text(field.name), justify="right" if is_number else "left", overflow="fold")
    for row in answer.slice(0, _MOST_ROWS).to_pylist(maps_as_pydicts="lossy"):
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    console.print(table)
    more = answer.num_rows - _MOST_ROWS
    rows = f"{answer.num_rows:,} row" + ("" if answer.num_rows == 1 else "s")
    console.print(rows + (f", {more:,} of them not shown: use --format csv" if more > 0 else ""), style="dim")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else str(_plain(value))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
