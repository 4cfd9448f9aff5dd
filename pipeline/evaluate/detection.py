"""COCO metrics, confusion and precision-recall curves of detectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import tide
from pipeline.evaluate.coco import RECALLS, Ranking, curves, measure
from pipeline.evaluate.counting import add_counting
from pipeline.evaluate.resampled import resampled
from pipeline.evaluate.rows import ALL, BACKGROUND, Metrics, mean_of_defined
from pipeline.evaluate.scene import Scene, Thresholds
from pipeline.matching import match


def add_detection(
    metrics: Metrics,
    where: Mapping[str, str],
    scene: Scene,
    members: NDArray[np.int64],
    thresholds: Thresholds,
) -> None:
    """COCO's twelve numbers, the counting metrics and costs of errors of one model on the images `members`.

    Args:
        where: model, split and slice.
    """
    weights = metrics.resampling.weights(len(members), where["split"], where["slice"])
    part = scene.ranking if len(members) == scene.images else scene.ranking.on(members)
    add_coco(metrics, where, part, scene.classes, weights)
    add_counting(metrics, where, scene, members, thresholds, weights)
    _add_costs(metrics, {**where, "class_name": ALL}, scene, members)


def add_thresholds(metrics: Metrics, where: Mapping[str, str], scene: Scene, thresholds: Thresholds) -> None:
    """The operating threshold of each class."""
    for kind, class_name in enumerate(scene.classes):
        threshold = thresholds.get(class_name)
        value = np.array([np.nan if threshold is None else threshold])
        support = int(scene.objects(kind).sum())
        metrics.add({**where, "class_name": class_name}, "threshold", value, support, scene.images)


def add_coco(
    metrics: Metrics,
    where: Mapping[str, str],
    part: Ranking,
    classes: Sequence[str],
    weights: NDArray[np.int32],
    prefix: str = "",
) -> None:
    """COCO's twelve numbers of `part`, of each class and of all, with what `weights` make of them.

    Args:
        weights: (1 + D, images), the first row all ones. prefix: goes before the metrics' names.
    """
    support = [int(n) for n in part.totals(0)]
    drawn = resampled(part, weights[1:])
    for metric, (mean, by_class) in measure(part).items():
        for kind, class_name in enumerate(classes):
            values = np.append(by_class[kind], drawn[metric][kind])
            metrics.add({**where, "class_name": class_name}, prefix + metric, values, support[kind], part.images)
        values = np.append(mean, mean_of_defined(drawn[metric], 0))
        metrics.add({**where, "class_name": ALL}, prefix + metric, values, sum(support), part.images)


def _add_costs(metrics: Metrics, where: Mapping[str, str], scene: Scene, members: NDArray[np.int64]) -> None:
    """TIDE: by how much AP at the project's overlap would rise without each kind of error, and how many there are."""
    inside = np.zeros(scene.images, bool)
    inside[members] = True
    best, judged = scene.judged
    part = judged.of(inside[scene.seen.image[best]], inside[scene.truth.image])
    number = tide.counts(part)
    number["false_positives"] = int(((part.error != tide.RIGHT) & ~part.excused).sum())
    number["false_negatives"] = int((~part.found & ~part.truth_ignore).sum())
    for kind, cost in tide.costs(part).items():
        metrics.add(where, f"dAP_{kind}", np.array([cost]), number[kind], len(members))


def draws(part: Ranking, weights: NDArray[np.int32], metrics: Iterable[str]) -> dict[str, NDArray[np.float64]]:
    """(D,) of each of COCO's numbers over all classes under each row of `weights` (D, images)."""
    return {name: mean_of_defined(values, 0) for name, values in resampled(part, weights, metrics).items()}


def curve_rows(scene: Scene, where: Mapping[str, str]) -> list[dict[str, Any]]:
    """Precision at COCO's 101 recalls, IoU 0.5, for every class that occurs."""
    rows = []
    for class_name, curve in zip(scene.classes, curves(scene.ranking).precision[0].T, strict=True):
        if curve[0] > -1:
            place = {**where, "class_name": class_name, "curve": "precision_recall"}
            rows += [{**place, "x": float(x), "y": float(y)} for x, y in zip(RECALLS, curve, strict=True)]
    return rows


def confusion_rows(scene: Scene, thresholds: Thresholds, iou: float, where: Mapping[str, str]) -> list[dict[str, Any]]:
    """Which class was taken for which, at the operating thresholds.

    Detections are matched with objects of any class; what is left over on either side goes to
    'background'. Detections inside ignore regions are left out.
    """
    accepted = scene.above(thresholds)
    seen, truth = scene.seen, scene.truth
    image, kind = seen.image[accepted], seen.kind[accepted]
    found = match(
        image,
        seen.boxes[accepted],
        seen.score[accepted],
        truth.image,
        truth.boxes,
        truth.ignore,
        np.array([iou]),
    )
    none = len(scene.classes)
    hit = found.right[0]
    actual = np.full(len(kind), none)
    actual[hit] = truth.kind[found.found_by[0, hit]]
    counted = ~found.ignored[0]
    missed = ~found.found[0] & ~truth.ignore
    cells = np.zeros((none + 1, none + 1), np.int64)
    np.add.at(cells, (actual[counted], kind[counted]), 1)
    np.add.at(cells, (truth.kind[missed], np.full(missed.sum(), none)), 1)
    names = [*scene.classes, BACKGROUND]
    return [
        {**where, "actual": names[a], "predicted": names[p], "count": int(cells[a, p])} for a, p in np.argwhere(cells)
    ]
