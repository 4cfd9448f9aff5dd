"""The evaluation stage: all models, both held-out splits, all metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
    Metrics,
    Resampling,
    class_shares,
    members_by_slice,
    producers_of,
)
from pipeline.evaluate.scene import Objects, Scene


@dataclass
class _Results:
    metrics: Metrics
    confusion: list[dict[str, Any]]
    curves: list[dict[str, Any]]

    def tables(self) -> dict[str, pa.Table]:
        return {
            "evaluation": self.metrics.table(),
            "confusion": schema.table("confusion").from_rows(self.confusion),
            "curves": schema.table("curves").from_rows(self.curves),
        }


def evaluate(
    models: pa.Table,
    ground_truth: pa.Table,
    splits: pa.Table,
    slices_of_images: pa.Table,
    config: ProjectConfig,
    trust: pa.Table | None = None,
    producers: Iterable[str] = (),
    shares: pa.Table | None = None,
) -> dict[str, pa.Table]:
    """Measure every model on the labelled images of val and test.

    Args:
        models: annotations; `producer` is the model. See `gather` for how to join the tables.
        ground_truth, splits: those tables; gold images without any row count as empty.
        slices_of_images: rows of (slice, image_id).
        trust: that table; its thresholds stand in where val cannot choose one.
        producers: models to measure even if they said nothing at all.
        shares: of classifiers, as of `class_shares`: how probable they find other classes than the best.

    Returns:
        The tables `evaluation`, `confusion` and `curves`. For detection, precision, recall, F1 and
        the counts are taken at the operating threshold: the score with the best F1 on val (so
        those of val itself are optimistic), else the one in `trust`. It is itself a row, metric
        'threshold'.
    """
    results = _Results(Metrics(Resampling.of(config.evaluation)), [], [])
    names = producers_of(models, producers)
    if config.task == "classification":
        _classification(results, models, ground_truth, splits, slices_of_images, config, names, shares)
    else:
        _detection(results, models, ground_truth, splits, slices_of_images, config, names, trust)
    return results.tables()


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
    results: _Results,
    models: pa.Table,
    ground_truth: pa.Table,
    splits: pa.Table,
    slices: pa.Table,
    config: ProjectConfig,
    names: list[str],
    trust: pa.Table | None,
) -> None:
    chosen = {(m, c): t for m, c, t in _trusted(trust)}
    for model, split, ids, scene in scenes(models, ground_truth, splits, config, names):
        if split == "val":
            best = {(model, c): scene.best_threshold(k) for k, c in enumerate(scene.classes)}
            chosen |= {key: t for key, t in best.items() if t is not None}
        thresholds = {c: chosen.get((model, c)) for c in scene.classes}
        where = {"model": model, "split": split}
        members = members_by_slice(slices, ids)
        detection.add_detection(results.metrics, where, scene, members, thresholds)
        _add_thresholds(results.metrics, where, scene, thresholds)
        results.confusion += detection.confusion_rows(scene, thresholds, config.trust.iou, where)
        results.curves += detection.curve_rows(scene, where)


def _trusted(trust: pa.Table | None) -> Iterator[tuple[str, str, float]]:
    if trust is None:
        return
    for row in trust.select(["producer", "class_name", "slice", "threshold"]).to_pylist():
        if row["slice"] == ALL and row["threshold"] is not None:
            yield row["producer"], row["class_name"], row["threshold"]


def _add_thresholds(metrics: Metrics, where: dict[str, str], scene: Scene, thresholds: dict[str, float | None]) -> None:
    for kind, (name, threshold) in enumerate(thresholds.items()):
        value = np.array([np.nan if threshold is None else threshold])
        support = int(scene.objects(kind).sum())
        metrics.add({**where, "slice": ALL, "class_name": name}, "threshold", value, support, scene.images)


def _classification(
    results: _Results,
    models: pa.Table,
    ground_truth: pa.Table,
    splits: pa.Table,
    slices: pa.Table,
    config: ProjectConfig,
    names: list[str],
    shares: pa.Table | None,
) -> None:
    given = class_shares(models) if shares is None else shares
    for model, split, ids, said in answers(models, ground_truth, splits, config, names):
        where = {"model": model, "split": split}
        members = members_by_slice(slices, ids)
        mine = classification.share_table(given.filter(pc.equal(given["producer"], model)), ids, said.classes)
        classification.add_classification(results.metrics, where, said, mine, members)
        results.confusion += classification.confusion_rows(said, where)
        results.curves += classification.curve_rows(said, where, config.evaluation.level)
