"""Accuracy, calibration and confusion of models that name one class an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.evaluate.rows import (
    ALL,
    BACKGROUND,
    Metrics,
    divided,
    mean_of_defined,
    weighted,
)
from pipeline.intervals import wilson

BINS = 15
TOP = 5  # classes that are looked at in accuracy_top5; one less than there are in projects with fewer
_ROUNDING = 1e-6  # of the sum of shares that are stored as float32


@dataclass(frozen=True)
class Answers:
    """What one model said of the labelled images of one split.

    Attributes:
        actual, predicted: (n,) class numbers; `predicted` is -1 where the model said nothing,
            which counts as wrong. confidence: (n,) its score in [0, 1], 0 where it said nothing.
    """

    classes: list[str]
    actual: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]

    @property
    def right(self) -> NDArray[np.bool_]:
        return self.actual == self.predicted


def first_by_image(
    rows: pa.Table, image_ids: Sequence[str], classes: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Best-scored class of each image (ties: the class declared first), -1 for none, and its score."""
    image, kind = schema.codes(rows.column("image_id"), image_ids), schema.codes(rows.column("class_name"), classes)
    score = rows.column("score").to_numpy().astype(np.float64)
    known = np.flatnonzero((image >= 0) & (kind >= 0))
    known = known[np.lexsort((kind[known], -score[known], image[known]))]
    images, first = np.unique(image[known], return_index=True)
    best, confidence = np.full(len(image_ids), -1, np.int64), np.zeros(len(image_ids))
    best[images], confidence[images] = kind[known[first]], score[known[first]]
    return best, confidence


def read_answers(rows: pa.Table, actual: NDArray[np.int64], image_ids: Sequence[str], classes: list[str]) -> Answers:
    """One model's `rows` on images whose classes are `actual`."""
    predicted, confidence = first_by_image(rows, image_ids, classes)
    return Answers(classes, actual, predicted, confidence)


def share_table(rows: pa.Table, image_ids: Sequence[str], classes: Sequence[str]) -> NDArray[np.float64]:
    """(images, classes) shares of one model, NaN where it gave none; `rows` as of `class_shares`."""
    image, kind = schema.codes(rows.column("image_id"), image_ids), schema.codes(rows.column("class_name"), classes)
    known = (image >= 0) & (kind >= 0)
    table = np.full((len(image_ids), len(classes)), np.nan)
    np.fmax.at(table, (image[known], kind[known]), rows.column("share").to_numpy().astype(np.float64)[known])
    return table


def add_classification(
    metrics: Metrics,
    where: Mapping[str, str],
    answers: Answers,
    shares: NDArray[np.float64],
    members: NDArray[np.int64],
) -> None:
    """All metrics of one model on the images `members`, by class.

    Parts of a whole (accuracy, accuracy_top…, precision, recall) have Wilson intervals, which also hold near
    0 and 1; the others bootstrap intervals. `ece` (15 bins of equal width, Guo et al. 2017) and `brier` judge
    the confidence in the named class, so they are defined for models that only name the best. With the shares
    of more classes there are `accuracy_top5` and `brier_multiclass` (Brier 1950, 0 to 2).

    Args:
        where: model, split and slice.
        shares: (n, classes), NaN where the model gave none.
    """
    weights = metrics.resampling.weights(len(members), where["split"], where["slice"])
    part = Answers(answers.classes, answers.actual[members], answers.predicted[members], answers.confidence[members])
    recalls = [_add_class(metrics, where, part, kind, weights) for kind in range(len(part.classes))]
    _add_all(metrics, {**where, "class_name": ALL}, part, np.stack(recalls), weights)
    _add_shares(metrics, {**where, "class_name": ALL}, part, shares[members], weights)


def _add_all(
    metrics: Metrics,
    where: Mapping[str, str],
    answers: Answers,
    recalls: NDArray[np.float64],
    weights: NDArray[np.int32],
) -> None:
    right, confidence = answers.right.astype(np.float64), answers.confidence
    n, images = weights.sum(axis=1), len(right)
    accuracy = wilson(float(right.sum()), images, metrics.level)
    metrics.add(where, "accuracy", divided(weighted(weights, right), n), images, images, accuracy)
    metrics.add(where, "balanced_accuracy", mean_of_defined(recalls, 0), images, images)
    metrics.add(where, "ece", _calibration_error(confidence, right, weights), images, images)
    metrics.add(where, "brier", divided(weighted(weights, (confidence - right) ** 2), n), images, images)


def _add_shares(
    metrics: Metrics,
    where: Mapping[str, str],
    answers: Answers,
    shares: NDArray[np.float64],
    weights: NDArray[np.int32],
) -> None:
    """What needs more than the best class, where the model gave as much of every image that it spoke of."""
    images, classes = shares.shape
    said, known = answers.predicted >= 0, ~np.isnan(shares)
    share = np.where(known, shares, 0)
    whole = np.abs(share.sum(axis=1) - 1) < _ROUNDING  # so nothing is left for classes without a share
    most = min(TOP, classes - 1)
    if most > 1 and (whole | (known.sum(axis=1) >= most))[said].all():
        best = np.argsort(-np.where(known, shares, -1), axis=1, kind="stable")[:, :most]
        named = (best == answers.actual[:, None]) & np.take_along_axis(known, best, axis=1)
        among = named.any(axis=1).astype(np.float64)
        limits = wilson(float(among.sum()), images, metrics.level)
        values = divided(weighted(weights, among), weights.sum(axis=1))
        metrics.add(where, f"accuracy_top{most}", values, images, images, limits)
    if whole[said].all():
        apart = ((share - np.eye(classes)[answers.actual]) ** 2).sum(axis=1)
        metrics.add(where, "brier_multiclass", divided(weighted(weights, apart), weights.sum(axis=1)), images, images)


def _add_class(
    metrics: Metrics, where: Mapping[str, str], answers: Answers, kind: int, weights: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Precision, recall and F1 of one class; returns its (D,) recalls."""
    is_it, said_it = answers.actual == kind, answers.predicted == kind
    both = is_it & said_it
    support, images = int(is_it.sum()), len(is_it)
    found, there, said = weighted(weights, both), weighted(weights, is_it), weighted(weights, said_it)
    recall = divided(found, there)
    place = {**where, "class_name": answers.classes[kind]}
    hits, level = float(both.sum()), metrics.level
    metrics.add(place, "precision", divided(found, said), support, images, wilson(hits, int(said_it.sum()), level))
    metrics.add(place, "recall", recall, support, images, wilson(hits, support, level))
    metrics.add(place, "f1", divided(2 * found, there + said), support, images)
    return recall


def _bins(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n,) bin of each confidence, right-closed: ((b)/15, (b+1)/15]."""
    return np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(np.int64)


def _calibration_error(
    confidence: NDArray[np.float64], right: NDArray[np.float64], weights: NDArray[np.int32]
) -> NDArray[np.float64]:
    gaps = np.zeros((len(confidence), BINS))
    gaps[np.arange(len(confidence)), _bins(confidence)] = confidence - right
    return divided(np.abs(weighted(weights, gaps)).sum(axis=1), weights.sum(axis=1))


def confusion_rows(answers: Answers, where: Mapping[str, str]) -> list[dict[str, Any]]:
    """How often which class was taken for which; 'background' is predicted where the model said nothing."""
    none = len(answers.classes)
    cells = np.zeros((none, none + 1), np.int64)
    np.add.at(cells, (answers.actual, np.where(answers.predicted < 0, none, answers.predicted)), 1)
    names = [*answers.classes, BACKGROUND]
    return [
        {**where, "actual": names[a], "predicted": names[p], "count": int(cells[a, p])} for a, p in np.argwhere(cells)
    ]


def curve_rows(answers: Answers, where: Mapping[str, str], level: float) -> list[dict[str, Any]]:
    """Reliability: in each bin of confidence that occurs, its mean (x) and the share that is right (y)."""
    rows, bins = [], _bins(answers.confidence)
    place = {**where, "class_name": ALL, "curve": "reliability"}
    for b in np.unique(bins):
        inside = bins == b
        hits, n = float(answers.right[inside].sum()), int(inside.sum())
        low, high = wilson(hits, n, level)
        x = float(answers.confidence[inside].mean())
        rows.append({**place, "x": x, "y": hits / n, "low": low, "high": high})
    return rows
