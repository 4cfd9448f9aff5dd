"""What is fresh, stale or missing: told from the tables' receipts, without running anything."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import dagster as dg

from assets.partitions import batches_name
from assets.resources import ComputeResource, StoreResource, s3_resource, source_of
from assets.tables import Recipe, Work
from pipeline.config import Project
from pipeline.store import Receipt

RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


@dataclass(frozen=True)
class State:
    """Of one recipe and batch: fresh, stale, missing, or waiting (an input is missing)."""

    recipe: Recipe
    batch: str | None
    word: str
    receipt: Receipt | None


@dataclass(frozen=True)
class Request:
    """Tags of a Dagster run, and configuration of its resources."""

    tags: dict[str, str]
    resources: dict[str, Any]


def source_batches(project: Project) -> list[str]:
    """Batches that the source has now, sorted."""
    return source_of(project, s3_resource()).batches()


def states(project: Project, chosen: Sequence[Recipe], batches: Sequence[str]) -> Iterator[State]:
    """The state of every recipe, for each of `batches` where it has batches."""
    compute, s3 = ComputeResource().of(project), s3_resource()
    # One listing of the source and one of each table: asking batch by batch would take hours where there are many.
    store, known = StoreResource().open(project).remembering(), cache(source_of(project, s3).fingerprints)
    sources = known if len(batches) > 1 else dict
    for recipe in chosen:
        for batch in batches if recipe.batched else [None]:
            work = Work(project, store, compute, s3, batch, sources=sources)
            yield State(recipe, batch, _word(recipe, work), store.receipt(recipe.name, batch))


def downstream(everything: Sequence[Recipe], names: set[str]) -> set[str]:
    """Names of the recipes that depend on `names`, themselves included.

    Args:
        everything: all recipes, each after those it reads from.
    """
    reached = set(names)
    makers = {output: recipe.name for recipe in everything for output in recipe.outputs}
    for recipe in everything:
        if any(makers[i] in reached for i in recipe.inputs):
            reached.add(recipe.name)
    return reached


@dataclass(frozen=True)
class Piece:
    """One piece of work: a recipe, for one batch where it has batches."""

    recipe: Recipe
    batch: str | None


def due(
    project: Project, everything: Sequence[Recipe], chosen: Sequence[Recipe], batches: Sequence[str]
) -> list[Piece]:
    """The work of `chosen` that is not fresh or that depends on such; what follows may turn out unchanged yet."""
    stale = {(s.recipe.name, s.batch) for s in states(project, chosen, batches) if s.word != "fresh"}
    anywhere = {name for name, _ in stale}
    makers = {output: recipe.name for recipe in everything for output in recipe.outputs}
    for recipe in everything:
        above = anywhere & {makers[i] for i in recipe.inputs} - {recipe.name}
        # Work without batches reads all of them, and is read by all.
        reached: list[str | None] = [b for b in batches if any({(n, b), (n, None)} & stale for n in above)]
        stale |= {(recipe.name, b) for b in (reached if recipe.batched else [None] if above else [])}
        if any((recipe.name, b) in stale for b in (*batches, None)):
            anywhere.add(recipe.name)
    mine = [Piece(r, b) for r in chosen for b in (batches if r.batched else [None])]
    return [piece for piece in mine if (piece.recipe.name, piece.batch) in stale]


def recipes_of(pieces: Sequence[Piece]) -> list[Recipe]:
    """The recipes of `pieces`, each once, in order."""
    return list({piece.recipe.name: piece.recipe for piece in pieces}.values())


def asset_keys(chosen: Sequence[Recipe]) -> list[dg.AssetKey]:
    """Keys of all tables that `chosen` make."""
    return [recipe.key(name) for recipe in chosen for name in recipe.outputs]


def request(instance: dg.DagsterInstance, project: Project, pieces: Sequence[Piece]) -> Request:
    """What one Dagster run over `pieces` is to be told: a range of partitions, and which of them are meant."""
    wanted = {piece.batch for piece in pieces if piece.batch is not None}
    known = [b for b in instance.get_dynamic_partitions(batches_name(project)) if b in wanted]
    if not known:
        return Request({}, {})
    return Request({RANGE_START: known[0], RANGE_END: known[-1]}, {"batches": {"config": {"only": known}}})


def _word(recipe: Recipe, work: Work) -> str:
    mark = recipe.fingerprint(work)
    if mark is None:
        return "waiting"
    if recipe.receipts(work, mark) is not None:
        return "fresh"
    return "stale" if work.store.receipt(recipe.name, work.batch) else "missing"
