"""A project's queue or labels to a folder, and people's answers from a file into its decisions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import decisions, exchange, journal, review, schema
from pipeline.config import Project, ProjectConfig
from pipeline.errors import ConfigError, DataError, StoreError, suggest
from pipeline.exchange import answers, tasks
from pipeline.exchange.pictures import Pictures
from pipeline.images import Reader
from pipeline.journal import Decision, Journal
from pipeline.store import Store

WHAT = ("queue", "labels")
LOSSES = "losses.json"


@dataclass(frozen=True)
class Sent:
    """What an export came to."""

    images: int
    labels: int
    losses: list[tasks.Loss]


@dataclass(frozen=True)
class Received:
    """What an import came to. `decisions` are those that are new."""

    images: int
    decisions: list[Decision]
    losses: list[tasks.Loss]


def export(project: Project, name: str, what: str, folder: Path) -> Sent:
    """Write a project's review queue or labels, with their pictures, to `folder`.

    Doing it again changes nothing that has not changed, and removes nothing.

    Args:
        name: a format of `exchange.FORMATS`.
        what: queue (images in the review queue, with all their labels but the rejected ones), or labels
            (all images that have labels).

    Raises:
        ConfigError: unknown format or `what`. StoreError: no labels yet, or the folder cannot be written.
    """
    module = exchange.format_named(name)
    if folder.is_file():
        raise StoreError(f"{folder} is a file", "name a folder")
    store = Store(project.store_uri)
    chosen, labels = selection(store, project.config, what)
    pictures = Pictures(chosen, Reader(project.config.source.max_pixels))
    lost: list[tasks.Loss] = []
    counts: list[int] = []

    def illustrated() -> Iterator[tasks.Task]:
        for task in tasks.tasks(chosen, labels):
            lost.extend(pictures.write(task, folder / getattr(module, "PICTURES", "images")))
            counts.append(len(task.labels))
            yield task

    losses = [*module.write(illustrated(), project.ontology.names, folder), *lost]
    tasks.write_lines(folder / LOSSES, [json.dumps([asdict(x) for x in losses], indent=1, ensure_ascii=False)])
    return Sent(len(counts), sum(counts), losses)


def selection(store: Store, config: ProjectConfig, what: str) -> tuple[pa.Table, pa.Table]:
    """Rows of `images` that are to be sent, and their labels as they stand now, but the rejected ones."""
    if what not in WHAT:
        raise ConfigError(f"there is no {what!r} to export", suggest(what, WHAT))
    labels = decisions.current(store, config, _proposed(store) if what == "queue" else None)
    labels = labels.filter(pc.not_equal(labels.column("status"), "rejected"))
    wanted = labels
    if what == "queue":
        wanted = _unsettled(store, labels, store.read("review_queue"))
    images = store.read("images")
    here = tasks.pairs(wanted).unique()
    # An image may be in two batches and in the queue of one.
    return images.filter(pc.is_in(tasks.pairs(images), here)), labels.filter(pc.is_in(tasks.pairs(labels), here))


def _proposed(store: Store) -> pa.Table:
    """Boxes of the queue that are no labels yet, as rows of `labels`."""
    return review.proposals(store.read_or_empty("review_queue"), store.read_or_empty("labels"))


def _unsettled(store: Store, labels: pa.Table, queue: pa.Table) -> pa.Table:
    """The labels in the queue that nobody has decided on, or about which people disagree."""
    asked = labels.filter(pc.is_in(labels.column("annotation_id"), queue.column("annotation_id").unique()))
    said = pa.concat_tables([journal.read(store, b) for b in store.batches("labels")])
    fresh = decisions.undecided(asked, said).column("annotation_id").unique()
    tied = pc.equal(asked.column("status"), "needs_review")
    return asked.filter(pc.or_(tied, pc.is_in(asked.column("annotation_id"), fresh)))


def receive(project: Project, name: str, path: Path, reviewer: str, unchanged_is_yes: bool = False) -> Received:
    """Read people's answers from a file and write the decisions that are new.

    Args:
        name: a format of `exchange.FORMATS`.
        reviewer: who answered, where the file does not say.

    Raises:
        ConfigError, DataError: unknown format, or a file that cannot be read at all.
    """
    reading = exchange.format_named(name).read(path)
    return take(project, name, reading, reviewer, unchanged_is_yes)


def take(
    project: Project, source: str, reading: tasks.Reading, reviewer: str, unchanged_is_yes: bool = False
) -> Received:
    """Write the decisions that `reading` amounts to and that are not known yet."""
    store = Store(project.store_uri)
    batches = store.batches("images")
    if not batches:
        raise StoreError(f"{project.name!r} has no tables yet", f"run: cvp run {project.name}")
    images = answers.mentioned(store.read("images"), reading)
    labels = answers.mentioned(pa.concat_tables([store.read_or_empty("labels"), _proposed(store)]), reading)
    decided = pa.concat_tables([schema.table("decisions").empty(), *(journal.read(store, b) for b in batches)])
    known = answers.Project(images, labels, answers.mentioned(decided, reading), project.ontology)
    rules = answers.Rules(source, journal.checked_reviewer(reviewer), unchanged_is_yes)
    found, losses = answers.decide(reading, known, rules)
    named = [d for d in found if _is_named(d, losses)]
    book = Journal(store)
    try:
        new = book.append(sorted(named, key=lambda d: d.at))
    finally:
        book.close()
    return Received(len(reading.answers), new, losses)


def _is_named(decision: Decision, losses: list[tasks.Loss]) -> bool:
    try:
        journal.checked_reviewer(decision.reviewer)
    except DataError as error:
        losses.append(tasks.Loss(f"{decision.verdict} on {decision.annotation_id}", error.what))
        return False
    return True


def summary(made: Sequence[Decision]) -> dict[str, int]:
    """How many decisions of each verdict."""
    return {v: count for v in journal.VERDICTS if (count := sum(d.verdict == v for d in made))}
