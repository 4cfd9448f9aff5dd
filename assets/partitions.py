"""One dynamic partition is one batch of a project: 1,000 to a million images, never an image."""

import dagster as dg

from pipeline.config import Project


def batches_name(project: Project) -> str:
    """Name of the project's dynamic partitions in the Dagster instance."""
    return f"{project.name}_batches"


def batches(project: Project) -> dg.DynamicPartitionsDefinition:
    """The project's batches; the sensor adds to them."""
    return dg.DynamicPartitionsDefinition(name=batches_name(project))
