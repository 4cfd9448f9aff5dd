"""Does a certificate hold for a batch? Only if gold could have been drawn from it.

Drift asks whether a batch is like a reference; here the question is put to the images that labels are to
be accepted on, against the very gold that labellers were graded on. A batch that is unlike all of gold
has no certificate, unless people have labelled some of the batch itself: then its own gold speaks for it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema

ALL, BATCH = "all", "batch"
_GOLD, _LABELLED = "(gold)", "(labelled)"  # batches of their own, so that a batch's own gold is compared with it, too


def sides(images: pa.Table, gold: Collection[str], labelled: Collection[str]) -> pa.Table:
    """`images` as drift tests should see them: a batch is only what people have not labelled of it."""
    batch = images.column("batch")
    for name, ids in ((_LABELLED, labelled), (_GOLD, gold)):
        batch = pc.if_else(pc.is_in(images.column("image_id"), pa.array(sorted(ids), pa.string())), name, batch)
    return images.set_column(images.column_names.index("batch"), "batch", batch)


def judge(tests: pa.Table, gold: str) -> pa.Table:
    """Rows of `exchangeability` from rows of `drift` that compared a batch with `gold`.

    Any test that differs is enough. To withdraw a certificate in vain costs some looks of a person; to keep
    it in vain breaks the promise.
    """
    named = {"reference_images": "gold_images", "drifted": "differs"}
    rows = tests.rename_columns([named.get(c, c) for c in tests.column_names])
    return schema.table("exchangeability").conform(
        rows.append_column("gold", pa.array([gold] * rows.num_rows, pa.string()))
    )


def standing(rows: pa.Table) -> dict[str, str]:
    """What is wrong with using 'all' gold and that of the 'batch': words, or '' where nothing is.

    Args:
        rows: rows of `exchangeability` of one batch. A side without rows is not mentioned.
    """
    found: dict[str, str] = {}
    for name in rows.column("gold").unique().to_pylist():
        mine = rows.filter(pc.equal(rows.column("gold"), name)).to_pylist()
        found[name] = ", ".join(_told(r) for r in mine if r["differs"])
    return found


def _told(row: dict[str, Any]) -> str:
    return f"{row['test']} p = {row['p_value']:.2g}"
