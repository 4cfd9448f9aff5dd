"""Rows of the table `drift`, one a test."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import DriftConfig
from pipeline.drift.kernel import FeatureKernel, ImageKernel, feature_kernel, image_kernel
from pipeline.drift.mixes import Mix
from pipeline.drift.novelty import prediction_test, reference_mahalanobis
from pipeline.drift.permutations import Statistic, ks_parts, permutation_test, share_parts
from pipeline.drift.sides import Blocks, Flags, Floats, Ints, Sides, block_sums, thinned
from pipeline.ids import seed

MEASURES = ("brightness", "contrast", "sharpness", "entropy", "colourfulness", "dark_share", "bright_share")
# Least deviation taken seriously, in the measures' units (sharpness: of log(1 + x)).
RESOLUTION = np.array([0.01, 0.01, 0.05, 0.05, 1.0, 0.005, 0.005])
_NEAREST = 1e-4  # smallest cosine distance told apart from zero


@dataclass(frozen=True)
class Embedded:
    """The n images of both sides that have vectors.

    Attributes:
        images: (n,) their places in `Sides`. means: (n, d) means of their vectors.
        kernel: between them, exact, or by random features where there are too many.
        some: tests of the sample of images that take part in what needs every pair; all images where they are few.
        sample: (k,) numbers, below n, of those in the sample. within: (k,) their places in the sample.
        distance: (n,) squared MMD to the nearest reference image of the sample; NaN outside it.
    """

    images: Ints
    means: Floats
    kernel: ImageKernel | FeatureKernel
    some: Tests
    sample: Ints
    within: Ints
    distance: Floats


class Tests:
    """Collects one row a test of one batch.

    Args:
        whole: what these are a sample of.
    """

    def __init__(self, sides: Sides, config: DriftConfig, whole: Tests | None = None) -> None:
        self.sides = sides
        self.config = config
        self.whole = whole
        self.rows: list[dict[str, Any]] = [] if whole is None else whole.rows
        self.at = {image: i for i, image in enumerate(sides.ids)}
        self.draw = seed("drift", sides.batch, config.permutations)

    def of(self, places: Ints) -> Tests:
        """Tests of some of the images only, with their rows among these."""
        return self if len(places) == len(self.sides.ids) else Tests(self.sides.some(places), self.config, self)

    def add(
        self, test: str, subject: str, statistic: float | None, p_value: float | None, note: str, **more: Any
    ) -> None:
        if self.whole is not None:
            every = self.whole.sides.in_batch
            note += f"; a sample of {every.sum():,} and {(~every).sum():,} images"
        self.rows.append(
            {
                "batch": self.sides.batch,
                "test": test,
                "subject": subject,
                "statistic": statistic,
                "p_value": p_value,
                "drifted": p_value is not None and p_value < self.config.alpha,
                "alpha": self.config.alpha,
                "images": int(self.sides.in_batch.sum()),
                "reference_images": int((~self.sides.in_batch).sum()),
                "note": note,
                "contents": self.sides.contents,
                "reference": self.sides.reference,
            }
            | more
        )

    def owners(self, ids: list[str]) -> Ints:
        """(k,) number of the image of each of `ids`, -1 for those that are on neither side."""
        return np.array([self.at.get(i, -1) for i in ids], np.int64)

    def embedding(self, encoder: str, ids: list[str], vectors: NDArray[np.float32]) -> Embedded:
        """Mixture and novelty; where not every pair of images can be looked at, the mixture by random features."""
        owner = self.owners(ids)
        owner, points = owner[owner >= 0], vectors[owner >= 0]
        images, number = np.unique(owner, return_inverse=True)
        few = self.sides.sample()
        near = np.flatnonzero(np.isin(owner, few))
        near = near[thinned(owner[near], self.sides.in_batch)]
        everything = len(near) == len(owner)
        few = few if everything else np.unique(owner[near])
        exact = image_kernel(points[near], np.searchsorted(few, owner[near]), len(few))
        within = np.flatnonzero(exact.points)
        kernel = exact.of(within) if everything else feature_kernel(points, number, len(images))
        how = "" if everything else "; by random features"
        self.mixture("embedding_mmd", encoder, images, kernel.statistic, how)
        some = self.of(few)
        apart = exact.nearest_reference(some.sides.in_batch, some.sides.neighbourhoods())
        some.novelty("embedding_novelty", encoder, np.log(np.maximum(apart, _NEAREST)))
        means = block_sums(points, number, len(images)) / kernel.points[:, None]
        sample = np.searchsorted(images, few[within])
        distance = np.full(len(images), np.nan)
        distance[sample] = apart[within]
        return Embedded(images, means, kernel, some, sample, within, distance)

    def measures(self, quality: pa.Table) -> Floats:
        """(n, 7) MEASURES of every image, NaN where there are none."""
        values = np.full((len(self.sides.ids), len(MEASURES)), np.nan)
        places = self.owners(quality.column("image_id").to_pylist())
        there = places >= 0
        columns = [quality.column(name).to_numpy().astype(np.float64)[there] for name in MEASURES]
        values[places[there]] = np.stack(columns, axis=1)
        values[:, MEASURES.index("sharpness")] = np.log1p(values[:, MEASURES.index("sharpness")])
        return values

    def appearance(self, values: Floats) -> None:
        few = self.sides.sample()
        some = self.of(few)
        distance = reference_mahalanobis(values[few], some.sides.in_batch, some.sides.neighbourhoods(), RESOLUTION)
        some.novelty("appearance_novelty", "quality", np.log(np.maximum(distance, _NEAREST)))

    def predictions(self, producer: str, rows: pa.Table) -> None:
        owner = self.owners(rows.column("image_id").to_pylist())
        scores = rows.column("score").to_numpy().astype(np.float64)[owner >= 0]
        owner = owner[owner >= 0]
        counts = np.bincount(owner, minlength=len(self.sides.ids)).astype(np.float64)
        self.mixture("score_ks", producer, owner, ks_parts(scores))
        self.mixture("count_ks", producer, np.arange(len(counts)), ks_parts(counts))

    def slice_mix(self, slices: Mapping[str, Collection[str]]) -> Floats:
        """Returns (n, slices) which images are in which."""
        found = np.zeros((len(self.sides.ids), len(slices)))
        for column, images in enumerate(slices.values()):
            places = self.owners(list(images))
            found[places[places >= 0], column] = 1
        self.mixture("slice_mix", ", ".join(slices), np.arange(len(found)), share_parts(found))
        return found

    def blocks(self, test: str, subject: str, owner: Ints) -> Blocks | None:
        """Locations of the images `owner`; None, and a row that says so, where a side has none."""
        in_batch = self.sides.in_batch[owner]
        if not in_batch.any() or in_batch.all():
            side = "reference" if in_batch.any() or not self.sides.in_batch.all() else "batch"
            self.add(test, subject, None, None, f"nothing to compare: the {side} has no data")
            return None
        return Blocks.of(self.sides.location[owner], in_batch)

    def mixture(self, test: str, subject: str, owner: Ints, parts: Statistic, how: str = "") -> None:
        """One permutation test whose rows belong to the images `owner`; `how` ends its note."""
        blocks = self.blocks(test, subject, owner)
        if blocks is not None:
            self.exchanged(test, subject, parts, blocks, how)

    def exchanged(self, test: str, subject: str, parts: Statistic, blocks: Blocks, how: str = "", **more: Any) -> None:
        """The row of a permutation test of `parts`."""
        statistic, p_value, least = permutation_test(
            parts, blocks.number, blocks.in_batch, self.config.permutations, self.draw, self.config.most_permutations
        )
        note = f"{blocks.words}, exchanged whole"
        if least >= self.config.alpha:
            note += f"; too few to tell: no p below {least:.3g} is possible"
        self.add(test, subject, statistic, p_value, note + how, least_p=least, **more)

    def mixed(self, test: str, subject: str, mix: Mix, blocks: Blocks, shares: list[dict[str, Any]]) -> None:
        """The row of a chi-square test of disjoint categories, its effect being the PSI of `shares`."""
        index = sum(row["psi"] for row in shares)
        self.exchanged(test, subject, mix.chi_square, blocks, effect=index, unit="PSI")

    def novelty(self, test: str, subject: str, novelty: Floats) -> None:
        """One-sided t test that the batch's images are no newer than the reference's own."""
        scored = np.isfinite(novelty)
        batch, own = scored & self.sides.in_batch, scored & ~self.sides.in_batch
        here, there = self.sides.observations(batch), self.sides.observations(own)
        if here == 0 or there < 3:
            self.add(test, subject, None, None, f"too little to compare: {here:.3g} against {there:.3g} observations")
            return
        unit = self.sides.location if self.sides.by_location else np.arange(len(novelty))
        statistic, p_value = prediction_test(_means(novelty, unit, batch), _means(novelty, unit, own), here, there)
        kind = "locations" if self.sides.by_location else "images' worth of area"
        self.add(test, subject, statistic, p_value, f"{here:.4g} against {there:.4g} {kind}; t of a new observation")


def _means(values: Floats, unit: Ints, chosen: Flags) -> Floats:
    _, position = np.unique(unit[chosen], return_inverse=True)
    return np.bincount(position, values[chosen]) / np.bincount(position)
