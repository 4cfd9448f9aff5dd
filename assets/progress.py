"""Tells whoever started a run in this process what is being done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One table of one batch: begun (seconds is None), going on, or done."""

    table: str
    batch: str | None
    done: int = 0
    total: int = 0
    seconds: float | None = None
    skipped: bool = False
    rows: int = 0


_listeners: list[Callable[[Step], None]] = []


@contextmanager
def listening(listener: Callable[[Step], None]) -> Iterator[None]:
    """Call `listener` with every step while the context is open."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell(step: Step) -> None:
    """Pass `step` on to the listeners of this process; a run elsewhere has none."""
    for listener in _listeners:
        listener(step)
