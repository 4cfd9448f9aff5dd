"""Budgets: what a stage or a table may cost by the ledger, and the end of work that would cost more."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import BudgetConfig, PriceConfig
from pipeline.errors import PipelineError


class BudgetSpent(PipelineError):
    """Work was ended, or not begun, because its budget is spent. What was finished is kept."""

    exit_code = 6
    widespread = True


@dataclass(frozen=True)
class Allowance:
    """What is left of one budget. `seconds` is the tightest of its limits, in machine time at `hourly`."""

    name: str
    words: str
    seconds: float


def allowance(name: str, budget: BudgetConfig, costs: pa.Table, now: datetime, hourly: float) -> Allowance | None:
    """What `name` may still take; None without a limit that time can reach.

    Args:
        name: a stage or a table. costs: the ledger, each entry once, at today's prices.
        now: aware. hourly: price of an hour of the machine that works.
    """
    rows = costs.filter(pc.or_(pc.equal(costs["stage"], name), pc.equal(costs["asset"], name)))
    if budget.days is not None:
        rows = rows.filter(pc.greater_equal(rows["started_at"], pa.scalar(now - timedelta(days=budget.days))))
    money, seconds = (pc.sum(rows[column]).as_py() or 0.0 for column in ("money", "seconds"))
    limits: list[tuple[float, str]] = []
    if budget.hours is not None:
        limits.append((budget.hours * 3600 - seconds, f"{seconds / 3600:.3g} of {budget.hours:g} hours"))
    if budget.money is not None:
        left = budget.money - money
        if left <= 0 or hourly > 0:
            limits.append((left / hourly * 3600 if hourly else left, f"{money:.3g} of {budget.money:g} in money"))
    if not limits:
        return None
    left, words = min(limits)
    period = f" of the last {budget.days:g} days" if budget.days is not None else ""
    return Allowance(name, words + period, left)


class Meter:
    """Watches one piece of work against the budgets that hold for it.

    The work is ended at a shard's or a step's end, once the next one, if it takes as long as those before,
    would not fit any more.
    """

    def __init__(self, allowances: list[Allowance], clock: Callable[[], float] = time.perf_counter) -> None:
        self._tightest = min(allowances, key=lambda a: a.seconds, default=None)
        self._clock = clock
        self._started = clock()
        self._ticks = 0

    def begin(self) -> None:
        """Refuse work for which nothing is left.

        Raises:
            BudgetSpent
        """
        self._started = self._clock()
        if self._tightest and self._tightest.seconds <= 0:
            raise self._spent("nothing more is begun")

    def watched(self, progress: Callable[[int, int], None] | None) -> Callable[[int, int], None] | None:
        """`progress`, which now also ends the work when its budget is spent."""
        if self._tightest is None:
            return progress

        def tell(done: int, total: int) -> None:
            if progress:
                progress(done, total)
            self._check(done, total)

        return tell

    def _check(self, done: int, total: int) -> None:
        assert self._tightest is not None
        self._ticks += 1
        took = self._clock() - self._started
        if done < total and took + took / self._ticks > self._tightest.seconds:
            raise self._spent(f"after {took:.0f} s of this piece of work; {done:,} of {total:,} are done and kept")

    def _spent(self, where: str) -> BudgetSpent:
        assert self._tightest is not None
        name = self._tightest.name
        return BudgetSpent(
            f"the budget of {name} is spent ({self._tightest.words} before this): {where}",
            f"raise budgets.{name} in project.yaml and run again; it goes on from there",
        )


def meter(
    budgets: Mapping[str, BudgetConfig],
    names: tuple[str, ...],
    ledger: Callable[[], pa.Table],
    prices: PriceConfig,
    device: str,
    now: datetime,
) -> Meter:
    """The meter of work that the budgets of `names` (its stage and its table) hold for; the ledger is read if any do.

    Args:
        device: 'cpu', or any accelerator's name, which is priced as a GPU.
    """
    mine = {name: budgets[name] for name in names if name in budgets}
    if not mine:
        return Meter([])
    costs, hourly = ledger(), prices.cpu_hour if device == "cpu" else prices.gpu_hour
    found = [allowance(name, budget, costs, now, hourly) for name, budget in mine.items()]
    return Meter([a for a in found if a is not None])
