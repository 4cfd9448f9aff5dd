"""Decisions made by hand, for the tests of what is done with them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from pipeline import schema
from pipeline.journal import Decision

START = datetime(2026, 11, 23, 12, tzinfo=UTC)


def decision(annotation: str, verdict: str, reviewer: str = "ann", minute: int = 0, **more: Any) -> Decision:
    """One decision on image x of batch b; a `fix` or `yes` needs class_name and box."""
    fields: dict[str, Any] = {"annotation_id": annotation, "image_id": "x", "batch": "b", "source": "page"}
    fields |= {"reviewer": reviewer, "verdict": verdict, "at": START + timedelta(minutes=minute)}
    return Decision(**(fields | more))


def table(*decisions: Decision) -> pa.Table:
    """Rows of `decisions`."""
    return schema.table("decisions").from_rows([d.row() for d in decisions])
