"""Evaluation in the forms that later stages need: errors of each image, and paired bootstrap draws."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import ProjectConfig
from pipeline.evaluate.rows import SPLITS, Members, Resampling, divided, producers_of
from pipeline.evaluate.run import answers, scenes
from pipeline.evaluate.units import Boxes, Classes, Said, Spread, drawn

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
    spread: Spread | None = None,
) -> pa.Table:
    """Bootstrap draws of AP50 (detection) or accuracy on test, by model and slice.

    Draw k of a slice holds the same images for every model, so differences of two models' draws
    are those of a paired bootstrap.

    Args:
        spread: where draws are made, if not here one after the other.

    Returns:
        Rows of DRAWS; a draw that holds no object is null.
    """
    plain = Resampling(config.evaluation.bootstrap, config.evaluation.level)
    said = tested(models, ground_truth, splits, slices_of_images, config, producers)
    found = paired(drawn(said, plain, ["AP50"], spread))
    return pa.Table.from_pylist([_draw_row(one) for one in found], schema=DRAWS)


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


def tested(
    models: pa.Table,
    ground_truth: pa.Table,
    splits: pa.Table,
    slices_of_images: pa.Table,
    config: ProjectConfig,
    producers: Iterable[str] = (),
    evaluation: pa.Table | None = None,
) -> list[Said]:
    """What every model said of test.

    Args:
        evaluation: that table, for count_mae of detectors that have an operating threshold for every class.
    """
    names, members, test = producers_of(models, producers), Members(slices_of_images), SPLITS[1:]
    where = (models, ground_truth, splits, config, names, test)
    if config.task == "classification":
        return [
            Classes(model, split, members.of(split, ids), said, np.zeros((len(ids), 0)))
            for model, split, ids, said in answers(*where)
        ]
    return [
        Boxes.of(
            model,
            split,
            members.of(split, ids),
            scene,
            {} if evaluation is None else schema.thresholds_of(evaluation, model),
        )
        for model, split, ids, scene in scenes(*where)
    ]


def paired(rows: pa.Table) -> Iterator[Paired]:
    """Rows of `units.PAIRED`."""
    named = rows.drop_columns(["values", "right"]).to_pylist()
    for row, values, right in zip(named, rows["values"], rows["right"], strict=True):
        is_right = right.values.to_numpy(zero_copy_only=False) if right.is_valid else None
        yield Paired(**row, values=values.values.to_numpy(zero_copy_only=False), right=is_right)


def _draw_row(paired: Paired) -> dict[str, object]:
    plain = [float(v) if np.isfinite(v) else None for v in paired.values]
    where = {"model": paired.model, "slice": paired.slice, "metric": paired.metric}
    return {**where, "value": plain[0], "draws": plain[1:]}
