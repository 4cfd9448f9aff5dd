"""What assets need from outside: the store, the compute, and S3."""

import dagster as dg
from dagster_aws.s3 import S3Resource
from pydantic import Field

from pipeline import s3 as s3_settings
from pipeline.compute import Compute, Progress
from pipeline.config import Project
from pipeline.sources import Source, open_source
from pipeline.store import Store


class StoreResource(dg.ConfigurableResource):
    """Opens a project's tables under CVP_STORE (a folder or s3://bucket/prefix)."""

    def open(self, project: Project) -> Store:
        """The project's store."""
        return Store(project.store_uri)


class ComputeResource(dg.ConfigurableResource):
    """Where labelling, embedding and training run."""

    mode: str = ""
    """inline, local, auto or ray://HOST:PORT; empty: as project.yaml says."""

    def of(self, project: Project, progress: Progress | None = None) -> Compute:
        """The project's compute, with this resource's mode if it has one."""
        config = project.config
        return Compute(
            mode=self.mode or config.compute,
            workers=config.workers,
            batch_size=config.batch_size,
            progress=progress,
            cpus=config.ray.cpus,
            gpus=config.ray.gpus,
            min_workers=config.ray.min_workers,
            patience=config.ray.patience,
        )


class BatchesResource(dg.ConfigurableResource):
    """Which batches of a run's range are meant, since Dagster gives a run the range from a first to a last one."""

    only: list[str] = Field(default_factory=list)
    """Empty: all of the range."""


class LazyS3(S3Resource):
    """Dagster's S3, but a client is made when one is asked for, not before each step, which takes 0.1 s."""

    def get_object_to_set_on_execution_context(self) -> "LazyS3":
        """Itself in place of the client that nobody asked for."""
        return self


def source_of(project: Project, s3: S3Resource) -> Source:
    """The project's source; S3 is reached only when its URI says so."""
    uri = project.source_uri
    return open_source(uri, s3.get_client() if uri.startswith("s3://") else None)


def resources() -> dict[str, object]:
    """The resources that every asset may ask for."""
    return {"store": StoreResource(), "compute": ComputeResource(), "batches": BatchesResource(), "s3": s3_resource()}


def s3_resource() -> S3Resource:
    """Dagster's S3 with the settings that tables and vectors use."""
    return LazyS3(**s3_settings.resource_options())
