"""The Gaussian kernel between images, exact, and by random features where there are too many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.drift.permutations import FeatureMmd, KernelMmd
from pipeline.drift.sides import Flags, Floats, Ints, block_sums
from pipeline.ids import seed

_ROWS = 1024  # kernel rows, or images' features, held at a time
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

    def statistic(self, images: Ints) -> KernelMmd:
        """The two-sample statistic over `images`: unbiased squared MMD of their points."""
        return KernelMmd(self.sums[np.ix_(images, images)], self.points[images])

    def of(self, images: Ints) -> ImageKernel:
        """The kernel of some of the images."""
        return ImageKernel(self.sums[np.ix_(images, images)], self.points[images], self.width)

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


def image_kernel(vectors: NDArray[np.float32], owner: Ints, images: int) -> ImageKernel:
    """Kernel exp(-d^2 / w) between images, w being the median of d^2 over pairs of points.

    Args:
        vectors: (n, d) points. owner: (n,) the image of each, below `images`.
    """
    order = np.argsort(owner, kind="stable")
    points, owner = np.asarray(vectors, np.float64)[order], owner[order]
    squares = np.einsum("ij,ij->i", points, points)
    width = median_distance(points) or 1.0
    sums = np.zeros((images, images))
    for top in range(0, len(points), _ROWS):
        rows = slice(top, top + _ROWS)
        apart = np.clip(squares[rows, None] + squares[None] - 2 * points[rows] @ points.T, 0, None)
        by_image = block_sums(np.exp(np.divide(apart, -width, out=apart), out=apart).T, owner, images).T
        here, place = np.unique(owner[rows], return_inverse=True)
        sums[here] += block_sums(by_image, place.reshape(-1), len(here))
    return ImageKernel(sums, np.bincount(owner, minlength=images).astype(np.float64), width)


def feature_statistic(vectors: NDArray[np.float32], owner: Ints, images: int, features: int = FEATURES) -> FeatureMmd:
    """The same statistic from random Fourier features (Rahimi & Recht 2007), in memory of (images, features).

    The error of a kernel value has a standard deviation of at most 1 / sqrt(features); the test stays exact, as
    features do not depend on the sides.

    Args:
        vectors, owner, images: as of `image_kernel`. features: an even number.
    """
    width = median_distance(np.asarray(vectors[:: -(-len(vectors) // 2000) or 1], np.float64)) or 1.0
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
    return FeatureMmd(sums, np.bincount(owner, minlength=images).astype(np.float64))


def median_distance(points: Floats) -> float:
    """Median of squared distances over pairs of at most 2,000 of the points; 0 for fewer than two."""
    some = points[:: -(-len(points) // 2000) or 1]
    if len(some) < 2:
        return 0.0
    squares = np.einsum("ij,ij->i", some, some)
    apart = squares[:, None] + squares[None] - 2 * some @ some.T
    return max(0.0, float(np.median(np.concatenate([row[i + 1 :] for i, row in enumerate(apart)]))))
