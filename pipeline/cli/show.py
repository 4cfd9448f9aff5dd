"""What the commands print: answers to stdout, progress and errors to stderr."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.doctor import Finding
    from pipeline.exchange.tasks import Loss
    from pipeline.pulse import Pulse
    from pipeline.samples import Sample
    from pipeline.weights import Checkpoint

_STATE_STYLE = {"fresh": "green", "stale": "yellow", "missing": "red", "waiting": "dim"}
_MOST_LOSSES = 10
_MOST_NODES = 4
_FINDING_MARK = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "broken": "[red]✗[/]"}


class Step(Protocol):
    """One table of one batch, begun (seconds is None), going on, or done."""

    @property
    def table(self) -> str: ...
    @property
    def batch(self) -> str | None: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def seconds(self) -> float | None: ...
    @property
    def skipped(self) -> bool: ...
    @property
    def rows(self) -> int: ...


@cache
def _console(stderr: bool) -> Any:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def _out() -> Any:
    return _console(False)


def _err() -> Any:
    return _console(True)


def _table(*columns: str, right: Iterable[str] = ()) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=i == 0)
    return table


def _plain(text: object) -> str:
    """`text` with nothing in it taken for markup: it may hold file names and models' words."""
    from rich.markup import escape

    return escape(str(text))


def error(what: str, remedy: str) -> None:
    """What is wrong in red, and what to do."""
    _err().print(f"[bold red]error[/]  {_plain(what)}\n[bold]→[/]      {_plain(remedy)}", soft_wrap=True)


def hint(text: str) -> None:
    """A remark beside the answer."""
    _err().print(f"[dim]{_plain(text)}[/]", soft_wrap=True)


@contextmanager
def working(subject: str, *, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Yields `say`; each message is shown, and at the end that the subject is ready."""
    if quiet:
        yield lambda _: None
        return
    with _err().status(f"{_plain(subject)} …") as spinner:

        def say(message: str) -> None:
            spinner.update(f"{_plain(message)} …")
            if not _err().is_terminal:
                _err().print(f"  {_plain(message)}")

        yield say
    _err().print(f"[green]✓[/] {_plain(subject)}")


@contextmanager
def transfers(
    subject: str, *, quiet: bool = False
) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None] | None]]:
    """Yields `say`, and a listener to the (bytes done, bytes in all) of what was said last."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    if quiet or not _err().is_terminal:
        with working(subject, quiet=quiet) as say:
            yield say, None
        return
    columns = TextColumn("{task.description}"), BarColumn(24), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=_err(), transient=True) as bars:
        task = bars.add_task(_plain(subject), total=None)

        def begin(message: str) -> None:
            bars.reset(task, description=_plain(message), total=None)

        def progress(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total or None)

        yield begin, progress
    _err().print(f"[green]✓[/] {_plain(subject)}")


@contextmanager
def steps() -> Iterator[Callable[[Step], None]]:
    """Yields a listener that shows the steps of a run: finished ones stay, the present one moves."""
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[count]}")
    times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    open_tasks: dict[tuple[str, str | None], TaskID] = {}
    with Progress(*columns, *times, console=_err(), transient=True) as progress:

        def listen(step: Step) -> None:
            key = step.table, step.batch
            name = _plain(_step_name(step))
            if step.seconds is not None:
                if key in open_tasks:
                    progress.remove_task(open_tasks.pop(key))
                if not step.skipped:
                    progress.console.print(f"[green]✓[/] {name:<44} {step.rows:>9,} rows {_seconds(step.seconds):>9}")
                return
            if key not in open_tasks:
                open_tasks[key] = progress.add_task(name, total=step.total or None, count="")
            count = f"{step.done:,} of {step.total:,}" if step.total else ""
            progress.update(open_tasks[key], completed=step.done, total=step.total or None, count=count)

        yield listen


def _step_name(step: Step) -> str:
    return f"{step.table}  {step.batch}" if step.batch else step.table


def plan(rows: pa.Table, currency: str) -> None:
    """One line on what a run may take."""
    _err().print(_plain(f"before it starts: {_foreseen(rows, currency)}"))


def estimate(rows: pa.Table, currency: str) -> None:
    """What each table may take, and all of them."""
    if not rows.num_rows:
        hint("everything is up to date: a run takes nothing")
        return
    figures = ("batches", "images", "time", "from", "to", currency)
    table = _table("table", *figures, "told from", right=figures)
    for row in rows.to_pylist():
        times = [_seconds(row[name]) if row[name] is not None else "–" for name in ("seconds", "low", "high")]
        counts = [f"{row[name]:,}" if row[name] is not None else "" for name in ("batches", "images")]
        table.add_row(row["asset"], *counts, *times, _amount(row["money"]), _plain(row["record"]))
    _out().print(table)
    _out().print(_plain(_foreseen(rows, currency)))


def _foreseen(rows: pa.Table, currency: str) -> str:
    import pyarrow.compute as pc

    seconds, low, high, money = (pc.sum(rows[n]).as_py() or 0.0 for n in ("seconds", "low", "high", "money"))
    unknown = rows["seconds"].null_count
    if unknown == rows.num_rows:
        return "how long is not known: no such work is on record yet"
    spread = f" ({_seconds(low)} to {_seconds(high)})" if low < high else ""
    rest = f", and {unknown} of which nothing is on record" if unknown else ""
    return f"about {_seconds(seconds)}{spread} and {money:,.3g} {currency}{rest}"


def outcome(result: Any, currency: str) -> None:
    """One line on how a run went and what it cost, or why it failed."""
    if not result.success:
        what, _, remedy = (result.failure or "the run failed").partition("\n  -> ")
        error(what, remedy or "see the run in the UI: make ui")
        return
    if not result.executed:
        _err().print(f"[green]✓[/] everything is up to date ({result.skipped} tables, {_seconds(result.seconds)})")
        return
    skipped = f", {result.skipped} were up to date" if result.skipped else ""
    bill = f"{_seconds(result.seconds)} for {result.money:,.3g} {currency}"
    _err().print(f"[green]✓[/] {len(result.executed)} made in {_plain(bill)}{skipped}")


def verdict(rows: pa.Table, currency: str) -> None:
    """The options side by side for everything, and what to take for each class and slice."""
    from pipeline.report.form import duration, percent

    if not rows.num_rows:
        hint("no verdict yet")
        return
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows.to_pylist():
        groups[row["class_name"], row["slice"]].append(row)
    order = sorted(groups, key=lambda g: (g[0] != "all", g[0], g[1] != "all", g[1]))
    head = sorted(groups[order[0]], key=lambda r: (-(r["value"] if r["value"] is not None else -1.0), r["model"]))
    metric = head[0]["metric"]
    figures = (metric, "certified", "1,000 now", "at 1 M", "time")
    table = _table("option", *figures, right=figures)
    title = f"Verdict (costs in {currency} and time for 1,000 images)"
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    for i, column in enumerate(table.columns):
        column.no_wrap = i > 0  # names may be folded, figures not
    for r in head:
        table.add_row(
            f"{'→' if r['recommended'] else ' '} {_option(r)}", _measured(r), percent(r["certified_coverage"]),
            _amount(r["cost_per_1000_now"]), _amount(r["cost_per_1000_at_1m"]), duration(r["seconds_per_1000"]),
            style="bold green" if r["recommended"] else None,
        )  # fmt: skip
    out = _out()
    out.print()
    out.print(table)
    for r in head:
        if r["recommended"]:
            out.print(_plain(r["reason"]))
    if len(order) > 1:
        out.print()
        out.print(_picks([(g, groups[g]) for g in order[1:]]))


def _picks(groups: list[tuple[tuple[str, str], list[dict[str, Any]]]]) -> Any:
    """What to take in each place, beside the best automatic option there."""
    best = "best automatic"
    table = _table("class", "slice", "take", best, right=(best,))
    for (class_name, slice_name), rows in groups:
        automatic = [r for r in rows if r["option"] != "people" and r["value"] is not None]
        top = max(automatic, key=lambda r: (r["value"], r["model"]), default=None)
        shown = f"{_name(top)} {_measured(top)}" if top else "–"
        for r in (r for r in rows if r["recommended"]):
            table.add_row(_plain(class_name), _plain(slice_name), _name(r), shown)
    return table


def _option(row: dict[str, Any]) -> str:
    return "people" if row["option"] == "people" else f"{row['option']}: {_name(row)}"


def _name(row: dict[str, Any]) -> str:
    from pipeline.ids import producer_name

    return "people" if row["option"] == "people" else _plain(producer_name(row["model"]))


def _measured(row: dict[str, Any]) -> str:
    from pipeline.report.form import number

    value = number(row["value"])
    return value if row["low"] is None or row["high"] is None else f"{value} {row['low']:.2f}–{row['high']:.2f}"


def _amount(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


QUERIES = (
    "SELECT option, model, metric, round(value, 3) AS value, recommended FROM verdict WHERE slice = 'all'",
    "SELECT batch, status, count(*) AS labels FROM labels GROUP BY ALL ORDER BY ALL",
    "SELECT batch, test, subject, p_value, drifted FROM drift ORDER BY ALL",
)


def places(project: str, page: Path | None, database: Path | None) -> None:
    """Where the report, the tables and the UI are."""
    out = _out()
    if page:
        out.print(f"\n[bold]Report[/]    {_plain(_near(page))}", soft_wrap=True)
    if database:
        out.print(
            f"[bold]DuckDB[/]    {_plain(_near(database))}   (views only; safe to open while a run writes)",
            soft_wrap=True,
        )
    out.print("[bold]Ask[/]", soft_wrap=True)
    for query in QUERIES:
        out.print(f'  cvp sql {project} "{_plain(query)}"', soft_wrap=True)
    if database:
        code = f"import duckdb; print(duckdb.connect('{_near(database)}', read_only=True).sql('FROM verdict'))"
        out.print(f'  python -c "{_plain(code)}"', soft_wrap=True)
    out.print("[bold]UI[/]        make ui", soft_wrap=True)


def _near(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def status(rows: pa.Table, *, by_batch: bool) -> None:
    """The state of every table, one line each, or one line a batch."""
    found = rows.to_pylist()
    columns = ("asset", "batch", "state", "rows", "written") if by_batch else ("asset", "state", "rows", "written")
    table = _table(*columns, right=("rows",))
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in found:
        groups[(row["asset"], row["batch"] or "") if by_batch else (row["asset"],)].append(row)
    for key, members in groups.items():
        states = Counter(m["state"] for m in members)
        told = ", ".join(
            f"[{_STATE_STYLE.get(s, 'default')}]{f'{n} ' if len(members) > 1 else ''}{s}[/]"
            for s, n in sorted(states.items())
        )
        count = sum(m["rows"] or 0 for m in members)
        written = max((str(m.get("written_at") or "") for m in members), default="")
        table.add_row(*map(_plain, key), told, f"{count:,}" if written else "", written[:16].replace("T", " "))
    out = _out()
    out.print(table)
    states = Counter(r["state"] for r in found)
    out.print(", ".join(f"{n} {s}" for s, n in sorted(states.items())) or "nothing to make", style="dim")


def running(found: Sequence[Pulse], expected: pa.Table) -> None:
    """What is being made now, and what was when its process died; and how much is left in all."""
    now = time.time()
    figures = ("images", "a second", "left", "queue", "MiB")
    table = _table("now", "batch", *figures, "workers", "where", "since", right=figures)
    for p in found:
        images = f"{p.done:,} of {p.total:,}" if p.total else ""
        left = "" if p.left is None else _duration(p.left)
        if silent := p.silent(now):
            left = f"[red]no sign of life for {_duration(silent)}[/]"
        since = datetime.fromtimestamp(p.began).strftime("%H:%M:%S")
        queue, held = f"{p.waiting}" if p.workers else "", f"{p.memory:,.0f}"
        where = _plain(f"{p.host} {p.pid}")
        name = _plain(p.table), _plain(p.batch)
        table.add_row(*name, images, _rate(p.rate), left, queue, held, _plain(_workers(p)), where, since)
    _out().print(table)
    seconds = expected["seconds"].to_pylist()
    never = f", and {seconds.count(None)} tables that were never made before" if None in seconds else ""
    total = _duration(sum(s for s in seconds if s is not None))
    _out().print(f"about {total} of work left in all{never}: cvp run --estimate tells which", style="dim")


def _workers(pulse: Pulse) -> str:
    """How many are up, where, and what becomes of them; nothing for work that has no shards."""
    if not pulse.workers:
        return ""
    lost = f", {pulse.lost} lost" if pulse.lost else ""
    most = sorted(pulse.nodes.items(), key=lambda node: (-node[1], node[0]))
    named = ", ".join(f"{number} on {node}" for node, number in most[:_MOST_NODES])
    rest = f" and {len(most) - _MOST_NODES} more machines" if len(most) > _MOST_NODES else ""
    return f"{pulse.busy} of {pulse.workers} busy, {pulse.mode}{lost}{': ' if named else ''}{named}{rest}"


def _rate(images_a_second: float) -> str:
    return f"{images_a_second:,.1f}" if images_a_second else ""


def _duration(seconds: float) -> str:
    return _seconds(seconds) if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def findings(found: Iterable[Finding]) -> int:
    """Each finding as it comes; returns how many are broken."""
    out, broken = _out(), 0
    for f in found:
        broken += f.state == "broken"
        out.print(f"{_FINDING_MARK[f.state]} [bold]{_plain(f.subject):<20}[/] {_plain(f.found)}", soft_wrap=True)
        if f.remedy:
            out.print(f"  {'':<20} [bold]→[/] {_plain(f.remedy)}", soft_wrap=True)
    out.print(
        f"\n{broken} to mend" if broken else "\neverything that is needed is there", style="red" if broken else "green"
    )
    return broken


def sent(made: int, changed: int, unchanged: int) -> None:
    """What a sync with a labelling server came to."""
    _out().print(f"{made} tasks made, {changed} changed, {unchanged} as they were")


def received(verdicts: dict[str, int], images: int) -> None:
    """How many decisions came in, by verdict."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    _out().print(f"{counts or 'no new decisions'} [dim]on {images} images[/]")


def losses(found: Sequence[Loss], path: Path | None = None) -> None:
    """What could not be taken along: the first few, and where all are."""
    for loss in found[:_MOST_LOSSES]:
        _err().print(f"[yellow]![/] [bold]{_plain(loss.item)}[/]: {_plain(loss.what)}", soft_wrap=True)
    rest = len(found) - _MOST_LOSSES
    if rest > 0:
        hint(f"and {rest} more" + (f", all in {path}" if path else ""))


def checkpoints(items: Sequence[tuple[Checkpoint, bool, str]]) -> None:
    """Checkpoints with what is known of each, whether they are here, and their hash (`~`: known on first use)."""
    table = _table("name", "profile", "role", "size", "here", "SHA-256", "licence", "source", right=("size",))
    for item, here, sha256 in items:
        mark = "[green]yes[/]" if here else "[red]no[/]"
        size = f"{item.bytes / 1e6:,.1f} MB" if item.bytes else "?"
        digest = f"{sha256[:12]}{'' if item.is_pinned else '~'}"
        role = f"{item.role} (by name)" if item.optional else item.role
        facts = (item.profile, role, size, mark, digest, _plain(item.licence), _plain(item.source))
        table.add_row(_plain(item.name if item.profile else item.file_name), *facts)
    _out().print(table)


def samples(items: list[tuple[Sample, bool]]) -> None:
    """Samples with licence and whether they are here."""
    table = _table("name", "what", "here", "licence")
    for item, here in items:
        table.add_row(
            item.name, _plain(item.description), "[green]yes[/]" if here else "[red]no[/]", _plain(item.licence)
        )
    _out().print(table)


def _seconds(value: float) -> str:
    return f"{value / 60:.1f} min" if value >= 90 else f"{value:.1f} s"
