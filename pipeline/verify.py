"""Questions to a vision-language model: about labels and counts, and what came of them as rows.

Without `verification` in project.yaml nothing is asked and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import ProjectConfig
from pipeline.ids import fingerprint
from pipeline.models.vlm import (
    STANDARD,
    Asked,
    Question,
    Tokens,
    Verifier,
    View,
    count_text,
    describe_text,
    label_text,
    producer,
)
from pipeline.models.vlm.questions import Box

Progress = Callable[[int, int], None]
SHEET = 9  # images of a slice that are shown side by side
DECIDED = "people decided before it was asked"


@dataclass(frozen=True)
class Outcome:
    """Rows of `verifications` or `examinations`, and what they took.

    Attributes:
        stopped: why not everything was asked; '' if it was.
        ever: tokens that this asset and batch have cost so far, this time and before. fresh: requests sent now.
    """

    rows: pa.Table
    stopped: str
    ever: Tokens
    fresh: int


@dataclass(frozen=True)
class Item:
    """A question and the row that its answer goes into."""

    question: Question
    row: dict[str, Any]


def about_labels(labels: pa.Table, config: ProjectConfig, prompt: str | None = None) -> list[Item]:
    """Is each of these labels right?

    Args:
        labels: annotation rows. prompt: name of the wording; None: the one in use.
    """
    settings = config.verification
    name = prompt or settings.prompt
    wording = None if name == STANDARD else settings.prompts[name]
    who = producer(settings, name)
    words, classes = _words(config), config.ontology.names
    boxes = schema.box_array(labels)
    items = []
    for row, corners in zip(labels.select(_OF_LABEL).to_pylist(), boxes, strict=True):
        boxed = not np.isnan(corners[0])
        box: Box | None = tuple(float(c) for c in corners) if boxed else None  # type: ignore[assignment]
        view = View((row["image_id"],), box, settings.image_edge, settings.context if boxed else 0.0)
        text = label_text(wording, row["class_name"], words[row["class_name"]], classes, boxed)
        identity = fingerprint(who, "label", row["annotation_id"], row["batch"])
        extra = {"question_id": identity, "question": "label", "prompt": name, "verifier": who}
        items.append(Item(Question("label", text, view), row | extra))
    return items


def about_counts(counts: Iterable[dict[str, Any]], config: ProjectConfig) -> list[Item]:
    """How many of a class are on each of these images?

    Args:
        counts: dictionaries with image_id, batch, class_name, boxes and detected.
    """
    settings = config.verification
    who, words = producer(settings), _words(config)
    items = []
    for row in counts:
        text = count_text(row["class_name"], words[row["class_name"]])
        identity = fingerprint(who, "count", row["image_id"], row["batch"], row["class_name"])
        extra = {"question_id": identity, "question": "count", "prompt": STANDARD, "verifier": who}
        items.append(Item(Question("count", text, View((row["image_id"],), None, settings.image_edge)), row | extra))
    return items


def ask(
    items: Sequence[Item],
    images: pa.Table,
    verifier: Verifier,
    decided: Collection[str] = (),
    progress: Progress | None = None,
) -> Outcome:
    """Ask, in order. What was asked to the end has a row; what the budget had no room for has none.

    Args:
        images: rows of `images` that hold all that is asked about.
        decided: ids of labels that people have decided on, about which nothing is paid: their rows say so.

    Raises:
        EndpointError, StoreError: as `Verifier.ask` does.
    """
    known = set(decided)
    open_ = [item for item in items if item.row.get("annotation_id") not in known]
    asked = verifier.ask([item.question for item in open_], images, progress)
    rows = [_blank(item.row) for item in items if item.row.get("annotation_id") in known]
    rows += list(_answered(open_, asked))
    return Outcome(schema.table("verifications").from_rows(rows), asked.stopped, asked.ever, asked.fresh)


def describe(slices: pa.Table, images: pa.Table, config: ProjectConfig, verifier: Verifier) -> tuple[pa.Table, Asked]:
    """Rows of `descriptions`: what is to be seen on images of each slice, in the model's words.

    Args:
        slices: rows of `slices`; each slice of a model is described once.
    """
    first = {(row["slice"], row["model"]): row["members"] for row in slices.to_pylist()}
    named = [(of, _drawn(of[0], members)) for of, members in sorted(first.items()) if members]
    edge = config.verification.image_edge
    questions = [Question("describe", describe_text(), View(shown, None, edge)) for _, shown in named]
    asked = verifier.ask(questions, images)
    rows = []
    for i, ((name, model), shown) in enumerate(named):
        said = asked.verdict(i, questions[i])
        if said is not None and said.answer is not None:
            row = {"slice": name, "model": model, "verifier": producer(config.verification)}
            rows.append(row | {"description": said.answer, "tags": said.words, "images": len(shown)})
    return schema.table("descriptions").from_rows(rows), asked


_OF_LABEL = ["annotation_id", "image_id", "batch", "class_name", "producer", "score"]


def _words(config: ProjectConfig) -> dict[str, Sequence[str]]:
    return {item.name: item.prompts for item in config.ontology}


def _drawn(name: str, members: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(members, key=lambda image: fingerprint(name, image))[:SHEET])


def _blank(row: dict[str, Any]) -> dict[str, Any]:
    zeros = dict.fromkeys(("attempts", "answered", "tokens_sent", "tokens_written"), 0)
    return row | zeros | {"answer": None, "agreement": 0.0, "words": DECIDED}


def _answered(items: Sequence[Item], asked: Asked) -> Iterator[dict[str, Any]]:
    for i, item in enumerate(items):
        said = asked.verdict(i, item.question)
        if said is None:
            continue
        replies = asked.replies[i]
        yield item.row | {
            "answer": said.answer,
            "agreement": said.agreement,
            "attempts": len(replies),
            "answered": sum(reply.state == "answered" for reply in replies),
            "words": said.words,
            "tokens_sent": sum(reply.sent for reply in replies),
            "tokens_written": sum(reply.written for reply in replies),
        }


def counted(labels: pa.Table, likely: Sequence[bool], truth: pa.Table | None = None) -> list[dict[str, Any]]:
    """Of each image and class with labels, or with people's boxes: how many there are, and how many were found.

    Args:
        labels: annotation rows, and whether each is likely right: those are what the labellers found.
        truth: people's boxes; None: the likely labels are the count.
    """
    kept = labels.filter(pa.array(list(likely), pa.bool_()))
    found = _tally(kept)
    people = found if truth is None else _tally(truth.filter(pc.invert(pc.or_(truth["ignore"], truth["is_crowd"]))))
    keys = sorted({*found, *people})
    names = ("image_id", "batch", "class_name")
    return [
        dict(zip(names, key, strict=True)) | {"boxes": people.get(key, 0), "detected": found.get(key, 0)}
        for key in keys
    ]


def _tally(rows: pa.Table) -> dict[tuple[str, str, str], int]:
    names = ["image_id", "batch", "class_name"]
    groups = rows.select(names).group_by(names, use_threads=False).aggregate([([], "count_all")])
    return {tuple(row[n] for n in names): row["count_all"] for row in groups.to_pylist()}  # type: ignore[misc]
