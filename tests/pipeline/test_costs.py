from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from pipeline import costs, schema
from pipeline.config import PriceConfig

PRICES = PriceConfig(currency="EUR", cpu_hour=0.36, gpu_hour=3.6, token_million=2.0)
START = datetime(2026, 11, 23, 9, tzinfo=UTC)


def entry(prices: PriceConfig = PRICES, **changes: Any) -> pa.Table:
    values: dict[str, Any] = {
        "stage": "labelling",
        "asset": "detections",
        "batch": "b",
        "producer": "m@1#0",
        "started_at": START,
        "seconds": 100.0,
        "device": "cpu",
        "images": 50,
        "rows": 7,
    }
    return costs.entry(**{**values, **changes}, prices=prices)


@pytest.mark.parametrize(("device", "tokens", "money"), [("cpu", 0, 0.01), ("cuda:0", 0, 0.1), ("cpu", 500_000, 1.01)])
def test_money_is_time_and_tokens_at_the_prices(device: str, tokens: int, money: float) -> None:
    row = entry(device=device, tokens=tokens).to_pylist()[0]
    assert row["money"] == pytest.approx(money) and row["currency"] == "EUR" and row["started_at"] == START


def test_compacting_twice_changes_nothing_and_orders_by_time() -> None:
    late, early = entry(started_at=START + timedelta(hours=1)), entry()
    once = costs.compact([late, early, late], PRICES)
    assert once.column("started_at").to_pylist() == [START, START + timedelta(hours=1)]
    assert costs.compact([once, early], PRICES).equals(once)
    assert schema.table("costs").duplicate_keys(once) == 0


def test_new_prices_apply_to_old_work() -> None:
    dear = PriceConfig(currency="USD", cpu_hour=3.6)
    row = costs.compact([entry()], dear).to_pylist()[0]
    assert row["money"] == pytest.approx(0.1) and row["currency"] == "USD"


def test_shared_work_is_divided_and_nothing_is_lost() -> None:
    work = {"stage": "s", "asset": "detections", "batch": "b", "started_at": START, "device": "cpu", "images": 50}
    work |= {"rows": 7, "tokens": 100, "prices": PRICES}
    made = costs.entries({"slow@1#0": 6.0, "quick@1#0": 2.0}, 100.0, **work).to_pylist()
    assert [(r["producer"], r["seconds"], r["images"]) for r in made] == [
        ("slow@1#0", pytest.approx(75), 50),
        ("quick@1#0", pytest.approx(25), 50),
    ]
    assert sum(r["rows"] for r in made) == 7 and sum(r["tokens"] for r in made) == 100
    assert len({r["entry_id"] for r in made}) == 2
    idle = costs.entries({"a@1#0": 0.0, "b@1#0": 0.0}, 3.0, **work)
    assert idle.column("seconds").to_pylist() == [1.5, 1.5]


def test_no_entries() -> None:
    assert costs.compact([], PRICES).equals(schema.table("costs").empty())
