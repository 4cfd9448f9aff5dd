"""The evaluation stage: all models, both held-out splits, all metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import ProjectConfig
from pipeline.evaluate import classification, detection
from pipeline.evaluate.rows import (
    ALL,
    SPLITS,
    Members,
    Resampling,
    class_shares,
    producers_of,
)
from pipeline.evaluate.scene import Objects, Scene
from pipeline.evaluate.units import Boxes, Classes, Said, Spread, measured


def evaluate(
    models: pa.Table,
    ground_truth: pa.Table,
    splits: pa.Table,
    slices_of_images: pa.Table,
    config: ProjectConfig,
    trust: pa.Table | None = None,
    producers: Iterable[str] = (),
    shares: pa.Table | None = None,
    spread: Spread | None = None,
) -> dict[str, pa.Table]:
    """Measure every model on the labelled images of val and test.

    Args:
        models: annotations; `producer` is the model. See `gather` for how to join the tables.
        ground_truth, splits: those tables; gold images without any row count as empty.
        slices_of_images: rows of (slice, image_id).
        trust: that table; its thresholds stand in where val cannot choose one.
        producers: models to measure even if they said nothing at all.
        shares: of classifiers, as of `class_shares`: how probable they find other classes than the best.
        spread: where models and slices are measured, if not here one after the other.

    Returns:
        The tables `evaluation`, `confusion` and `curves`. For detection, precision, recall, F1 and
        the counts are taken at the operating threshold: the score with the best F1 on val (so
        those of val itself are optimistic), else the one in `trust`. It is itself a row, metric
        'threshold'.
    """
    names = producers_of(models, producers)
    if config.task == "classification":
        found = _classification(models, ground_truth, splits, slices_of_images, config, names, shares)
    else:
        found = _detection(models, ground_truth, splits, slices_of_images, config, names, trust)
    return {
        "evaluation": measured(found.said, Resampling.of(config.evaluation), spread),
        "confusion": schema.table("confusion").from_rows(found.confusion),
        "curves": schema.table("curves").from_rows(found.curves),
    }


@dataclass(frozen=True)
class _Found:
    """What is still to be measured, slice by slice, and rows of `confusion` and `curves`."""

    said: list[Said] = field(default_factory=list)
    confusion: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)


def scenes(
    models: pa.Table,
    ground_truth: pa.Table,
    splits: pa.Table,
    config: ProjectConfig,
    names: list[str],
    which: Iterable[str] = SPLITS,
) -> Iterator[tuple[str, str, list[str], Scene]]:
    """(model, split, image ids, matched scene), model after model; splits without images are left out."""
    classes = config.ontology.names
    images = {split: schema.held_out(splits, split) for split in which}
    truths = {split: Objects.read(ground_truth, ids, classes, by_mask=True) for split, ids in images.items()}
    for model in names:
        rows = models.filter(pc.equal(models.column("producer"), model))
        for split, ids in images.items():
            if ids:
                seen = Objects.read(rows, ids, classes)
                yield model, split, ids, Scene.of(seen, truths[split], len(ids), classes, config.trust.iou)


def answers(
    models: pa.Table,
    ground_truth: pa.Table,
    splits: pa.Table,
    config: ProjectConfig,
    names: list[str],
    which: Iterable[str] = SPLITS,
) -> Iterator[tuple[str, str, list[str], classification.Answers]]:
    """(model, split, ids of images that have a class, answers), model after model."""
    classes = config.ontology.names
    labelled: dict[str, tuple[list[str], NDArray[np.int64]]] = {}
    for split in which:
        ids = schema.held_out(splits, split)
        actual, _ = classification.first_by_image(ground_truth, ids, classes)
        labelled[split] = [ids[i] for i in np.flatnonzero(actual >= 0)], actual[actual >= 0]
    for model in names:
        rows = models.filter(pc.equal(models.column("producer"), model))
        for split, (ids, actual) in labelled.items():
            if ids:
                yield model, split, ids, classification.read_answers(rows, actual, ids, classes)


def _detection(
    models: pa.Table,
    ground_truth: pa.Table,
    splits: pa.Table,
    slices: pa.Table,
    config: ProjectConfig,
    names: list[str],
    trust: pa.Table | None,
) -> _Found:
    found, members = _Found(), Members(slices)
    chosen = {(m, c): t for m, c, t in _trusted(trust)}
    for model, split, ids, scene in scenes(models, ground_truth, splits, config, names):
        if split == "val":
            best = {(model, c): scene.best_threshold(k) for k, c in enumerate(scene.classes)}
            chosen |= {key: t for key, t in best.items() if t is not None}
        thresholds = {c: chosen.get((model, c)) for c in scene.classes}
        where = {"model": model, "split": split}
        found.said.append(Boxes.of(model, split, members.of(split, ids), scene, thresholds))
        found.confusion.extend(detection.confusion_rows(scene, thresholds, config.trust.iou, where))
        found.curves.extend(detection.curve_rows(scene, where))
    return found


def _trusted(trust: pa.Table | None) -> Iterator[tuple[str, str, float]]:
    if trust is None:
        return
    for row in trust.select(["producer", "class_name", "slice", "threshold"]).to_pylist():
        if row["slice"] == ALL and row["threshold"] is not None:
            yield row["producer"], row["class_name"], row["threshold"]


def _classification(
    models: pa.Table,
    ground_truth: pa.Table,
    splits: pa.Table,
    slices: pa.Table,
    config: ProjectConfig,
    names: list[str],
    shares: pa.Table | None,
) -> _Found:
    found, members = _Found(), Members(slices)
    given = class_shares(models) if shares is None else shares
    for model, split, ids, said in answers(models, ground_truth, splits, config, names):
        where = {"model": model, "split": split}
        mine = classification.share_table(given.filter(pc.equal(given["producer"], model)), ids, said.classes)
        found.said.append(Classes(model, split, members.of(split, ids), said, mine))
        found.confusion.extend(classification.confusion_rows(said, where))
        found.curves.extend(classification.curve_rows(said, where, config.evaluation.level))
    return found
