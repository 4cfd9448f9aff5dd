"""The commands with which people come in: the review page, and other tools' files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli import show

PROJECT = typer.Argument(metavar="PROJECT", help="A folder name under projects/, or the path of a project.yaml.")
FORMAT = typer.Option("--format", "-f", help="label-studio, cvat, coco or fiftyone.")
SENT = typer.Option(
    "--format",
    "-f",
    help="label-studio, cvat, coco or fiftyone; of a dataset also yolo, voc, labelme, csv, imagefolder.",
)
REVIEWER = typer.Option("--reviewer", "-r", help="Who decides; default: your user name.")


def review(
    project: Annotated[str, PROJECT],
    port: Annotated[
        int | None, typer.Option("--port", "-p", help="Port on 127.0.0.1; default: 8765, or any that is free.")
    ] = None,
    reviewer: Annotated[str | None, REVIEWER] = None,
    browse: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Say yes, no or fix to what waits for a person, on a page that only this machine can open."""
    from pipeline.config import find_project
    from pipeline.reviewing import serve

    def ready(server: Any) -> None:
        typer.echo(server.url)
        show.hint(f"{server.desk.progress()['total']} labels wait for {server.desk.reviewer}; stop with Ctrl-C")
        if browse:
            typer.launch(server.url)

    found = find_project(project)
    done = serve(found, reviewer or _user(), port, ready)
    show.hint(f"{done['done']} of {done['total']} decided; to put them into the labels: cvp run {found.name}")


def export(
    project: Annotated[str, PROJECT],
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="Folder to write.")] = None,
    form: Annotated[str, SENT] = "label-studio",
    what: Annotated[
        str | None,
        typer.Option("--what", "-w", help="queue (default), labels, or dataset: finished labels in train, val, test."),
    ] = None,
    server: Annotated[bool, typer.Option("--server", help="Send to the Label Studio of project.yaml.")] = False,
) -> None:
    """Write the review queue, all labels, or a finished dataset for another tool. Doing it again changes nothing."""
    from pipeline import exchange
    from pipeline.config import find_project
    from pipeline.exchange import dataset, label_studio_server, sync

    found = find_project(project)
    _either(out, server, form, "OUT")
    only_there = form in dataset.FORMATS and form not in exchange.FORMATS
    what = what or ("dataset" if only_there else "queue")
    if out is None:
        pushed = label_studio_server.push(found, what)
        show.sent(pushed.made, pushed.changed, pushed.unchanged)
        show.losses(pushed.losses)
        return
    sent = dataset.export(found, form, out) if what == "dataset" else sync.export(found, form, what, out)
    typer.echo(str(out))
    show.hint(f"{sent.labels} labels on {sent.images} images")
    show.losses(sent.losses, out / sync.LOSSES)


def import_(
    project: Annotated[str, PROJECT],
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="File or folder that the tool wrote.")] = None,
    form: Annotated[str, FORMAT] = "label-studio",
    reviewer: Annotated[str | None, REVIEWER] = None,
    unchanged_is_yes: Annotated[
        bool, typer.Option("--unchanged-is-yes", help="Every label in the file was looked at; what was left is right.")
    ] = False,
    server: Annotated[bool, typer.Option("--server", help="Fetch from the Label Studio of project.yaml.")] = False,
) -> None:
    """Take over what people did in another tool. Doing it again changes nothing."""
    from pipeline.config import find_project
    from pipeline.exchange import label_studio_server, sync

    found = find_project(project)
    _either(file, server, form, "FILE")
    who = reviewer or _user()
    if file is None:
        received = label_studio_server.pull(found, who)
    else:
        received = sync.receive(found, form, file, who, unchanged_is_yes)
    show.received(sync.summary(received.decisions), received.images)
    show.losses(received.losses)
    if received.decisions:
        show.hint(f"to put them into the labels: cvp run {found.name}")


def _either(path: Path | None, server: bool, form: str, name: str) -> None:
    from pipeline.errors import ConfigError

    if (path is None) != server:
        raise ConfigError(
            f"name {name}, or use --server, and not both", f"for example: cvp export trees {name.lower()}"
        )
    if server and form != "label-studio":
        raise ConfigError("--server is for Label Studio only", "leave --format out")


def _user() -> str:
    import getpass

    from pipeline.errors import ConfigError

    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError) as error:
        raise ConfigError("your user name is not known", "give one with --reviewer") from error
