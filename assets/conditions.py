"""When assets are made: the conditions that the automation sensor evaluates."""

from collections.abc import Iterable

import dagster as dg

from pipeline.config import Project


def follows() -> dg.AutomationCondition:
    """Made when an input changes, once the inputs' blocking checks have passed."""
    condition = dg.AutomationCondition.eager() & dg.AutomationCondition.all_deps_blocking_checks_passed()
    return condition.with_label("follows its inputs")


def follows_only(project: Project, tables: Iterable[str]) -> dg.AutomationCondition:
    """Made when one of `tables` changes; other inputs are read as they are."""
    watched = dg.AssetSelection.assets(*[dg.AssetKey([project.name, t]) for t in tables])
    condition = dg.AutomationCondition.eager().allow(watched)
    checked = condition & dg.AutomationCondition.all_deps_blocking_checks_passed()
    return checked.with_label(f"follows {', '.join(tables)}")


def when_missing() -> dg.AutomationCondition:
    """Made once for every new batch."""
    return dg.AutomationCondition.on_missing().with_label("new batch")


def at_first_and_on_schedule(cron: str) -> dg.AutomationCondition:
    """Made once as soon as its inputs are there, then after every tick of `cron` that found them updated."""
    first = dg.AutomationCondition.eager() & dg.AutomationCondition.missing()
    condition = first | dg.AutomationCondition.on_cron(cron)
    return condition.with_label(f"at first, then on schedule {cron}")
