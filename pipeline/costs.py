"""The ledger of what each piece of work took, at the project's prices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import PriceConfig
from pipeline.ids import fingerprint
from pipeline.store import Store

UNFINISHED = "unfinished"  # the producer of work that failed or was ended; who goes on enters images and rows


def entry(
    *,
    stage: str,
    asset: str,
    batch: str,
    producer: str,
    started_at: datetime,
    seconds: float,
    device: str,
    images: int,
    rows: int,
    tokens: int = 0,
    tokens_written: int = 0,
    prices: PriceConfig,
) -> pa.Table:
    """One row of `costs`.

    Args:
        started_at: aware time. seconds: wall clock. device: 'cpu', or any accelerator's name, which
            is priced as a GPU. tokens: sent to and received from a verifier; tokens_written: of those, received.
    """
    row = {
        "entry_id": fingerprint(stage, asset, batch, producer, started_at.isoformat()),
        "stage": stage,
        "asset": asset,
        "batch": batch,
        "producer": producer,
        "started_at": started_at,
        "seconds": seconds,
        "device": device,
        "images": images,
        "rows": rows,
        "tokens": tokens,
        "tokens_written": tokens_written,
        "money": 0.0,
        "currency": prices.currency,
    }
    return priced(schema.table("costs").from_rows([row]), prices)


def entries(took: Mapping[str, float], seconds: float, **work: Any) -> pa.Table:
    """Rows of `costs` of one piece of work that several producers shared: `seconds` in proportion to what each took.

    Args:
        took: producer -> seconds, as measured inside. Loading and reading, which nobody can be blamed for,
            are shared likewise; tokens and rows are the first one's, so that sums over entries are right.
        work: the other arguments of `entry`.
    """
    total = sum(took.values())
    parts = []
    for producer, own in took.items():
        share = own / total if total > 0 else 1 / len(took)
        parts.append(entry(producer=producer, seconds=seconds * share, **work))
        work |= {"tokens": 0, "tokens_written": 0, "rows": 0}
    return pa.concat_tables(parts)


def priced(costs: pa.Table, prices: PriceConfig) -> pa.Table:
    """`costs` with money and currency at `prices`: machine time by device, and tokens."""
    on_cpu = pc.equal(costs.column("device"), "cpu").to_numpy(zero_copy_only=False)
    hourly = np.where(on_cpu, prices.cpu_hour, prices.gpu_hour)
    seconds, tokens = costs.column("seconds").to_numpy(), costs.column("tokens").to_numpy()
    written = pc.fill_null(costs.column("tokens_written"), 0).to_numpy()
    money = seconds / 3600 * hourly + prices.tokens(tokens - written, written)
    columns = {name: costs.column(name) for name in costs.column_names}
    columns |= {"money": pa.array(money), "currency": pa.array([prices.currency] * len(money), pa.string())}
    return schema.table("costs").from_columns(columns)


def compact(parts: Iterable[pa.Table], prices: PriceConfig) -> pa.Table:
    """The `costs` table of ledger entries: each once, in order of time, at today's prices."""
    rows = pa.concat_tables([schema.table("costs").empty(), *parts]).combine_chunks()
    _, first = np.unique(rows.column("entry_id").to_numpy(zero_copy_only=False).astype(str), return_index=True)
    once = rows.take(pa.array(np.sort(first)))
    return priced(once.sort_by([("started_at", "ascending"), ("entry_id", "ascending")]), prices)


def ledger(store: Store, prices: PriceConfig) -> pa.Table:
    """All that a store's work took, compacted or not yet: as `compact`."""
    return compact([store.read_or_empty("costs"), store.read_ledger()], prices)


def price_list(prices: PriceConfig) -> pa.Table:
    """The table `prices`."""
    items = prices.model_dump(exclude={"currency"}) | {"token_million_written": prices.tokens(0, 1e6)}
    return schema.table("prices").from_rows(
        [{"item": item, "price": float(price), "currency": prices.currency} for item, price in sorted(items.items())]
    )
