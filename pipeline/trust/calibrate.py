"""The tables of calibration and reliability: what each labeller's scores are worth on gold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import calibration, schema
from pipeline.ids import fingerprint
from pipeline.trust.gold import ALL, Gold
from pipeline.trust.judge import Answers, Kind, judge

# A class with fewer answers, right or wrong ones, is left to the map of all classes.
LEAST_ANSWERS, LEAST_OF_A_KIND = 60, 8
_LEVEL = 0.9
SPLIT = "gold"


def calibrate(
    candidates: pa.Table, ground_truth: pa.Table, gold: Gold, iou: float, classes: Sequence[str], kind: Kind
) -> dict[str, pa.Table]:
    """The tables `calibration` and `reliability`.

    Folds are whole locations (images, where no location is known). The maps themselves are fitted on all
    of gold. Arguments are those of `grade`; gold's design images and slices are of no account.

    Returns:
        For every producer with answers a map for all classes together, and one for each class that has
        answers enough; and its reliability before (curve 'reliability') and after (curve 'calibrated').
    """
    images = sorted(set(gold.images))
    found = schema.where_in(schema.best_classes(candidates), "image_id", images)
    truth = schema.where_in(ground_truth, "image_id", images)
    fold = np.array([_fold(gold.locations.get(i, i)) for i in images], np.int64)
    maps: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for producer in sorted(found.column("producer").unique().to_pylist()):
        mine = found.filter(pc.equal(found.column("producer"), producer))
        by_class = dict(judge(kind, mine, truth, images, classes, iou, gold.sizes))
        for name, score, right, image in _groups(by_class):
            row, points = _calibrated(score, right, fold[image])
            where = {"producer": producer, "class_name": name}
            maps.append(where | row)
            place = {"model": producer, "split": SPLIT, "class_name": name}
            curves += [place | {"curve": c, "x": x, "y": y, "low": lo, "high": hi} for c, x, y, lo, hi in points]
    return {
        "calibration": schema.table("calibration").from_rows(maps),
        "reliability": schema.table("reliability").from_rows(curves),
    }


def _fold(location: str) -> int:
    return int(fingerprint("fold", location), 16) % calibration.FOLDS


def _groups(
    by_class: dict[str, Answers],
) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]]:
    """All classes together, then each that has answers enough; nothing where there are no answers at all."""
    parts = [a for a in by_class.values() if len(a.score)]
    if not parts:
        return
    score, right, image = (np.concatenate([getattr(a, n) for a in parts]) for n in ("score", "right", "image"))
    yield ALL, score, right, image
    if len(by_class) < 2:
        return
    for name, answers in by_class.items():
        good, total = int(answers.right.sum()), len(answers.right)
        if total >= LEAST_ANSWERS and min(good, total - good) >= LEAST_OF_A_KIND:
            yield name, answers.score, answers.right, answers.image


def _calibrated(
    score: NDArray[np.float64], right: NDArray[np.bool_], fold: NDArray[np.int64]
) -> tuple[dict[str, Any], list[tuple[str, float, float, float, float]]]:
    """One row of `calibration`, and (curve, x, y, low, high) of `reliability`."""
    # With too little to learn from, a map would only repeat the accidents of gold.
    enough = len(score) >= LEAST_ANSWERS and len(np.unique(fold)) > 1
    methods = calibration.METHODS if enough else calibration.METHODS[:1]
    said = {m: calibration.out_of_fold(m, score, right, fold) for m in methods}
    best = min(methods, key=lambda m: (calibration.brier(said[m], right), methods.index(m)))
    learnt = calibration.fit(best, score, right)
    row = {
        "method": best,
        "answers": len(score),
        "right": int(right.sum()),
        "brier_raw": calibration.brier(score, right),
        "brier": calibration.brier(said[best], right),
        "error_raw": calibration.expected_error(score, right),
        "error": calibration.expected_error(said[best], right),
        "x": learnt.x.tolist(),
        "y": learnt.y.tolist(),
    }
    points = [("reliability", *p) for p in calibration.reliability(score, right, _LEVEL)]
    if best != "raw":
        points += [("calibrated", *p) for p in calibration.reliability(said[best], right, _LEVEL)]
    return row, points
