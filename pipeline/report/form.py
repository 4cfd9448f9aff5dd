"""How numbers and names are written on the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pipeline.ids import producer_name

_NONE = "–"
OPTIONS = {
    "foundation": "foundation model",
    "labeller": "own labeller",
    "trained": "trained model",
    "people": "people",
}


def number(value: float | None, digits: int = 3) -> str:
    """A value to `digits` decimals, fewer where it is large; a dash for null."""
    if value is None or not math.isfinite(value):
        return _NONE
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.{digits}f}"


def interval(low: float | None, high: float | None) -> str:
    """`0.42 to 0.51`; empty when unknown."""
    return "" if low is None or high is None else f"{number(low, 2)} to {number(high, 2)}"


def percent(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0%}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that reads best."""
    if seconds is None:
        return _NONE
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 90:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def money(value: float | None, currency: str) -> str:
    """An amount; four digits after the point below one cent."""
    if value is None:
        return _NONE
    digits = 2 if value == 0 or value >= 0.01 else 4
    return f"{value:,.{digits}f} {currency}"


def size(count: float) -> str:
    """Bytes in decimal units."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def p_value(value: float | None) -> str:
    if value is None:
        return _NONE
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def p_is(value: float | None) -> str:
    """After the letter p in a sentence."""
    return f"= {p_value(value)}" if value is None or value >= 1e-4 else p_value(value)


def words(text: str) -> str:
    return text.replace("_", " ")


FILTERS: dict[str, Callable[..., Any]] = {
    "number": number,
    "interval": interval,
    "percent": percent,
    "duration": duration,
    "money": money,
    "size": size,
    "p_value": p_value,
    "p_is": p_is,
    "words": words,
    "sentence": lambda text: text[:1].upper() + text[1:],
    "bare": producer_name,
    "option": lambda name: OPTIONS.get(name, name),
}
