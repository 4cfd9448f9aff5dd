"""A process that adds rows to a table which others add to as well."""

from __future__ import annotations

import pyarrow as pa

from pipeline import schema
from pipeline.files import Superseded
from pipeline.store import Store


def add_rows(uri: str, who: int, times: int) -> None:
    """Add `times` rows, each to what was read, and again where another process came first."""
    store = Store(uri)
    made = 0
    while made < times:
        version = store.version("splits")
        known = store.read_or_empty("splits")
        row = {"image_id": f"{who}-{made}", "batch": "b", "split": "train", "location": "x", "gold": False}
        try:
            store.write("splits", pa.concat_tables([known, schema.table("splits").from_rows([row])]), over=version)
        except Superseded:
            continue
        made += 1
