"""Makes a recipe's tables for one batch: once, checked before they are committed, and entered in the ledger."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from assets import progress
from assets.metadata import preview
from assets.recipes import Finding, Recipe, Work
from pipeline import budgets, costs, schema
from pipeline.compute import device_of
from pipeline.errors import PipelineError
from pipeline.files import Superseded
from pipeline.pulse import Beat, memory
from pipeline.store import Receipt

_CONTESTED = 5
_log = logging.getLogger("pipeline.tables")  # under the name that all of the project's logs have


@dataclass(frozen=True)
class Done:
    """One batch's outcome."""

    batch: str | None
    contents: Mapping[str, str]
    metadata: Mapping[str, dict[str, Any]]
    findings: Mapping[str, Finding]
    skipped: bool


def run_recipe(recipe: Recipe, work: Work) -> Done:
    """Make a recipe's tables for one batch, unless equal work has made them already."""
    mark = recipe.fingerprint(work)
    if mark is None:
        missing = [name for name in recipe.inputs if work.contents(name) is None]
        raise PipelineError(f"its inputs are missing: {', '.join(missing)}", "materialise them first")
    work.fingerprint, work.code, work.own = mark, recipe.code_version, recipe.own_version
    fresh = recipe.receipts(work, mark)
    if fresh is not None:
        progress.tell(progress.Step(recipe.name, work.batch, skipped=True, seconds=0.0, rows=fresh[0].rows))
        return _already_done(recipe, work, fresh)
    progress.tell(progress.Step(recipe.name, work.batch))
    with work.watched(recipe.name):
        for _ in range(_CONTESTED):
            with suppress(Superseded):  # made from rows that another run has replaced since: once more, from those
                return _made(recipe, work, mark)
    raise PipelineError(
        f"{recipe.name} was written by other runs {_CONTESTED} times while it was made", "let one of them finish"
    )


def _made(recipe: Recipe, work: Work, mark: str) -> Done:
    started, clock = datetime.now(UTC), time.perf_counter()
    if recipe.pool == "gpu":
        work.device = device_of(work.compute)
    else:
        work.compute = replace(work.compute, gpus=0)
    meter = _meter(recipe, work, started)
    meter.begin()
    work.compute = replace(work.compute, progress=meter.watched(work.compute.progress))
    try:
        made = recipe.make(work)
    except Exception:
        _enter_unfinished(recipe, work, started, time.perf_counter() - clock)
        raise
    outputs = {recipe.name: made} if isinstance(made, pa.Table) else dict(made)
    outputs = {name: schema.table(name).conform(outputs[name]) for name in recipe.outputs}
    findings = {check.name: check.test(work, outputs) for check in recipe.checks}
    seconds = time.perf_counter() - clock
    blocked = [c.name for c in recipe.checks if c.blocking and not findings[c.name].passed]
    if blocked:
        return Done(work.batch, {}, {n: {} for n in recipe.outputs}, findings, False)
    written_by = {
        "checks": {name: [f.passed, f.why] for name, f in findings.items()},
        "seconds": seconds,
        "at": started.isoformat(),
        "code": recipe.code_version,
        "own": recipe.own_version,
    } | ({"failed": failures.num_rows} if (failures := _failures(work)) else {})
    receipts = [
        work.store.write(
            name,
            rows,
            work.batch,
            fingerprint=recipe.stamp(work, mark),
            written_by=written_by,
            over=work.over.get(name, "any"),
        )
        for name, rows in outputs.items()
    ]
    for name in recipe.outputs:
        work.staging(name).clear()
    if recipe.ledger:
        work.store.append_ledger(_ledger_entries(recipe, work, started, seconds, outputs[recipe.name].num_rows))
    progress.tell(progress.Step(recipe.name, work.batch, seconds=seconds, rows=outputs[recipe.name].num_rows))
    _log.info("table made", extra={"rows": outputs[recipe.name].num_rows, "seconds": round(seconds, 3)})
    return Done(
        work.batch,
        {name: r.content for name, r in zip(outputs, receipts, strict=True)},
        {name: _page(recipe, work, name, rows, seconds) for name, rows in outputs.items()},
        findings,
        False,
    )


def _meter(recipe: Recipe, work: Work, now: datetime) -> budgets.Meter:
    names, prices = (recipe.stage, recipe.name), work.config.prices
    return budgets.meter(work.config.budgets, names, lambda: costs.ledger(work.store, prices), prices, work.device, now)


def _enter_unfinished(recipe: Recipe, work: Work, started: datetime, seconds: float) -> None:
    """Work that failed, or was ended by its budget, took time too; whoever goes on enters its images and rows."""
    if recipe.ledger:
        work.images, work.took = 0, {costs.UNFINISHED: 1.0}
        with suppress(PipelineError):  # the failure itself is what must be told
            work.store.append_ledger(_ledger_entries(recipe, work, started, seconds, rows=0))


def _already_done(recipe: Recipe, work: Work, receipts: Sequence[Receipt]) -> Done:
    remembered = receipts[0].written_by.get("checks", {})
    return Done(
        work.batch,
        {name: r.content for name, r in zip(recipe.outputs, receipts, strict=True)},
        {
            name: {"dagster/row_count": r.rows, "unchanged": True}
            for name, r in zip(recipe.outputs, receipts, strict=True)
        },
        {name: Finding(*found) for name, found in remembered.items()},
        True,
    )


def _page(recipe: Recipe, work: Work, name: str, rows: pa.Table, seconds: float) -> dict[str, Any]:
    page: dict[str, Any] = {
        "dagster/row_count": rows.num_rows,
        "seconds": round(seconds, 2),
        "file": work.store.path(name, work.batch),
        "preview": preview(rows),
    }
    # An earlier run had done a share of the work, which may be counted otherwise: files, where images are tiles.
    pulse = work.beat.pulse if work.beat else None
    worked = (work.images or 0) * (1 - pulse.kept / max(pulse.total, 1) if pulse else 1)
    if worked > 0:
        page["images_per_second"] = round(worked / max(seconds, 1e-9), 1)
    if work.beat and name == recipe.name:
        page |= _load(work.beat)
    if failures := _failures(work):
        page |= {"failed_images": failures.num_rows, "failures": preview(failures)}
    return page | (work.metadata if name == recipe.name else {})


def _load(beat: Beat) -> dict[str, Any]:
    """How the work went: memory of this process and its children, and, where there are shards, workers and queue."""
    pulse = beat.pulse
    load: dict[str, Any] = {"memory_mib": round(max(pulse.memory, memory()))}
    if pulse.workers:
        load |= {"workers": pulse.workers, "longest_queue": beat.longest_queue, "lost_workers": pulse.lost}
    if pulse.kept:
        load["images_kept"] = pulse.kept
    return load


def _failures(work: Work) -> pa.Table | None:
    return pa.concat_tables(work.failed, promote_options="default") if work.failed else None


def _ledger_entries(recipe: Recipe, work: Work, started: datetime, seconds: float, rows: int) -> pa.Table:
    return costs.entries(
        work.took or {recipe.code_version: 1.0},
        seconds,
        stage=recipe.stage,
        asset=recipe.name,
        batch=work.batch or "",
        started_at=started,
        device=work.device,
        images=rows if work.images is None else work.images,
        rows=rows,
        tokens=work.tokens,
        tokens_written=work.tokens_written,
        prices=work.config.prices,
    )
