"""A project's whole graph: its stages in order, and what depends on what."""

from assets import choice, collection, curation, deployment, evaluation, labelling, monitoring, review, training
from assets.plan import downstream
from assets.tables import Recipe, Stage
from pipeline.config import Project
from pipeline.errors import ConfigError, suggest

STAGES = (collection, curation, labelling, training, evaluation, review, choice, deployment, monitoring)


def stages(project: Project) -> list[Stage]:
    """The project's stages, upstream first.

    Raises:
        ConfigError: project.yaml sets a budget for something that is neither a table nor a stage.
    """
    found = [module.build(project) for module in STAGES]
    known = {s.name for s in found} | {r.name for s in found for r in s.recipes}
    for name in project.config.budgets:
        if name not in known:
            raise ConfigError(f"{project.name}: budgets.{name}: nothing is called that", suggest(name, known))
    return found


def recipes(project: Project) -> list[Recipe]:
    """Every recipe of the project, each after those it reads from."""
    waiting = [recipe for stage in stages(project) for recipe in stage.recipes]
    made: set[str] = set()
    ordered: list[Recipe] = []
    while waiting:
        ready = [r for r in waiting if all(i in made for i in r.inputs)]
        if not ready:
            raise RuntimeError(f"the graph has a cycle among {[r.name for r in waiting]}")
        ordered += ready
        made.update(name for r in ready for name in r.outputs)
        waiting = [r for r in waiting if r not in ready]
    return ordered


def selected(all_recipes: list[Recipe], expression: str | None) -> list[Recipe]:
    """Recipes that a comma-separated list of tables or stages names; `table+` adds what follows it.

    Raises:
        ConfigError: a name is neither a table nor a stage.
    """
    if not expression:
        return all_recipes
    chosen: set[str] = set()
    for word in (w.strip() for w in expression.split(",")):
        name = word.removesuffix("+")
        found = {r.name for r in all_recipes if name in r.outputs or r.stage == name}
        if not found:
            known = {o for r in all_recipes for o in r.outputs} | {r.stage for r in all_recipes}
            raise ConfigError(f"nothing is called {name!r}", suggest(name, known))
        chosen |= downstream(all_recipes, found) if word.endswith("+") else found
    return [r for r in all_recipes if r.name in chosen]
