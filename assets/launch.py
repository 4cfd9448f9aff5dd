"""Runs a project's graph in this process through Dagster's own instance, as the command line does.

The instance is the one the web UI shows, so runs, checks and plots are there when it is opened.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pyarrow as pa

from assets import estimate as estimates
from assets import origin, progress
from assets.graph import recipes, selected
from assets.partitions import follow_source
from assets.plan import Piece, asset_keys, due, recipes_of, request, source_batches, states
from assets.resources import resources
from assets.tables import Recipe
from pipeline.config import Project, find_project, home
from pipeline.errors import ConfigError, PipelineError, suggest
from pipeline.files import writing

_STATUS = pa.schema(
    {
        "asset": pa.string(),
        "stage": pa.string(),
        "batch": pa.string(),
        "state": pa.string(),
        "rows": pa.int64(),
        "written_at": pa.string(),
    }
)

_SILENT = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
_SETTINGS = "dagster.yaml"
_INSTANCE_YAML = """\
# Made by cvp; yours to edit. A production template is in docs/.
telemetry:
  enabled: false
nux:
  enabled: false

# Marks a run as failed whose process or host is gone, so that its batches are asked for again.
run_launcher:
  module: assets.run_launcher
  class: WatchedRunLauncher
run_monitoring:
  enabled: true
"""


@dataclass(frozen=True)
class RunOutcome:
    """What a run came to. `failure` is None when all went well; `money` is what the ledger says of its work."""

    success: bool
    run_ids: list[str] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    skipped: int = 0
    seconds: float = 0.0
    failure: str | None = None
    money: float = 0.0


def dagster_home() -> Path:
    """DAGSTER_HOME, or a folder under CVP_HOME; made with telemetry off if it is new."""
    path = Path(os.environ.get("DAGSTER_HOME") or home() / "dagster").expanduser().resolve()
    if not (path / _SETTINGS).exists():
        with writing(path):
            _make_home(path)
    os.environ["DAGSTER_HOME"] = str(path)
    return path


def _make_home(path: Path) -> None:
    """Databases first, each whole, settings last: Dagster takes what it had half made when it was killed for a whole
    one, and can use it never again."""
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path, prefix=".new-") as place:
        (Path(place) / _SETTINGS).write_text(_INSTANCE_YAML, encoding="utf-8")
        with dg.DagsterInstance.from_config(place):
            pass
        for made in sorted(Path(place).iterdir(), key=lambda entry: entry.name == _SETTINGS):
            try:
                made.rename(path / made.name)
            except OSError:
                if not (path / made.name).exists():  # else: of another process, just now, or of an earlier one
                    raise


@contextmanager
def instance() -> Iterator[dg.DagsterInstance]:
    """The persistent Dagster instance."""
    dagster_home()
    with dg.DagsterInstance.get() as opened:
        yield opened


def status(project_name: str) -> pa.Table:
    """Every asset and batch with its state: fresh, stale, missing, or waiting (for an input).

    Returns:
        Columns asset, stage, batch ('' where there are none), state, rows, written_at.
    """
    project = find_project(project_name)
    rows = [
        {
            "asset": state.recipe.name,
            "stage": state.recipe.stage,
            "batch": state.batch or "",
            "state": state.word,
            "rows": state.receipt.rows if state.receipt else None,
            "written_at": state.receipt.written_by.get("at") if state.receipt else None,
        }
        for state in states(project, recipes(project), source_batches(project))
    ]
    return pa.Table.from_pylist(rows, schema=_STATUS)


def run(
    project_name: str,
    *,
    batches: list[str] | None = None,
    select: str | None = None,
    epochs: float = 1,
    on_plan: Callable[[pa.Table], None] | None = None,
    on_event: Callable[[progress.Step], None] = lambda step: None,
) -> RunOutcome:
    """Make whatever is missing or stale, in one Dagster run.

    Args:
        batches: only these; None for all that the source has.
        select: tables or stages, comma separated; `table+` adds what follows it.
        epochs: train so many times as long as project.yaml says. Runs without it, and the UI, will then
            find that model stale.
        on_plan: told what the run may take, as `estimate` does, before it starts.
        on_event: told of every step as it goes.

    Raises:
        PipelineError: a wrong name, an empty source, or weights that are not there.
    """
    started, at = time.perf_counter(), datetime.now(UTC)
    project = find_project(project_name).with_training(epochs)
    with instance() as opened, _quiet():
        origin.mark_gone(opened)
    known = source_batches(project)
    wanted = _checked_batches(known, batches, project)
    pieces, skipped = _pieces(project, wanted, select)
    todo = recipes_of(pieces)
    if todo and on_plan:
        on_plan(estimates.estimate(project, pieces))
    if not todo:
        return RunOutcome(True, skipped=skipped, seconds=time.perf_counter() - started)
    executed: list[str] = []

    def listen(step: progress.Step) -> None:
        if step.seconds is not None and not step.skipped:
            executed.append(f"{step.table}[{step.batch}]" if step.batch else step.table)
        on_event(step)

    with instance() as opened, progress.listening(listen), _quiet():
        follow_source(opened, project, known)
        asked = request(opened, project, pieces)
        result = _job(project, todo).execute_in_process(
            instance=opened,
            tags=origin.tags(project_name) | asked.tags,
            run_config={"resources": asked.resources} | _SILENT,
            raise_on_error=False,
        )
        failure = None if result.success else _failure(result)
    seconds, money = time.perf_counter() - started, estimates.spent(project, at)
    return RunOutcome(result.success, [result.run_id], executed, skipped, seconds, failure, money)


def estimate(project_name: str, *, batches: list[str] | None = None, select: str | None = None) -> pa.Table:
    """What `run` with the same arguments may take: see `assets.estimate.estimate`."""
    project = find_project(project_name)
    wanted = _checked_batches(source_batches(project), batches, project)
    return estimates.estimate(project, _pieces(project, wanted, select)[0])


def _pieces(project: Project, batches: Sequence[str], select: str | None) -> tuple[list[Piece], int]:
    """What is to be done, and how many of the selected recipes need nothing."""
    everything = recipes(project)
    chosen = selected(everything, select)
    pieces = due(project, everything, chosen, batches)
    return pieces, len(chosen) - len(recipes_of(pieces))


def _checked_batches(known: Sequence[str], asked: list[str] | None, project: Project) -> list[str]:
    if not known:
        raise PipelineError(
            f"no photos in {project.source_uri}",
            "put a folder of photos there, or pull a sample: cvp samples pull NAME",
        )
    for batch in asked or []:
        if batch not in known:
            raise ConfigError(f"the source has no batch {batch!r}", suggest(batch, known))
    return list(asked) if asked else list(known)


def _job(project: Project, todo: list[Recipe]) -> dg.JobDefinition:
    """The project's job, narrowed to the assets of `todo`."""
    from assets.definitions import PIPELINE_JOB, project_definitions

    job = project_definitions(project, resources()).resolve_job_def(PIPELINE_JOB.format(project.name))
    return job.get_subset(asset_selection=set(asset_keys(todo)))


def _failure(result: dg.ExecuteInProcessResult) -> str:
    """The first failed step's own words, and its remedy."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            user = data.user_failure_data
            if user is not None:
                remedy = user.metadata.get("remedy")
                return f"{user.description}\n  -> {remedy.value if remedy else 'see the run in the UI'}"
            error = data.error
            root = error.cause or error if error else None
            return f"{event.step_key}: {root.message.strip() if root else 'failed'}"
    return f"run {result.run_id} failed; see it in the UI"


@contextmanager
def _quiet() -> Iterator[None]:
    """Dagster's console log would drown the progress; everything is in the instance anyway."""
    logger = logging.getLogger("dagster")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
