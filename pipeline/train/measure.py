"""How good a fine-tuned model is, asked through the adapter that users run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import masks
from pipeline.ahead import ahead
from pipeline.config import ProjectConfig
from pipeline.images import Reader, UnusableImage
from pipeline.intervals import percentile, resamples, wilson
from pipeline.models import zero_shot
from pipeline.models.roles import Encoder, Segmenter
from pipeline.train.sam import Outlined

_DRAWS = 1000


@dataclass(frozen=True)
class Measured:
    """A value with its confidence interval."""

    y: float
    low: float | None
    high: float | None


def classes_of(annotations: pa.Table) -> dict[str, str]:
    """Class by image of image-level labels; of several of one image the first by id counts."""
    whole = annotations.filter(pc.and_(pc.is_null(annotations["x1"]), pc.invert(annotations["ignore"])))
    whole = whole.sort_by([("image_id", "ascending"), ("annotation_id", "descending")])
    return dict(zip(whole["image_id"].to_pylist(), whole["class_name"].to_pylist(), strict=True))


def zero_shot_accuracy(
    encoder: Encoder, images: pa.Table, classes: Mapping[str, str], config: ProjectConfig
) -> Measured | None:
    """Share of images whose most probable class by its words is theirs; Wilson's interval.

    Args:
        images: rows of `images`, all of them in `classes`; those that cannot be read do not count.
    """
    reader = Reader(config.source.max_pixels)
    ids: list[str] = []

    def prepared() -> Iterator[Any]:
        for image, seen in zip(images["image_id"].to_pylist(), reader.stream(images, encoder.prepare), strict=True):
            if seen is not None:
                ids.append(image)
                yield seen

    vectors = encoder.encode_prepared(prepared())
    if not ids:
        return None
    best = zero_shot.probabilities(vectors, config.ontology, config.labelling.templates, encoder).argmax(axis=1)
    right = sum(config.ontology.names[b] == classes[image] for b, image in zip(best, ids, strict=True))
    return Measured(right / len(ids), *wilson(right, len(ids), config.evaluation.level))


def mask_iou(segmenter: Segmenter, pictures: Sequence[Outlined], level: float, seed: int) -> Measured | None:
    """Mean IoU of the masks that a segmenter draws in the boxes of known ones; the interval resamples images."""
    reader = Reader()

    def look(picture: Outlined) -> np.ndarray | None:
        try:
            return reader.read(picture.row)
        except UnusableImage:
            return None

    values: list[list[float]] = []
    for picture, pixels in zip(pictures, ahead(look, pictures, depth=4), strict=True):
        if pixels is None:
            continue
        height, width = pixels.shape[:2]
        boxes = np.array([masks.box(text, height, width) for text in picture.masks], np.float32)
        (drawn,) = segmenter.segment([pixels], [boxes])
        truth = [masks.decode(text, height, width) for text in picture.masks]
        said = [masks.decode(text, height, width) for text in drawn.masks]
        values.append([float((a & b).sum() / max(1, (a | b).sum())) for a, b in zip(said, truth, strict=True)])
    if not values:
        return None
    total, count = np.array([sum(v) for v in values]), np.array([len(v) for v in values])
    weight = resamples(len(values), _DRAWS, seed)
    return Measured(float(total.sum() / count.sum()), *percentile((weight @ total) / (weight @ count), level))
