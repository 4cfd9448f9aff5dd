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

    with ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(function, items))
