"""What starts work besides the conditions: a sensor that finds new batches, and three schedules."""

import dagster as dg
from dagster_aws.s3 import S3Resource

from assets.graph import recipes
from assets.partitions import batches, batches_name, follow_source, removed
from assets.plan import asset_keys, due, recipes_of, request, source_batches
from assets.resources import StoreResource, source_of
from pipeline.config import Project, load_project
from pipeline.errors import PipelineError
from pipeline.s3 import hurried
from pipeline.vectors import Vectors


def batch_sensor(project: Project) -> dg.SensorDefinition:
    """Adds a partition for every new sub-folder of the source and drops removed ones. Conditions do the rest."""

    @dg.sensor(
        name=f"{project.name}_new_batches",
        minimum_interval_seconds=project.config.schedules.sensor_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Looks for new batches in {project.config.source.uri}.",
    )
    def new_batches(context: dg.SensorEvaluationContext, s3: S3Resource) -> dg.SensorResult | dg.SkipReason:
        try:
            with hurried():
                found = source_of(project, s3).batches()
        except PipelineError as error:
            return dg.SkipReason(str(error))
        known = set(context.instance.get_dynamic_partitions(batches_name(project)))
        new, gone = [b for b in found if b not in known], removed(context.instance, project, found)
        if not new and not gone:
            return dg.SkipReason(f"{len(found)} batches, none new")
        partitions = batches(project)
        requests = partitions.build_add_request(new), partitions.build_delete_request(gone)
        return dg.SensorResult(dynamic_partitions_requests=[r for r in requests if r.partition_keys], cursor=max(found))

    return new_batches


def schedules(project: Project) -> list[dg.ScheduleDefinition]:
    """Hourly: whatever is missing or stale. Nightly: costs, warehouse and report; and vectors are tidied up."""
    return [_new_data(project), _monitoring(project), _upkeep(project)]


def _new_data(project: Project) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"{project.name}_new_data",
        job_name=f"{project.name}_pipeline",
        cron_schedule=project.config.schedules.new_data,
        description="Makes whatever is missing or stale, new batches included.",
    )
    def new_data(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        # As project.yaml is now: the code server may have read it long ago.
        now = load_project(project.folder)
        everything = recipes(now)
        with hurried():
            found = source_batches(now)
            todo = due(now, everything, everything, found) if found else []
        if not todo:
            return dg.SkipReason(f"{len(found)} batches, all fresh")
        follow_source(context.instance, now, found)
        asked = request(context.instance, now, todo)
        return dg.RunRequest(
            asset_selection=asset_keys(recipes_of(todo)), tags=asked.tags, run_config={"resources": asked.resources}
        )

    return new_data


def _monitoring(project: Project) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name=f"{project.name}_monitoring",
        job_name=f"{project.name}_monitoring",
        cron_schedule=project.config.schedules.monitoring,
        description="Costs, warehouse and report, whatever has changed.",
    )


def _upkeep(project: Project) -> dg.ScheduleDefinition:
    @dg.op(name=f"{project.name}__tidy_vectors")
    def tidy_vectors(store: StoreResource) -> None:
        """LanceDB's small files made into large ones, and old versions dropped, which else waits for a later commit."""
        Vectors(store.open(project).uri).tidy()

    @dg.job(name=f"{project.name}_upkeep", description="Vectors compacted, their old versions dropped.")
    def upkeep() -> None:
        tidy_vectors()

    return dg.ScheduleDefinition(
        name=f"{project.name}_upkeep",
        job=upkeep,
        cron_schedule=project.config.schedules.monitoring,
        description="Compacts vectors and drops their old versions.",
    )
