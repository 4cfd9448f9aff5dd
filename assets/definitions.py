"""Assembles what Dagster loads: every project under projects/ (or CVP_PROJECTS)."""

import dagster as dg

from assets import automation
from assets.graph import stages
from assets.resources import resources
from pipeline import logs
from pipeline.config import Project, find_projects, load_project

PIPELINE_JOB = "{}_pipeline"
MONITORING_JOB = "{}_monitoring"


def project_definitions(project: Project, given: dict[str, object] | None = None) -> dg.Definitions:
    """One project's assets, checks, jobs, sensor and schedules.

    Args:
        given: resources to bind; None leaves that to the caller that merges projects.
    """
    assets = [definition for stage in stages(project) for definition in stage.assets()]
    specs = [spec for definition in assets for spec in definition.specs]
    reported = [s.key for s in specs if s.tags["stage"] == "monitoring" and s.partitions_def is None]
    jobs = [
        dg.define_asset_job(
            PIPELINE_JOB.format(project.name),
            dg.AssetSelection.assets(*assets),
            description=f"All of {project.name}: raw photos to verdict.",
        ),
        dg.define_asset_job(
            MONITORING_JOB.format(project.name),
            dg.AssetSelection.assets(*reported),
            description="Costs, warehouse and report.",
        ),
    ]
    return dg.Definitions(
        assets=assets,
        jobs=jobs,
        schedules=automation.schedules(project),
        sensors=[automation.batch_sensor(project), _condition_sensor(project)],
        resources=given or {},
        # A run is a process of its own already; one more per step would load torch and the models anew.
        executor=dg.in_process_executor,
    )


def _condition_sensor(project: Project) -> dg.AutomationConditionSensorDefinition:
    """One evaluator a project, so that each can be paused by itself."""
    return dg.AutomationConditionSensorDefinition(
        f"{project.name}_automation",
        target=dg.AssetSelection.key_prefixes(project.name),
        default_status=dg.DefaultSensorStatus.RUNNING,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Every project, found without code changes. A broken project.yaml fails loading, by name."""
    logs.set_up()
    projects = [project_definitions(load_project(path)) for path in find_projects()]
    return dg.Definitions.merge(*projects, dg.Definitions(resources=resources()))
