"""What an asset's page shows: rows, columns, a preview, pictures."""

import base64
from typing import Any

import dagster as dg
import pyarrow as pa

from pipeline import schema

_PREVIEW_ROWS = 8
_CELL = 36


def column_schema(table: schema.Table) -> dg.TableSchema:
    """Columns of a table with their types and meanings, as Dagster shows them."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                c.name,
                str(c.type),
                description=c.doc,
                constraints=dg.TableColumnConstraints(nullable=c.optional),
            )
            for c in table.columns
        ]
    )


def preview(rows: pa.Table, limit: int = _PREVIEW_ROWS) -> dg.MarkdownMetadataValue:
    """The first rows as a Markdown table."""
    head = rows.slice(0, limit)
    names = head.column_names
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(row[n]) for n in names) + " |" for row in head.to_pylist()]
    return dg.MetadataValue.md("\n".join(lines))


def picture(png: bytes, title: str = "") -> dg.MarkdownMetadataValue:
    """A PNG shown inline on the asset's page."""
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = text if len(text) <= _CELL else text[: _CELL - 1] + "…"
    # Values come from file names and models: nothing in them may act as Markdown or HTML.
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("`", "'")
