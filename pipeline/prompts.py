"""What each prompt brings in, and how often it finds what is not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import Project
from pipeline.intervals import wilson
from pipeline.models import proposals
from pipeline.models.dino_questions import Questions
from pipeline.models.profiles import labeller_producer, labeller_questions


@dataclass(frozen=True)
class _Said:
    """Boxes of one class and prompt of one labeller, in some images.

    Attributes:
        prompt: "" for all that stands of the class.
        image: (n,) which image. score: (n,). counts: (n,) whether a box is at or above the thresholds.
        threshold: lowest score that counts; None where the labeller's own boxes are taken as they are.
    """

    producer: str
    class_name: str
    prompt: str
    negative: bool
    image: NDArray[np.int64]
    score: NDArray[np.floating]
    counts: NDArray[np.bool_]
    threshold: float | None


def yields(
    batch: str, images: pa.Table, detections: pa.Table, answers: pa.Table, unanswered: pa.Table, project: Project
) -> pa.Table:
    """Rows of `yields` for one batch: its rows of `images`, `detections`, `proposals` and `unanswered`."""
    ids = images["image_id"].to_pylist()
    missed = dict.fromkeys(unanswered["producer"].unique().to_pylist(), 0)
    for name in unanswered["producer"].to_pylist():
        missed[name] += 1
    rows = []
    for said in _said(ids, detections, answers, project):
        best = int(said.score.argmax()) if len(said.score) else None
        found = int(said.counts.sum())
        rows.append(
            {
                "batch": batch,
                **_names(said),
                "negative": said.negative,
                "images": len(ids) - missed.get(said.producer, 0),
                "images_with": len(np.unique(said.image[said.counts])),
                "boxes": found,
                "best": None if best is None else float(said.score[best]),
                "best_image": None if best is None else ids[said.image[best]],
                "note": "" if found else _silence(said, best),
            }
        )
    return schema.table("yields").from_rows(rows)


def _silence(said: _Said, best: int | None) -> str:
    if best is None:
        return "nothing found"
    seen = f"the best score seen is {said.score[best]:.3f}"
    return seen if said.threshold is None else f"nothing at {said.threshold:g} or above: {seen}"


def errors(gold: Sequence[str], truth: pa.Table, detections: pa.Table, answers: pa.Table, project: Project) -> pa.Table:
    """Rows of `prompt_errors`: how often a class and its prompts are found in gold images without the class.

    Such a rate needs no boxes of people, only that they looked for the class; it says what a grade on
    precision may hide, since a class that is rare in gold is seldom missed there and often imagined.

    Args:
        gold: ids of completely labelled images. truth: their rows of `ground_truth`.
        detections, answers: rows of `detections` and `proposals` of these images; others are left out.
    """
    present = {name: set[str]() for name in project.ontology.names}
    for name, image in zip(truth["class_name"].to_pylist(), truth["image_id"].to_pylist(), strict=True):
        present.setdefault(name, set()).add(image)
    ids, level = list(gold), project.config.evaluation.level
    rows = []
    for said in _said(ids, detections, answers, project):
        if said.negative:
            continue
        lacks = np.array([image not in present[said.class_name] for image in ids], bool)
        false = said.counts & lacks[said.image]
        images, wrong = int(lacks.sum()), len(np.unique(said.image[false]))
        low, high = wilson(wrong, images, level)
        rows.append(
            {
                **_names(said),
                "images": images,
                "false_images": wrong,
                "rate": wrong / images if images else None,
                "low": low,
                "high": high,
                "level": level,
                "boxes_per_image": float(false.sum()) / images if images else None,
                "worst": float(said.score[false].max()) if false.any() else None,
                "threshold": said.threshold,
            }
        )
    return schema.table("prompt_errors").from_rows(rows)


def _names(said: _Said) -> dict[str, Any]:
    return {"producer": said.producer, "class_name": said.class_name, "prompt": said.prompt}


def _said(ids: Sequence[str], detections: pa.Table, answers: pa.Table, project: Project) -> list[_Said]:
    """Every labeller's every class, and where it answers prompts one by one, its every prompt."""
    image = pc.index_in(detections["image_id"], pa.array(ids, pa.string())).fill_null(-1).to_numpy()
    names = np.array(detections["class_name"].to_pylist(), object)
    owners = np.array(detections["producer"].to_pylist(), object)
    score = detections["score"].to_numpy()
    found = []
    for labeller in project.config.labelling.labellers:
        producer = labeller_producer(labeller, project.folder, project.config)
        asked = labeller_questions(labeller, project.config)
        by_prompt = _by_prompt(ids, answers, asked) if asked else []
        for name in project.ontology.names:
            mine = np.flatnonzero((owners == producer) & (names == name) & (image >= 0))
            counts = np.ones(len(mine), bool)
            whole = _Said(producer, name, "", False, image[mine], score[mine], counts, None)
            parts = [said for said in by_prompt if said.class_name == name]
            found += [_with_best(whole, parts), *parts]
    return found


def _with_best(whole: _Said, parts: Sequence[_Said]) -> _Said:
    """A class of which nothing stands, with the best of its prompts' boxes, which do not count."""
    seen = [said for said in parts if not said.negative and len(said.score)]
    if len(whole.score) or not seen:
        return whole
    best = max(seen, key=lambda said: float(said.score.max()))
    at = int(best.score.argmax())
    return _Said(
        *(whole.producer, whole.class_name, "", False),
        *(best.image[at : at + 1], best.score[at : at + 1], np.zeros(1, bool), best.threshold),
    )


def _by_prompt(ids: Sequence[str], answers: pa.Table, asked: Questions) -> list[_Said]:
    given = proposals.read_back(answers, ids, asked)
    found: dict[tuple[str, str], _Said] = {}
    for rule, prompt in zip(asked.rules, asked.at.tolist(), strict=True):
        mine = np.flatnonzero(given.prompt == prompt)
        enough = (given.scores[mine] >= rule.box_threshold) & (given.text[mine] >= rule.text_threshold)
        said = _Said(
            *(asked.producer, rule.class_name, rule.prompt, rule.negative),
            *(given.image[mine], given.scores[mine], enough, rule.box_threshold),
        )
        found.setdefault((rule.class_name, rule.prompt), said)
    return list(found.values())
