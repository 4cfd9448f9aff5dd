"""One dynamic partition is one batch of a project: 1,000 to a million images, never an image."""

from collections.abc import Sequence

import dagster as dg

from pipeline.config import Project

_AT_WORK = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def batches_name(project: Project) -> str:
    """Name of the project's dynamic partitions in the Dagster instance."""
    return f"{project.name}_batches"


def batches(project: Project) -> dg.DynamicPartitionsDefinition:
    """The project's batches; the sensor adds to them."""
    return dg.DynamicPartitionsDefinition(name=batches_name(project))


def follow_source(instance: dg.DagsterInstance, project: Project, found: Sequence[str]) -> None:
    """Make the batches that the source has now the project's partitions."""
    instance.add_dynamic_partitions(batches_name(project), list(found))
    for batch in removed(instance, project, found):
        instance.delete_dynamic_partition(batches_name(project), batch)


def removed(instance: dg.DagsterInstance, project: Project, found: Sequence[str]) -> list[str]:
    """Partitions whose batch is gone from the source, as far as they can be dropped now.

    One that was never finished would hold up all tables that wait for every batch. Tables and Dagster's events stay:
    a folder that comes back goes on where it was. None is dropped while a run of the project, whose range it may
    bound, is under way, nor where the source is empty, which is rather a disk that is not mounted.
    """
    known = instance.get_dynamic_partitions(batches_name(project))
    gone = sorted(set(known) - set(found)) if found else []
    return gone if gone and not _at_work(instance, project) else []


def _at_work(instance: dg.DagsterInstance, project: Project) -> bool:
    runs = instance.get_runs(filters=dg.RunsFilter(statuses=_AT_WORK))
    return any(
        run.job_name.startswith(f"{project.name}_") or any(k.path[0] == project.name for k in run.asset_selection or ())
        for run in runs
    )
