"""Budgets against sums done by hand."""

from __future__ import annotations

from datetime import timedelta

import pyarrow as pa
import pytest

from pipeline import budgets
from pipeline.budgets import BudgetSpent, Meter
from pipeline.config import BudgetConfig
from tests.pipeline.test_costs import PRICES, START, entry

# 100 s on the CPU at 0.36 an hour: 0.01. Two stages, two tables.
LEDGER = pa.concat_tables(
    [
        entry(asset="detections", batch="a"),
        entry(asset="tags", batch="a", started_at=START + timedelta(hours=30)),
        entry(stage="training", asset="models", seconds=3600.0, device="cuda"),
    ]
)
NOW = START + timedelta(hours=36)


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("name", "budget", "hourly", "left"),
    [
        ("labelling", {"hours": 0.1}, 0.36, 360 - 200),
        ("detections", {"hours": 0.1}, 0.36, 360 - 100),
        ("labelling", {"hours": 0.1, "days": 1}, 0.36, 360 - 100),
        ("labelling", {"money": 0.03}, 0.36, 100),  # 0.02 are spent; 0.01 buys 100 s
        ("labelling", {"money": 0.03}, 3.6, 10),
        ("labelling", {"money": 0.03, "hours": 0.056}, 0.36, 1.6),  # the tighter of both
        ("training", {"money": 3.6}, 3.6, 0),
        ("training", {"money": 1.0}, 0.0, -2.6),  # spent already, and no machine time costs anything
    ],
)
def test_what_is_left(name: str, budget: dict[str, float], hourly: float, left: float) -> None:
    found = budgets.allowance(name, BudgetConfig.model_validate(budget), LEDGER, NOW, hourly)
    assert found is not None and found.seconds == pytest.approx(left, abs=1e-6)


def test_free_machines_spend_no_money() -> None:
    assert budgets.allowance("labelling", BudgetConfig(money=1.0), LEDGER, NOW, 0.0) is None


def test_work_ends_before_the_step_that_would_not_fit() -> None:
    clock, told = Clock(), []
    meter = Meter([budgets.Allowance("labelling", "w", 10.0), budgets.Allowance("detections", "w", 25.0)], clock)
    meter.begin()
    watched = meter.watched(lambda done, total: told.append((done, total)))
    assert watched is not None
    clock.now += 4
    watched(1, 9)
    clock.now += 4
    with pytest.raises(BudgetSpent, match=r"budget of labelling .* 2 of 9 are done and kept") as error:
        watched(2, 9)
    assert "budgets.labelling" in error.value.remedy and told == [(1, 9), (2, 9)]


def test_finished_work_is_never_thrown_away() -> None:
    clock = Clock()
    meter = Meter([budgets.Allowance("labelling", "w", 10.0)], clock)
    watched = meter.watched(None)
    assert watched is not None
    clock.now += 1000
    watched(9, 9)


def test_nothing_is_begun_on_a_spent_budget() -> None:
    with pytest.raises(BudgetSpent, match="nothing more is begun"):
        Meter([budgets.Allowance("models", "w", 0.0)]).begin()


def test_without_a_budget_the_ledger_is_not_read() -> None:
    def ledger() -> pa.Table:
        raise AssertionError

    meter = budgets.meter({"training": BudgetConfig(hours=1)}, ("labelling", "tags"), ledger, PRICES, "cpu", NOW)
    meter.begin()
    assert meter.watched(None) is None
