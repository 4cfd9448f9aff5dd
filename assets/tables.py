"""How a pipeline function becomes Dagster assets: one mechanism for every table.

A `Stage` collects the definitions of one asset group of one project. `Stage.table` turns a function
`(Work) -> rows` into assets that
  - depend on the tables they read, and run once per batch (or once in all),
  - skip what is already made by equal work (equal fingerprint of code, configuration and inputs),
  - check rows before they are committed, write them atomically, and enter what they cost,
  - go on with the other batches when one fails with a PipelineError that is not `widespread`, and fail at the end with
    all that went wrong; any other exception ends the table at once, with what failed before as its notes,
  - show rows, columns, a preview and pictures on their pages.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dagster as dg
from dagster_aws.s3 import S3Resource

from assets import materialised, progress
from assets.metadata import column_schema
from assets.partitions import batches as batch_partitions
from assets.recipes import Check, Finding, Outputs, Recipe, Work
from assets.resources import BatchesResource, ComputeResource, StoreResource, source_of
from assets.running import Done, run_recipe
from pipeline import schema
from pipeline.config import Project
from pipeline.errors import ConfigError, PipelineError, suggest

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
    partitions = batch_partitions(project) if recipe.batched else None
    doc = inspect.getdoc(recipe.make) or ""
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
        context: dg.AssetExecutionContext,
        store: StoreResource,
        compute: ComputeResource,
        s3: S3Resource,
        batches: BatchesResource,
    ) -> Iterator[Any]:
        tables = store.open(project)
        done, failed, kept = list[Done](), list[tuple[str | None, PipelineError]](), dict[Any, Any]()
        try:
            todo = _batches(context, project, s3, batches.only) if recipe.batched else [None]
        except PipelineError as error:
            raise _failure(recipe, [(None, error)]) from error
        for batch in todo:
            work = Work(project, tables, compute.of(project, _teller(recipe, batch)), s3, batch, kept=kept)
            try:
                done.append(run_recipe(recipe, work))
            except PipelineError as error:
                failed.append((batch, error))
                if error.widespread:
                    break
                continue
            except Exception as error:  # a GPU's memory, Arrow: it ends the table, and takes along what failed before
                for earlier, known in failed:
                    error.add_note(f"before it failed {earlier}: {known}")
                raise
            yield from _told(context, recipe, done[-1])
        if done:
            yield from _check_results(recipe, done)
        if failed:
            raise _failure(recipe, failed) from failed[0][1]
        if not done:
            yield from _unchecked(recipe)
        if recipe.batched:
            yield from (materialised.nothing_more(recipe.key(name)) for name in recipe.outputs)

    return body


def _batches(context: dg.AssetExecutionContext, project: Project, s3: S3Resource, only: Sequence[str]) -> list[str]:
    """Of the run's range those that are meant, and that the source still has."""
    if unknown := sorted(set(only) - set(context.partition_keys)):
        raise ConfigError(f"not in the run's range: {', '.join(unknown)}", suggest(unknown[0], context.partition_keys))
    wanted, there = set(only or context.partition_keys), set(source_of(project, s3).batches())
    meant = [b for b in context.partition_keys if b in wanted]
    for batch in (b for b in meant if b not in there):
        context.log.warning(f"{batch} is no longer in {project.source_uri}: its rows stay as they are")
    return [b for b in meant if b in there]


def _teller(recipe: Recipe, batch: str | None) -> Callable[[int, int], None]:
    return lambda finished, total: progress.tell(progress.Step(recipe.name, batch, finished, total))


def _told(context: dg.AssetExecutionContext, recipe: Recipe, done: Done) -> Iterator[Any]:
    """What Dagster is told of one batch's tables, or of tables without batches; of rows that were withheld, nothing."""
    for name, content in done.contents.items():
        key, page = recipe.key(name), done.metadata[name]
        if done.batch is None:
            yield dg.MaterializeResult(asset_key=key, data_version=dg.DataVersion(content), metadata=page)
        elif not (done.skipped and materialised.is_known(context, key, done.batch, content)):
            yield materialised.of_batch(context, key, done.batch, content, page)


def _failure(recipe: Recipe, failed: Sequence[tuple[str | None, PipelineError]]) -> dg.Failure:
    """All that went wrong, each with where."""
    table = f"{recipe.project.name}/{recipe.name}"
    words = [f"{table}{f' batch {batch}' if batch else ''}: {error.what}" for batch, error in failed]
    remedies = dict.fromkeys(error.remedy for _, error in failed)
    return dg.Failure("\n".join(words), metadata={"remedy": "; ".join(remedies)}, allow_retries=False)


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


def _unchecked(recipe: Recipe) -> Iterator[dg.AssetCheckResult]:
    """Dagster wants a result of every check; where no batch is left there is nothing that could have passed."""
    for check in recipe.checks:
        yield dg.AssetCheckResult(
            check_name=check.name,
            asset_key=recipe.key(recipe.name),
            passed=False,
            severity=dg.AssetCheckSeverity.WARN,
            description="nothing was checked: none of the run's batches is in the source any more",
            metadata={"batches": 0, "failed": 0},
        )
