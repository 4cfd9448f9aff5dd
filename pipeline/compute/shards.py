"""Rows in, rows out, in shards: done once each, kept when a run dies, and done again when damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.compute import careful, on_ray, processes
from pipeline.compute.job import Compute, Job, Load, Tell, Todo, Worker
from pipeline.errors import StoreError, StoreUnavailable
from pipeline.ids import content_hash
from pipeline.store import Staging

_ROUNDS = 5  # a shard may be swept away by another run's commit, or come back damaged; not for ever


def map_batches(
    worker: Callable[..., Worker],
    options: dict[str, Any],
    rows: pa.Table,
    compute: Compute,
    staging: Staging,
) -> pa.Table:
    """Run `worker(**options)` over `rows` in batches and return its rows in the order of the input.

    Shards that an earlier, interrupted call finished under the same `staging` are not done again, unless
    they are damaged.

    Raises:
        PipelineError: whatever the worker raises; a worker that keeps dying is reported as such.
    """
    return pa.concat_tables(map_shards(worker, options, rows, compute, staging))


def map_shards(
    worker: Callable[..., Worker],
    options: dict[str, Any],
    rows: pa.Table,
    compute: Compute,
    staging: Staging,
) -> Iterator[pa.Table]:
    """As `map_batches`, but all work is done first and then given out shard by shard: one at a time is in memory."""
    job = Job(worker, options, compute.batch_size, staging)
    shards = _shards(rows, compute.batch_size * compute.batches_per_shard)
    if not shards:
        yield job.make()(rows)
        return
    whole: set[str] = set()
    for _ in range(_ROUNDS):
        # Only shards of an earlier call can be incomplete: their disk or machine may have failed since.
        whole |= {name for name in (staging.finished() & shards.keys()) - whole if staging.is_whole(name)}
        todo = [(name, part) for name, part in shards.items() if name not in whole]
        if not todo:
            break
        _do(job, todo, rows.num_rows, compute)
        whole = staging.finished() & {*whole, *(name for name, _ in todo)}
    if compute.failed and (failures := staging.failures(shards)) is not None:
        compute.failed(failures)
    for name, part in shards.items():
        yield _given(job, name, part, rows.num_rows, compute)


def without(images: pa.Table, known: pa.Table) -> pa.Table:
    """The rows of images of which `known` has none."""
    return images.filter(pc.invert(pc.is_in(images["image_id"], known["image_id"].combine_chunks())))


def in_order(rows: pa.Table, images: pa.Table) -> pa.Table:
    """Rows in the order of their images, those of one image as they came; of other images none."""
    place = pc.index_in(rows["image_id"], images["image_id"].combine_chunks())
    there = pc.is_valid(place)
    return rows.filter(there).take(pa.array(np.argsort(place.filter(there).to_numpy(), kind="stable")))


def _shards(rows: pa.Table, size: int) -> dict[str, pa.Table]:
    """Parts of `size` rows by name: their place, and a hash of what is in them.

    An earlier run may have cut the rows otherwise: its shards have other names then, and are not taken for these.
    """
    parts = [rows.slice(start, size) for start in range(0, rows.num_rows, size)]
    return {f"{place:08d}-{content_hash(part)}": part for place, part in enumerate(parts)}


def _given(job: Job, shard: str, rows: pa.Table, total: int, compute: Compute) -> pa.Table:
    """A finished shard; one that has been swept away or damaged since is done again."""
    for _ in range(_ROUNDS):
        try:
            return job.staging.get(shard)
        except StoreUnavailable:  # it may well be there
            raise
        except StoreError:
            pass
        _do(job, [(shard, rows)], total, compute)
    raise StoreError(
        f"shard {shard} in {job.staging.prefix} was lost again and again",
        "another run sweeps it away, or that disk is failing: let one run finish, or check the disk",
    )


def _do(job: Job, todo: Todo, total: int, compute: Compute) -> None:
    job.staging.forget_failures(name for name, _ in todo)  # rows that failed may not fail again
    kept = total - sum(part.num_rows for _, part in todo)
    counted = kept

    def tell(workers: int, busy: int, waiting: int, lost: int, nodes: Mapping[str, int]) -> None:
        if compute.load:
            compute.load(Load(workers, busy, waiting, lost, kept, total, nodes))

    run = on_ray.run if compute.on_ray else processes.run if compute.mode == "local" else _inline
    for finished in run(job, todo, compute, tell):
        counted += finished
        if compute.progress:
            compute.progress(counted, total)


def _inline(job: Job, todo: Todo, compute: Compute, tell: Tell) -> Iterator[int]:
    """A shard that killed this process once is left to a child the next time."""
    suspects = job.staging.begun()
    ready: Worker | None = None
    for number, (shard, rows) in enumerate(todo, 1):
        tell(1, 1, len(todo) - number, 0, {})
        if shard in suspects:
            careful.run(job, shard, rows)
        else:
            ready = ready or job.make()
            with job.staging.beginning(shard):
                job.run(ready, shard, rows)
        yield rows.num_rows
