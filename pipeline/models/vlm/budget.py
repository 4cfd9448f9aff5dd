"""What may still be spent. Room for the dearest possible answer is set aside before a question is sent."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import PriceConfig, TokenBudget


@dataclass(frozen=True)
class Tokens:
    """Tokens sent to a model, and written by it."""

    sent: int = 0
    written: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.sent + other.sent, self.written + other.written)

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.sent - other.sent, self.written - other.written)

    @property
    def total(self) -> int:
        return self.sent + self.written


class Budget:
    """Limits on what is spent and set aside together, so that nothing goes over them, whatever comes back.

    Args:
        spent: before. more: a further limit on the money of what comes now; None: none.
    """

    def __init__(self, limit: TokenBudget, prices: PriceConfig, spent: Tokens, more: float | None = None) -> None:
        self._limit = limit
        self._prices = prices
        self._before = spent
        self._more = more
        self.spent = spent
        self.held = Tokens()

    def reserve(self, worst: Tokens) -> bool:
        """Set room aside for `worst`; False, and nothing set aside, where there is none."""
        wanted = self.spent + self.held + worst
        if self._limit.tokens is not None and wanted.total > self._limit.tokens:
            return False
        if self._limit.money is not None and self._money(wanted) > self._limit.money * (1 + 1e-12):
            return False
        if self._more is not None and self._money(wanted - self._before) > self._more * (1 + 1e-12):
            return False
        self.held += worst
        return True

    def settle(self, worst: Tokens, used: Tokens) -> None:
        """Give back what was set aside, and spend what was used."""
        self.held -= worst
        self.spent += used

    def left(self) -> str:
        """What is left, in words."""
        parts = []
        if self._limit.tokens is not None:
            parts.append(f"{self.spent.total:,} of {self._limit.tokens:,} tokens")
        if self._limit.money is not None:
            parts.append(f"{self._money(self.spent):.4f} of {self._limit.money:.4f} {self._prices.currency}")
        if self._more is not None:
            spent = self._money(self.spent - self._before)
            parts.append(f"{spent:.4f} of the {self._more:.4f} {self._prices.currency} left to its stage")
        return ", ".join(parts) + " spent"

    def _money(self, tokens: Tokens) -> float:
        return float(self._prices.tokens(tokens.sent, tokens.written))
