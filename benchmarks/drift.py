"""Permutation test of MMD by block sums, against permuting the kernel matrix itself (scikit-learn's rbf_kernel).

Then false alarms over 2,000 pairs, and the test by random features of 100,000 images against 100,000.

Run: python benchmarks/drift.py
"""

from __future__ import annotations

import time

import numpy as np
from common import peak_memory
from sklearn.metrics.pairwise import rbf_kernel

from pipeline.drift.kernel import feature_statistic, image_kernel
from pipeline.drift.permutations import permutation_test

HERE, THERE, WINDOWS, DIMENSIONS, PERMUTATIONS = 100, 300, 4, 256, 500


def by_indexing(points: np.ndarray, images: int, width: float) -> tuple[float, float]:
    """Unbiased MMD^2 and p-value, taking the blocks of the kernel anew for each permutation of images."""
    kernel = rbf_kernel(points, gamma=1 / width)
    np.fill_diagonal(kernel, 0)
    generator = np.random.default_rng(0)

    def statistic(chosen: np.ndarray) -> float:
        inside = np.repeat(chosen, WINDOWS)
        m, n = inside.sum(), (~inside).sum()
        within, rest = kernel[inside][:, inside].sum(), kernel[~inside][:, ~inside].sum()
        return float(within / (m * (m - 1)) + rest / (n * (n - 1)) - 2 * kernel[inside][:, ~inside].mean())

    side = np.arange(images) < HERE
    observed = statistic(side)
    extreme = sum(statistic(generator.permutation(side)) >= observed for _ in range(PERMUTATIONS))
    return observed, (1 + extreme) / (1 + PERMUTATIONS)


def false_alarms(pairs: int = 2000, images: int = 50, alpha: float = 0.05) -> float:
    """Share of pairs of samples of one distribution that are called drifted."""
    generator = np.random.default_rng(1)
    everyone, owner = np.arange(2 * images), np.arange(2 * images)
    alarms = 0
    for draw in range(pairs):
        points = generator.normal(size=(2 * images, 16)).astype(np.float32)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        statistic = image_kernel(points, owner, len(owner)).statistic(everyone)
        alarms += (
            permutation_test(statistic, everyone, everyone < images, 199, draw)[1] < alpha
        )  # as in the table `drift`
    return alarms / pairs


def large(images: int, dimensions: int = 512, permutations: int = 199) -> float:
    """p-value of as many images against as many by random features, each image a location of its own."""
    generator = np.random.default_rng(2)
    points = generator.standard_normal((2 * images, dimensions), np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    everyone = np.arange(2 * images)
    statistic = feature_statistic(points, everyone, len(everyone))
    return permutation_test(statistic, everyone, everyone < images, permutations, 0)[1]


def main() -> None:
    generator = np.random.default_rng(0)
    images = HERE + THERE
    points = generator.normal(size=(images * WINDOWS, DIMENSIONS)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    exact = points.astype(np.float64)
    apart = 2 - 2 * exact @ exact.T
    width = float(np.median(apart[np.triu_indices(len(exact), 1)]))
    start = time.perf_counter()
    kernel = image_kernel(points, np.repeat(np.arange(images), WINDOWS), images)
    found, p_value, _ = permutation_test(
        kernel.statistic(np.arange(images)), np.arange(images), np.arange(images) < HERE, PERMUTATIONS, 0
    )
    ours = time.perf_counter() - start
    start = time.perf_counter()
    expected, their_p = by_indexing(exact, images, width)
    theirs = time.perf_counter() - start
    assert abs(found - expected) < 1e-9, "the statistics must agree"
    print(f"{images} images of {WINDOWS} windows, {PERMUTATIONS} permutations: {ours:.2f} s, p {p_value:.3f}")
    print(f"by indexing {theirs:.2f} s, p {their_p:.3f}; ratio {theirs / ours:.1f}")
    rate = false_alarms()
    assert 0.03 <= rate <= 0.07, rate
    print(f"false alarms at 0.05 over 2,000 pairs of equal distribution: {rate:.4f}")
    for count in (10_000, 100_000):
        start = time.process_time()
        p_value = large(count)
        spent = time.process_time() - start
        memory = peak_memory(lambda count=count: large(count))
        assert memory < 4096, memory
        print(f"{count} x 512 against {count}, 199 permutations: {spent:.1f} core-s, {memory:.0f} MiB, p {p_value:.3f}")


if __name__ == "__main__":
    main()
