"""What starts work besides the conditions: a sensor that finds new batches, and two schedules."""

import dagster as dg
from dagster_aws.s3 import S3Resource

from assets.graph import recipes
from assets.partitions import batches_name
from assets.plan import asset_keys, due, partition_tags, recipes_of, source_batches
from assets.resources import source_of
from pipeline.config import Project
from pipeline.errors import PipelineError


def batch_sensor(project: Project) -> dg.SensorDefinition:
    """Adds a partition for every new sub-folder of the source. Conditions do the rest."""

    @dg.sensor(
        name=f"{project.name}_new_batches",
        minimum_interval_seconds=project.config.schedules.sensor_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Looks for new batches in {project.config.source.uri}.",
    )
    def new_batches(context: dg.SensorEvaluationContext, s3: S3Resource) -> dg.SensorResult | dg.SkipReason:
        try:
            found = source_of(project, s3).batches()
        except PipelineError as error:
            return dg.SkipReason(str(error))
        known = set(context.instance.get_dynamic_partitions(batches_name(project)))
        new = [b for b in found if b not in known]
        if not new:
            return dg.SkipReason(f"{len(found)} batches, none new")
        request = dg.DynamicPartitionsDefinition(name=batches_name(project)).build_add_request(new)
        return dg.SensorResult(dynamic_partitions_requests=[request], cursor=max(found))

    return new_batches


def schedules(project: Project) -> list[dg.ScheduleDefinition]:
    """Hourly: whatever is missing or stale. Nightly: drift, costs, warehouse and report."""
    return [_new_data(project), _monitoring(project)]


def _new_data(project: Project) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"{project.name}_new_data",
        job_name=f"{project.name}_pipeline",
        cron_schedule=project.config.schedules.new_data,
        description="Makes whatever is missing or stale, new batches included.",
    )
    def new_data(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        found = source_batches(project)
        everything = recipes(project)
        todo = recipes_of(due(project, everything, everything, found)) if found else []
        if not todo:
            return dg.SkipReason(f"{len(found)} batches, all fresh")
        context.instance.add_dynamic_partitions(batches_name(project), found)
        tags = partition_tags(context.instance, project, todo, found)
        return dg.RunRequest(asset_selection=asset_keys(todo), tags=tags)

    return new_data


def _monitoring(project: Project) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name=f"{project.name}_monitoring",
        job_name=f"{project.name}_monitoring",
        cron_schedule=project.config.schedules.monitoring,
        description="Costs, warehouse and report, whatever has changed.",
    )
