"""Doing the next items on threads while the caller is busy with this one."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Threads that this process may keep busy: its CPUs, or OMP_NUM_THREADS, which Ray and `local` set for a share."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(given)) if given.isdigit() else len(os.sched_getaffinity(0))


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], depth: int = 32, threads: int = 0
) -> Iterator[Result]:
    """`function` of each item, in order, up to `depth` of them done before they are asked for.

    It must be safe on threads, and gains only where it lets go of Python's lock, as decoding does.

    Args:
        threads: how many; 0: one a core. More are worth it for what waits, as for a network.

    Raises:
        Whatever `function` or `items` raises, when that item's turn has come.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads or cores())
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
