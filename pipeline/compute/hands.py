"""Who does which shard next: the same rules for local processes and for Ray's actors."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Protocol, TypeVar

import pyarrow as pa

from pipeline.compute.job import Tell, Todo
from pipeline.errors import PipelineError

_log = logging.getLogger(__name__)
_DEATHS_A_SHARD = 4  # in the second and later tries its rows are done in a child of the worker
H = TypeVar("H")


class Hands(Protocol[H]):
    """A changing number of workers, each of which does one shard at a time."""

    def idle(self) -> list[H]:
        """Those that are up and have nothing to do."""

    def nodes(self) -> Mapping[str, int]:
        """How many of them are up on each machine; nothing where that is this one."""

    def give(self, hand: H, shard: str, rows: pa.Table, carefully: bool) -> None:
        """Have one do a shard."""

    def dismiss(self) -> None:
        """End those that have nothing to do, and will have nothing: what they hold is for others."""

    def wait(self) -> list[tuple[str, bool]]:
        """Wait for something to happen: (name, done?) of each shard that came to an end; False where its hand died.

        Raises:
            PipelineError: what a worker raised, or that no worker comes up.
        """

    def close(self) -> None:
        """End them all, whatever they are doing."""


def share_out(hands: Hands[H], todo: Todo, tell: Tell) -> Iterator[int]:
    """Do all shards; yields the number of rows of each as it is finished, and tells how the work stands.

    A shard whose worker died goes to another one, which tries its rows in a child process.
    """
    waiting = deque(todo)
    parts = dict(todo)
    deaths: Counter[str] = Counter()
    try:
        while parts:
            for hand in hands.idle():
                if waiting:
                    shard, rows = waiting.popleft()
                    hands.give(hand, shard, rows, deaths[shard] > 0)
            busy, idle = len(parts) - len(waiting), len(hands.idle())
            tell(busy + idle, busy, len(waiting), deaths.total(), hands.nodes())
            if not waiting:
                hands.dismiss()
            for shard, done in hands.wait():
                if done:
                    yield parts.pop(shard).num_rows
                    continue
                deaths[shard] += 1
                _log.warning("a worker died over shard %s (%d of %d)", shard, deaths[shard], _DEATHS_A_SHARD)
                if deaths[shard] == _DEATHS_A_SHARD:
                    raise PipelineError(
                        f"shard {shard} lost its worker {_DEATHS_A_SHARD} times, perhaps for lack of memory",
                        "lower `workers` in project.yaml (finished shards are kept) or `batch_size`, and run again",
                    )
                waiting.appendleft((shard, parts[shard]))
    finally:
        hands.close()
