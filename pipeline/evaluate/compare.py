"""Evaluation in the forms that later stages need: errors of each image, and paired bootstrap draws."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import ProjectConfig
from pipeline.evaluate.detection import draws
from pipeline.evaluate.rows import SPLITS, Resampling, divided, members_by_slice, producers_of
from pipeline.evaluate.run import answers, scenes
from pipeline.evaluate.scene import Scene

IMAGE_ERRORS = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("right", pa.int64(), nullable=False),
        pa.field("wrong", pa.int64(), nullable=False),
        pa.field("error", pa.float64(), nullable=False),
    ]
)
DRAWS = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("slice", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("draws", pa.list_(pa.float64()), nullable=False),
    ]
)


def image_errors(
    models: pa.Table,
    ground_truth: pa.Table,
    splits: pa.Table,
    evaluation: pa.Table,
    config: ProjectConfig,
    producers: Iterable[str] = (),
) -> pa.Table:
    """How wrong each model is on each held-out image.

    Returns:
        Rows of IMAGE_ERRORS. Detection: `right` true positives at the operating threshold in
        `evaluation`, `wrong` false positives and misses. Classification: one of the two is 1.
        `error` is wrong / (right + wrong), 0 for an image where there was nothing to find and
        nothing was found.
    """
    names = producers_of(models, producers)
    parts = [IMAGE_ERRORS.empty_table()]
    if config.task == "classification":
        for model, split, ids, said in answers(models, ground_truth, splits, config, names):
            right = said.right.astype(np.int64)
            parts.append(_errors(model, split, ids, right, 1 - right))
    else:
        for model, split, ids, scene in scenes(models, ground_truth, splits, config, names):
            hits, alarms, objects = scene.counts(schema.thresholds_of(evaluation, model))
            wrong = alarms + objects - hits
            parts.append(_errors(model, split, ids, hits.sum(axis=0), wrong.sum(axis=0)))
    return pa.concat_tables(parts)


def _errors(model: str, split: str, ids: list[str], right: np.ndarray, wrong: np.ndarray) -> pa.Table:
    error = np.nan_to_num(divided(wrong, right + wrong))
    columns = [[model] * len(ids), [split] * len(ids), ids, right, wrong, error]
    return pa.table(dict(zip(IMAGE_ERRORS.names, columns, strict=True)), schema=IMAGE_ERRORS)


def paired_draws(
    models: pa.Table,
    ground_truth: pa.Table,
    splits: pa.Table,
    slices_of_images: pa.Table,
    config: ProjectConfig,
    producers: Iterable[str] = (),
) -> pa.Table:
    """Bootstrap draws of AP50 (detection) or accuracy on test, by model and slice.

    Draw k of a slice holds the same images for every model, so differences of two models' draws
    are those of a paired bootstrap.

    Returns:
        Rows of DRAWS; a draw that holds no object is null.
    """
    plain = Resampling(config.evaluation.bootstrap, config.evaluation.level)
    found = paired_values(models, ground_truth, splits, slices_of_images, config, plain, ["AP50"], producers)
    return pa.Table.from_pylist([_draw_row(paired) for paired in found], schema=DRAWS)


@dataclass(frozen=True)
class Paired:
    """One model on one slice of test.

    Attributes:
        metric: one of COCO's numbers, count_mae, or accuracy. values: of all images, and then what the
            resampling's weights made of it, NaN where undefined. images: how many. right: (images,) whether it
            named the class; None of a detector.
    """

    model: str
    slice: str
    metric: str
    values: np.ndarray
    images: int
    right: np.ndarray | None


def paired_values(
    models: pa.Table,
    ground_truth: pa.Table,
    splits: pa.Table,
    slices_of_images: pa.Table,
    config: ProjectConfig,
    resampling: Resampling,
    metrics: Sequence[str],
    producers: Iterable[str] = (),
    evaluation: pa.Table | None = None,
) -> Iterator[Paired]:
    """Every model on every slice, draw k of a slice from the same images for all.

    Args:
        metrics: of COCO's numbers, those wanted of detectors. Classifiers have accuracy.
        evaluation: that table, for count_mae of detectors that have an operating threshold for every class.
    """
    names, task = producers_of(models, producers), config.task
    held = answers if task == "classification" else scenes
    for model, split, ids, said in held(models, ground_truth, splits, config, names, SPLITS[1:]):
        off = _miscounts(said, evaluation, model) if isinstance(said, Scene) and evaluation is not None else None
        for name, members in members_by_slice(slices_of_images, ids).items():
            right = None if isinstance(said, Scene) else said.right[members]
            parts: dict[str, list[np.ndarray]] = defaultdict(list)
            ranking = said.ranking.on(members) if isinstance(said, Scene) else None
            for weights in resampling.blocks(len(members), split, name):
                if ranking is not None:
                    for metric, values in draws(ranking, weights, metrics).items():
                        parts[metric].append(values)
                for metric, of_images in (("count_mae", None if off is None else off[members]), ("accuracy", right)):
                    if of_images is not None:
                        parts[metric].append(divided(weights @ of_images, weights.sum(axis=1)))
            for metric, several in parts.items():
                yield Paired(model, name, metric, np.concatenate(several), len(members), right)


def _miscounts(scene: Scene, evaluation: pa.Table, model: str) -> np.ndarray | None:
    """(images,) by how much the number of objects at the operating thresholds is off; None where a class has none."""
    thresholds = schema.thresholds_of(evaluation, model)
    if any(thresholds.get(name) is None for name in scene.classes):
        return None
    hits, alarms, objects = (table.sum(axis=0) for table in scene.counts(thresholds))
    return np.abs(hits + alarms - objects)


def _draw_row(paired: Paired) -> dict[str, object]:
    plain = [float(v) if np.isfinite(v) else None for v in paired.values]
    where = {"model": paired.model, "slice": paired.slice, "metric": paired.metric}
    return {**where, "value": plain[0], "draws": plain[1:]}
