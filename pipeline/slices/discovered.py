"""Slices found in the space of embeddings: regions in which a model errs more than elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import EvaluationConfig
from pipeline.ids import joined
from pipeline.slices.honest import LEAST_IMAGES, first_half, found_row
from pipeline.slices.regions import Regions, find_regions


@dataclass(frozen=True)
class Embedded:
    """Held-out images that have a vector.

    Attributes:
        ids: n image ids, sorted. vectors: (n, d). units: what is independent, as `honest.units` gives it.
        names: the classes that `kinds` counts. kinds: (n,) class of images of one class only, -1 for others.
    """

    ids: list[str]
    vectors: NDArray[np.floating]
    units: list[str]
    names: list[str]
    kinds: NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """Where a discovered slice lies: one of the regions, and of the images there those of one class, if of any."""

    regions: Regions
    number: int
    class_name: str | None

    def holds(self, vectors: NDArray[np.floating], classes: Sequence[Sequence[str] | None]) -> NDArray[np.bool_]:
        """(n,) which images belong, measured or not. One of unknown class (None) belongs if it lies there."""
        inside = np.isfinite(self.regions.distances(vectors)[:, self.number])
        of_class = [self.class_name is None or said is None or list(said) == [self.class_name] for said in classes]
        return np.asarray(inside & np.array(of_class, bool))


def embedded(
    image_ids: Iterable[str],
    ids: Sequence[str],
    vectors: NDArray[np.floating],
    units: Mapping[str, str] | None = None,
    classes: Mapping[str, Sequence[str] | None] | None = None,
) -> Embedded:
    """Those `image_ids` that are among `ids`, whose vectors are (n, d).

    Args:
        units: what each image is independent by; None: each is. classes: what is in each image; those of one class can
            make a slice together.
    """
    place = {image: k for k, image in enumerate(ids)}
    known = sorted(set(image_ids) & set(place))
    single = [said[0] if (said := (classes or {}).get(i)) and len(said) == 1 else None for i in known]
    names = sorted({name for name in single if name is not None})
    number = {name: k for k, name in enumerate(names)}
    kinds = np.array([-1 if name is None else number[name] for name in single], np.int64)
    points = np.asarray(vectors)[[place[i] for i in known]]
    return Embedded(known, points, [units[i] if units else i for i in known], names, kinds)


def discovered(model: str, errors: pa.Table, images: Embedded, config: EvaluationConfig) -> list[dict[str, Any]]:
    """Rows of `slices` for at most `config.discover` regions in which `model` errs more than elsewhere.

    Regions are found on the first half; value, rest and p-value are those of the other half, not yet corrected. Images
    that were not measured are left out. Members are listed in the order in which they show what is wrong: those
    that err first, nearest first. A row also has its `Place`.
    """
    known = dict(zip(errors.column("image_id").to_pylist(), errors.column("error").to_pylist(), strict=True))
    error = np.array([known.get(i, np.nan) for i in images.ids], np.float64)
    measured = np.isfinite(error)
    ids, units = (
        [name for name, seen in zip(names, measured, strict=True) if seen] for names in (images.ids, images.units)
    )
    if not ids or not config.discover:
        return []
    error, first = error[measured], first_half(units)
    vectors, kinds = images.vectors[measured], images.kinds[measured]
    regions = find_regions(vectors[first], error[first], kinds[first], most=config.discover, least=LEAST_IMAGES)
    apart = regions.distances(vectors, kinds)
    inside = np.isfinite(apart)
    shown = np.lexsort((apart.T, np.broadcast_to(error <= error.mean(), apart.T.shape)), axis=-1)
    rows = []
    for k, region in enumerate(regions.found):
        if min((inside[first, k]).sum(), (inside[~first, k]).sum()) < LEAST_IMAGES:
            continue
        kind = None if region.kind is None else images.names[region.kind]
        of = "" if kind is None else f", class '{kind}'"
        definition = (
            f"region {k + 1} of {len(regions.found)} of the embeddings{of}, found on half of the held-out images"
        )
        name = f"region_{joined(i for i, chosen in zip(ids, inside[:, k], strict=True) if chosen)[:8]}"
        row = found_row("discovered", name, definition, model, ids, error, inside[:, k], units)
        rows.append(row | {"members": [ids[i] for i in shown[k] if inside[i, k]], "place": Place(regions, k, kind)})
    return rows
