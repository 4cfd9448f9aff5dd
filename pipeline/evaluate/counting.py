"""Counts of objects per image against people's, and precision and recall at the operating threshold."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.rows import ALL, Metrics, divided, weighted
from pipeline.evaluate.scene import Scene, Thresholds


def add_counting(
    metrics: Metrics,
    where: Mapping[str, str],
    scene: Scene,
    members: NDArray[np.int64],
    thresholds: Thresholds,
    weights: NDArray[np.int32],
) -> None:
    """Precision, recall, F1 and the errors of counts on the images `members`.

    A class without an operating threshold has no value, and 'all' sums over those that have one.
    Objects and detections in ignore regions are not counted. count_mape leaves out images that
    hold no object, for a relative error is undefined there.
    """
    right, wrong, objects = (table[:, members] for table in scene.counts(thresholds))
    usable = np.array([thresholds.get(name) is not None for name in scene.classes], bool)
    for kind, class_name in enumerate(scene.classes):
        part = usable & (np.arange(len(usable)) == kind)
        _add(metrics, {**where, "class_name": class_name}, right, wrong, objects, part, weights)
    _add(metrics, {**where, "class_name": ALL}, right, wrong, objects, usable, weights)


def _add(
    metrics: Metrics,
    where: Mapping[str, str],
    right: NDArray[np.int64],
    wrong: NDArray[np.int64],
    objects: NDArray[np.int64],
    kinds: NDArray[np.bool_],
    weights: NDArray[np.int32],
) -> None:
    if not kinds.any():
        return
    hits, alarms, people = (table[kinds].sum(axis=0) for table in (right, wrong, objects))
    support, images = int(people.sum()), len(people)
    found, said, there = weighted(weights, hits), weighted(weights, hits + alarms), weighted(weights, people)
    metrics.add(where, "precision", divided(found, said), support, images)
    metrics.add(where, "recall", divided(found, there), support, images)
    metrics.add(where, "f1", divided(2 * found, said + there), support, images)
    error = (hits + alarms - people).astype(np.float64)
    total = weights.sum(axis=1)
    metrics.add(where, "count_mae", divided(weighted(weights, np.abs(error)), total), support, images)
    metrics.add(where, "count_bias", divided(weighted(weights, error), total), support, images)
    holding = people > 0
    relative = divided(np.abs(error), people)
    relative[~holding] = 0
    off = divided(weighted(weights, relative), weighted(weights, holding))
    metrics.add(where, "count_mape", off, support, int(holding.sum()))
