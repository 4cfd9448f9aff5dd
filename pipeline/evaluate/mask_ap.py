"""COCO's twelve numbers of masks: as of boxes, but with the overlap and the area of masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import masks as rle
from pipeline import schema
from pipeline.config import ProjectConfig
from pipeline.evaluate.coco import IOUS, Ranking
from pipeline.evaluate.rows import SPLITS, Members, Resampling, producers_of
from pipeline.evaluate.scene import Objects, Pairs, rank
from pipeline.evaluate.units import Outlines, Said, Spread, measured
from pipeline.matching import ranks

Ints = NDArray[np.int64]
PREFIX = "mask_"


def mask_precision(
    models: pa.Table,
    masks: pa.Table,
    ground_truth: pa.Table,
    images: pa.Table,
    splits: pa.Table,
    slices_of_images: pa.Table,
    config: ProjectConfig,
    spread: Spread | None = None,
) -> pa.Table:
    """Rows of `evaluation`: mask_AP, mask_AP50, …, mask_AR_large of every model whose boxes have masks.

    Args:
        models: annotations; those that `masks` has a mask for, by annotation_id, count.
        ground_truth: images on which people drew masks count; objects without one there are ignore regions
            of which nobody knows the shape, so they neither count nor excuse anything.
        images: for the masks' sizes.
        spread: where models and slices are measured, if not here one after the other.
    """
    said = outlines(models, masks, ground_truth, images, splits, slices_of_images, config.ontology.names)
    return measured(said, Resampling.of(config.evaluation), spread)


def outlines(
    models: pa.Table,
    masks: pa.Table,
    ground_truth: pa.Table,
    images: pa.Table,
    splits: pa.Table,
    slices_of_images: pa.Table,
    classes: list[str],
    which: Iterable[str] = SPLITS,
) -> list[Said]:
    """The masks of every model that has some; slices are of the images on which people drew masks."""
    members = Members(slices_of_images)
    return [
        Outlines(model, split, members.of(split, ids), ranking, classes, PREFIX)
        for model, split, ids, ranking in mask_rankings(models, masks, ground_truth, images, splits, classes, which)
    ]


def mask_rankings(
    models: pa.Table,
    masks: pa.Table,
    ground_truth: pa.Table,
    images: pa.Table,
    splits: pa.Table,
    classes: list[str],
    which: Iterable[str] = SPLITS,
) -> Iterator[tuple[str, str, list[str], Ranking]]:
    """(model, split, ids of images with people's masks, ranking) of every model whose boxes have masks."""
    said = schema.with_masks(models, masks)
    drawn = ground_truth.filter(pc.is_valid(ground_truth["mask"]))
    with_masks = set(drawn["image_id"].unique().to_pylist())
    for model in producers_of(said):
        mine = said.filter(pc.equal(said["producer"], model))
        for split in which:
            ids = [i for i in schema.held_out(splits, split) if i in with_masks]
            if ids:
                yield model, split, ids, ranking(mine, drawn, images, ids, classes)


def ranking(seen: pa.Table, truth: pa.Table, images: pa.Table, ids: list[str], classes: list[str]) -> Ranking:
    """COCO's view of the masks of `seen` and `truth`, annotation rows that all have one, on the images `ids`."""
    place = pc.index_in(pa.array(ids, pa.string()), images["image_id"].combine_chunks())
    sizes = np.stack([images[c].take(place).to_numpy() for c in ("height", "width")], axis=1)
    ours, theirs = _read(seen, sizes, ids, classes), _read(truth, sizes, ids, classes)
    width = max(1, len(classes))
    group = ours[0].image * width + ours[0].kind
    by_score = ranks(group, np.argsort(-ours[0].score, kind="stable"))
    near = _overlaps(*ours, *theirs, group, theirs[0].image * width + theirs[0].kind, sizes)
    return rank(ours[0], theirs[0], by_score, near, (len(classes), len(ids)))


def _read(rows: pa.Table, sizes: Ints, ids: list[str], classes: list[str]) -> tuple[Objects, list[str]]:
    found = Objects.read(rows, ids, classes)
    drawn = rows["mask"].take(pa.array(found.row)).to_pylist()
    area = np.array([rle.area(counts) for counts in drawn], np.float64)
    return replace(found, area=area), drawn


def _overlaps(
    seen: Objects, ours: list[str], truth: Objects, theirs: list[str], group: Ints, truth_group: Ints, sizes: Ints
) -> Pairs:
    """Masks of one class and image that overlap by COCO's least threshold or more."""
    order, people = np.argsort(group, kind="stable"), np.argsort(truth_group, kind="stable")
    edges = np.flatnonzero(np.diff(group[order], prepend=-1, append=-1))
    parts: list[Pairs] = []
    for low, high in pairwise(edges.tolist()):
        mine = order[low:high]
        number = group[mine[0]]
        start, end = np.searchsorted(truth_group[people], [number, number + 1])
        others = people[start:end]
        if not len(others):
            continue
        height, width = sizes[seen.image[mine[0]]].tolist()
        overlap = rle.iou([ours[i] for i in mine], [theirs[j] for j in others], height, width, truth.ignore[others])
        i, j = np.nonzero(overlap >= IOUS[0])
        parts.append((mine[i], others[j], overlap[i, j]))
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    i, j, overlap = (np.concatenate(part) for part in zip(*parts, strict=True))
    return i, j, overlap
