"""How well a segmenter's masks, drawn from people's boxes, agree with people's masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import masks as rle
from pipeline import schema
from pipeline.config import ProjectConfig
from pipeline.evaluate.rows import (
    ALL,
    SPLITS,
    Metrics,
    Resampling,
    divided,
    members_by_slice,
    weighted,
)


@dataclass(frozen=True)
class _Agreement:
    """Of n masks: (n,) number of its image, (n,) number of its class, (n,) IoU with people's."""

    image: NDArray[np.int64]
    kind: NDArray[np.int64]
    iou: NDArray[np.float64]


def mask_agreement(
    masks: pa.Table,
    ground_truth: pa.Table,
    images: pa.Table,
    splits: pa.Table,
    slices_of_images: pa.Table,
    config: ProjectConfig,
) -> pa.Table:
    """Rows of `evaluation`, one model a segmenter: mean `mask_iou` by split, slice and class.

    Args:
        masks: those drawn from boxes of `ground_truth` count, by annotation_id; others are passed over.
        ground_truth: objects with a mask of their own; crowds and ignore regions are left out.
        images: for the masks' sizes.

    Intervals are over resampled images.
    """
    metrics = Metrics(Resampling.of(config.evaluation))
    classes = config.ontology.names
    truth = ground_truth.filter(pc.invert(pc.or_(ground_truth["ignore"], ground_truth["is_crowd"])))
    truth = truth.filter(pc.is_valid(truth["mask"]))
    for model in sorted(masks["producer"].unique().to_pylist()):
        drawn = masks.filter(pc.equal(masks["producer"], model))
        for split in SPLITS:
            ids = schema.held_out(splits, split)
            found = _agreement(drawn, schema.where_in(truth, "image_id", ids), images, ids, classes)
            for name, members in members_by_slice(slices_of_images, ids).items():
                weights = metrics.resampling.weights(len(members), split, name)
                for class_name, total, count in _sums(found, members, classes, len(ids)):
                    where = {"model": model, "split": split, "slice": name, "class_name": class_name}
                    values = divided(weighted(weights, total), weighted(weights, count))
                    metrics.add(where, "mask_iou", values, int(count.sum()), int((count > 0).sum()))
    return metrics.table()


def _agreement(drawn: pa.Table, truth: pa.Table, images: pa.Table, ids: list[str], classes: list[str]) -> _Agreement:
    place = pc.index_in(truth["annotation_id"], drawn["annotation_id"].combine_chunks())
    known = pc.is_valid(place)
    truth, drawn = truth.filter(known), drawn.take(place.filter(known))
    at = images.take(pc.index_in(truth["image_id"], images["image_id"].combine_chunks()))
    columns = drawn["mask"], truth["mask"], at["height"], at["width"]
    pairs = zip(*(c.to_pylist() for c in columns), strict=True)
    iou = [rle.iou([ours], [theirs], height, width)[0, 0] for ours, theirs, height, width in pairs]
    return _Agreement(
        schema.codes(truth["image_id"], ids), schema.codes(truth["class_name"], classes), np.array(iou, np.float64)
    )


def _sums(
    found: _Agreement, members: NDArray[np.int64], classes: list[str], images: int
) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """(class or 'all', sum of IoU, number of masks) for each image of a slice; classes without masks are left out."""
    for number, name in [(None, ALL), *enumerate(classes)]:
        mine = np.ones(len(found.kind), bool) if number is None else found.kind == number
        total = np.bincount(found.image[mine], found.iou[mine], images)[members].astype(np.float64)
        count = np.bincount(found.image[mine], minlength=images)[members].astype(np.float64)
        if count.any():
            yield name, total, count
