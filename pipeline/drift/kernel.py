"""The Gaussian kernel between images, exact, and by random features where there are too many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.drift.permutations import FeatureMmd, KernelMmd
from pipeline.drift.sides import Flags, Floats, Ints, block_sums
from pipeline.ids import seed

_ROWS = 1024  # kernel rows, or images' features, held at a time
_SAMPLE = 2000  # points that the kernel's width is taken from
FEATURES = 512


@dataclass(frozen=True)
class ImageKernel:
    """A Gaussian kernel exp(-d^2 / width) between images, each a set of points.

    Attributes:
        sums: (n, n) sums of the kernel over pairs of points. points: (n,) points of each image.
    """

    sums: Floats
    points: Floats
    width: float

    @property
    def statistic(self) -> KernelMmd:
        """The two-sample statistic: unbiased squared MMD of the images' points."""
        return KernelMmd(self.sums, self.points)

    def of(self, images: Ints) -> ImageKernel:
        """The kernel of some of the images, sorted."""
        if len(images) == len(self.points):
            return self
        return ImageKernel(self.sums[np.ix_(images, images)], self.points[images], self.width)

    def witness(self, in_batch: Flags) -> Floats:
        """(n,) mean kernel to the batch's images less that to the reference's (Gretton et al. 2012, section 2.3).

        Positive where the batch has more than the reference. Its mean over the batch less that over the reference
        is the squared MMD (V-statistic) of images that count alike. Every image has points.
        """
        return np.asarray(self.sums @ _contrast(self.points, in_batch) / self.points, np.float64)

    def means(self) -> Floats:
        """(n, n) mean kernel between the points of two images; 0 for an image without."""
        weight = np.divide(1.0, self.points, out=np.zeros_like(self.points), where=self.points > 0)
        return np.asarray(self.sums * weight[:, None] * weight[None], np.float64)

    def nearest_reference(self, in_batch: Flags, left_out: Flags) -> Floats:
        """(n,) squared MMD of each image's points to those of the nearest reference image.

        It is the squared distance of two kernel means (the V-statistic): never negative, 0 for equal sets.

        Args:
            in_batch: (n,) images that are no reference. left_out: (n, n) images not looked at for an image.

        Returns:
            NaN for an image without points, or with nothing to look at.
        """
        mean = self.means()
        own = np.diag(mean)
        apart = np.clip(own[:, None] + own[None] - 2 * mean, 0, None)
        seen = ~left_out & (~in_batch & (self.points > 0))[None] & (self.points > 0)[:, None]
        nearest = np.where(seen, apart, np.inf).min(axis=1, initial=np.inf)
        return np.where(np.isfinite(nearest), nearest, np.nan)


@dataclass(frozen=True)
class FeatureKernel:
    """The same kernel approximately, as the product of random Fourier features (Rahimi & Recht 2007).

    Attributes:
        sums: (n, k) sums of the features of an image's points. points: (n,). width: as of ImageKernel.
    """

    sums: Floats
    points: Floats
    width: float

    @property
    def statistic(self) -> FeatureMmd:
        """The two-sample statistic: unbiased squared MMD of the images' points."""
        return FeatureMmd(self.sums, self.points)

    def witness(self, in_batch: Flags) -> Floats:
        """As of ImageKernel."""
        apart = self.sums.T @ _contrast(self.points, in_batch)
        return np.asarray(self.sums @ apart / self.points, np.float64)


def _contrast(points: Floats, in_batch: Flags) -> Floats:
    """(n,) weights of images that make a sum over points the batch's mean over images less the reference's."""
    return np.where(in_batch, 1 / in_batch.sum(), -1 / (~in_batch).sum()) / points


def image_kernel(vectors: NDArray[np.float32], owner: Ints, images: int) -> ImageKernel:
    """Kernel exp(-d^2 / w) between images, w being the median of d^2 over pairs of points.

    Args:
        vectors: (n, d) points. owner: (n,) the image of each, below `images`.
    """
    order = np.argsort(owner, kind="stable")
    points, owner = np.asarray(vectors, np.float64)[order], owner[order]
    count = np.bincount(owner, minlength=images).astype(np.float64)
    some = _sample(points)
    apart = squared_distances(some, some)
    width = _median(apart) or 1.0
    if len(some) == len(points):
        by_image = block_sums(_gaussian(apart, width), owner, images)
        return ImageKernel(block_sums(by_image.T, owner, images), count, width)
    sums = np.zeros((images, images))
    for top in range(0, len(points), _ROWS):
        rows = slice(top, top + _ROWS)
        values = _gaussian(squared_distances(points[rows], points), width)
        by_image = block_sums(values.T, owner, images).T
        here, place = np.unique(owner[rows], return_inverse=True)
        sums[here] += block_sums(by_image, place.reshape(-1), len(here))
    return ImageKernel(sums, count, width)


def feature_kernel(vectors: NDArray[np.float32], owner: Ints, images: int, features: int = FEATURES) -> FeatureKernel:
    """The same kernel by random features, in memory of (images, features).

    The error of a kernel value has a standard deviation of at most 1 / sqrt(features); a test stays exact, as features
    do not depend on the sides.

    Args:
        vectors, owner, images: as of `image_kernel`. features: an even number.
    """
    width = median_distance(np.asarray(_sample(vectors), np.float64)) or 1.0
    rng = np.random.default_rng(seed("random features", features))
    # exp(-d^2 / w) is the characteristic function of normals of variance 2 / w.
    waves = (rng.normal(size=(vectors.shape[1], features // 2)) * np.sqrt(2 / width)).astype(np.float32)
    sums = np.zeros((images, features))
    order = np.argsort(owner, kind="stable")
    for top in range(0, len(order), _ROWS):
        rows = order[top : top + _ROWS]
        phase = vectors[rows] @ waves
        values = np.concatenate([np.cos(phase), np.sin(phase)], axis=1) / np.sqrt(features / 2)
        here, place = np.unique(owner[rows], return_inverse=True)
        sums[here] += block_sums(values.astype(np.float64), place.reshape(-1), len(here))
    return FeatureKernel(sums, np.bincount(owner, minlength=images).astype(np.float64), width)


def squared_distances(one: Floats, other: Floats) -> Floats:
    """(m, n) squared Euclidean distances of the rows of (m, d) and (n, d); of a table to itself in half the time."""
    apart = one @ other.T  # NumPy sees `x @ x.T` and makes one triangle of it
    apart *= -2
    apart += np.einsum("ij,ij->i", one, one)[:, None]
    apart += np.einsum("ij,ij->i", other, other)
    return np.asarray(np.maximum(apart, 0, out=apart), np.float64)


def median_distance(points: Floats) -> float:
    """Median of squared distances over pairs of at most 2,000 of the points; 0 for fewer than two."""
    some = _sample(points)
    return _median(squared_distances(some, some))


def _sample(points: NDArray[Any]) -> NDArray[Any]:
    return points[:: -(-len(points) // _SAMPLE) or 1]


def _median(apart: Floats) -> float:
    """Of the pairs above the diagonal."""
    if len(apart) < 2:
        return 0.0
    pairs = np.concatenate([row[i + 1 :] for i, row in enumerate(apart)])
    return float(np.median(pairs, overwrite_input=True))


def _gaussian(apart: Floats, width: float) -> Floats:
    """exp(-apart / width), in place."""
    return np.asarray(np.exp(np.divide(apart, -width, out=apart), out=apart), np.float64)
