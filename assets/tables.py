"""How a pipeline function becomes Dagster assets: one mechanism for every table.

A `Stage` collects the definitions of one asset group of one project. `Stage.table` turns a function
`(Work) -> rows` into assets that
  - depend on the tables they read, and run once per batch (or once in all),
  - skip what is already made by equal work (equal fingerprint of code, configuration and inputs),
  - check rows before they are committed, write them atomically, and enter what they cost,
  - show rows, columns, a preview and pictures on their pages.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dagster as dg
from dagster_aws.s3 import S3Resource

from assets import progress
from assets.metadata import column_schema
from assets.partitions import batches
from assets.recipes import Check, Finding, Outputs, Recipe, Work
from assets.resources import ComputeResource, StoreResource
from assets.running import Done, run_recipe
from pipeline import schema
from pipeline.config import Project
from pipeline.errors import PipelineError
from pipeline.ids import fingerprint

__all__ = ["Check", "Finding", "Recipe", "Stage", "Work", "run_recipe"]


class Stage:
    """The assets of one group of one project."""

    def __init__(self, project: Project, name: str) -> None:
        self.project = project
        self.name = name
        self.recipes: list[Recipe] = []

    def table(self, *outputs: str, **how: Any) -> Callable[[Callable[[Work], Outputs]], Callable[[Work], Outputs]]:
        """Declare that the decorated function makes `outputs`; `how` are fields of Recipe."""

        def register(make: Callable[[Work], Outputs]) -> Callable[[Work], Outputs]:
            self.recipes.append(Recipe(self.project, self.name, outputs, make, **how))
            return make

        return register

    def assets(self) -> list[dg.AssetsDefinition]:
        """The Dagster definitions of this stage."""
        return [_definition(recipe) for recipe in self.recipes]


def _definition(recipe: Recipe) -> dg.AssetsDefinition:
    project = recipe.project
    partitions = batches(project) if recipe.batched else None
    doc = (recipe.make.__doc__ or "").strip()
    specs = [
        dg.AssetSpec(
            recipe.key(name),
            deps=[recipe.key(i) for i in recipe.inputs if i not in recipe.outputs],
            group_name=f"{project.name}_{recipe.stage}",
            description=f"{schema.table(name).doc.capitalize()}.\n\n{doc}",
            owners=project.config.owners,
            kinds=set(recipe.kinds),
            code_version=recipe.code_version,
            automation_condition=recipe.condition,
            metadata={"dagster/column_schema": column_schema(schema.table(name))},
            tags={"stage": recipe.stage, "project": project.name},
        )
        for name in recipe.outputs
    ]
    checks = [
        dg.AssetCheckSpec(c.name, asset=recipe.key(recipe.name), blocking=c.blocking, description=c.description)
        for c in recipe.checks
    ]

    @dg.multi_asset(
        name=f"{project.name}__{recipe.name}",
        specs=specs,
        check_specs=checks,
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run() if partitions else None,
        pool=recipe.pool,
    )
    def body(
        context: dg.AssetExecutionContext, store: StoreResource, compute: ComputeResource, s3: S3Resource
    ) -> Iterator[Any]:
        tables = store.open(project)
        done = []
        for batch in context.partition_keys if recipe.batched else [None]:

            def tell(finished: int, total: int, batch: str | None = batch) -> None:
                progress.tell(progress.Step(recipe.name, batch, finished, total))

            work = Work(project, tables, compute.of(project, tell), s3, batch)
            try:
                done.append(run_recipe(recipe, work))
            except PipelineError as error:
                where = f"{project.name}/{recipe.name}" + (f" batch {batch}" if batch else "")
                raise dg.Failure(
                    f"{where}: {error.what}", metadata={"remedy": error.remedy}, allow_retries=False
                ) from error
            for name in recipe.outputs:
                context.add_asset_metadata(done[-1].metadata[name], asset_key=recipe.key(name), partition_key=batch)
        for name in recipe.outputs:
            contents = [d.contents[name] for d in done if name in d.contents]
            version = contents[0] if len(contents) == 1 else fingerprint(contents)
            if contents:
                yield dg.MaterializeResult(asset_key=recipe.key(name), data_version=dg.DataVersion(version))
        yield from _check_results(recipe, done)

    return body


def _check_results(recipe: Recipe, done: Sequence[Done]) -> Iterator[dg.AssetCheckResult]:
    for check in recipe.checks:
        found = [(d.batch, d.findings[check.name]) for d in done if check.name in d.findings]
        failed = [(batch, f) for batch, f in found if not f.passed]
        shown = failed or found
        words = "; ".join(f"{batch}: {f.why}" if batch else f.why for batch, f in shown if f.why)
        yield dg.AssetCheckResult(
            check_name=check.name,
            asset_key=recipe.key(recipe.name),
            passed=not failed,
            severity=dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN,
            description=words[:1000],
            metadata={"batches": len(found), "failed": len(failed)},
        )
