"""Many small inferences side by side, each on one thread.

Kernels sum in another order when they share their work among other numbers of threads, or see other
batch sizes. One item a call on one thread gives the same bits whatever the machine lends, and on few
cores it is no slower than large batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def each_on_one_thread(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`function` of each item, in order, on as many threads as torch may use in this process."""
    import torch

    count = torch.get_num_threads()
    with ThreadPoolExecutor(count, initializer=use_threads, initargs=(1,)) as pool:
        try:
            return list(pool.map(function, items))
        finally:
            torch.set_num_threads(count)  # or threads that begin later would get one, too


def use_threads(count: int) -> None:
    """Let torch use so many threads for what this thread asks of it."""
    import torch

    # A thread takes over what any thread set last, when it first asks: so it must have asked before.
    torch.get_num_threads()
    torch.set_num_threads(count)
