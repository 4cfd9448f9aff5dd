"""Worlds with planted slices: embeddings, classes, answers, and the images that belong to each slice.

Embeddings are unit vectors from a mixture of clusters of unequal size and shape, as encoders give them.
A slice is a part of that space in which the model errs more often than elsewhere. They vary in kind,
rarity, error rate, number and overlap, and errors are flipped at random as label noise does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

KINDS = ("cluster", "round", "long", "ring", "two", "edge", "class")
MOVED = ("round", "long", "ring", "two")  # kinds that move images to where the slice is
DIMENSIONS, CLUSTERS, INTRINSIC = 128, 30, 24


@dataclass(frozen=True)
class World:
    """n images.

    Attributes:
        vectors: (n, d) unit vectors. truth, answer: (n,) class 0 or 1, of people and of the model.
        slices: for each planted slice, its kind and (n,) whether an image belongs to it.
    """

    seed: int
    vectors: np.ndarray
    truth: np.ndarray
    answer: np.ndarray
    slices: list[tuple[str, np.ndarray]] = field(default_factory=list)

    @property
    def errors(self) -> np.ndarray:
        return (self.truth != self.answer).astype(float)


def world(images: int, seed: int) -> World:
    """One to three slices of the kinds in turn; rarity, error rates, noise and overlap by chance.

    Kinds: `cluster` a whole cluster of the background; `round` a tight blob beside one; `long` a blob
    stretched along a line; `ring` an annulus in a plane; `two` two blobs far from each other; `edge`
    the outer part of a cluster in one direction, with no gap; `class` the images of class 1 of a cluster,
    whose neighbours of class 0 are as good as any.
    """
    generator = np.random.default_rng(seed)
    centre, shape, which, points = _background(images, generator)
    truth = generator.integers(0, 2, images)
    count = 1 + seed % 3
    noise = float(generator.choice([0.0, 0.03, 0.08]))
    usual = float(generator.choice([0.02, 0.05, 0.1]))
    rate = np.full(images, usual)
    planted: list[tuple[str, np.ndarray]] = []
    place = None
    for k in range(count):
        kind = KINDS[(seed + k) % len(KINDS)]
        share = float(generator.choice([0.005, 0.01, 0.02, 0.05]))
        # Every third slice lies upon the one before it.
        near = place if place is not None and generator.random() < 1 / 3 else int(generator.integers(CLUSTERS))
        place = near
        inside = _plant(kind, near, int(share * images), centre, shape, which, points, truth, generator)
        if kind in MOVED:  # whoever a blob took is no longer in the slices it was in
            planted = [(earlier, images_ & ~inside) for earlier, images_ in planted]
            rate[inside] = usual
        rate[inside] = np.maximum(rate[inside], float(generator.choice([0.4, 0.6, 0.8])))
        planted.append((kind, inside))
    wrong = (generator.random(images) < rate) ^ (generator.random(images) < noise)
    vectors = points @ _rotation(INTRINSIC, DIMENSIONS, generator)
    vectors += 0.02 * generator.normal(size=vectors.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return World(seed, vectors.astype(np.float32), truth, np.where(wrong, 1 - truth, truth), planted)


def separate(images: int, seed: int) -> World:
    """25 round clusters far apart, three of which err: what K-means of 25 is made for."""
    generator = np.random.default_rng(seed)
    centre = 2 * generator.normal(size=(25, INTRINSIC))
    which = generator.integers(0, 25, images)
    points = centre[which] + 0.3 * generator.normal(size=(images, INTRINSIC))
    vectors = points @ _rotation(INTRINSIC, DIMENSIONS, generator)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    truth = generator.integers(0, 2, images)
    wrong = generator.random(images) < np.where(which < 3, 0.4, 0.05)
    planted = [("separate", which == k) for k in range(3)]
    return World(seed, vectors.astype(np.float32), truth, np.where(wrong, 1 - truth, truth), planted)


def _background(images: int, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    centre = 0.5 * generator.normal(size=(CLUSTERS, INTRINSIC))
    shape = 0.15 + 0.35 * generator.random((CLUSTERS, INTRINSIC))
    which = generator.choice(CLUSTERS, images, p=generator.dirichlet(np.full(CLUSTERS, 2.0)))
    points = centre[which] + shape[which] * generator.normal(size=(images, INTRINSIC))
    return centre, shape, which, points


def _plant(
    kind: str,
    near: int,
    size: int,
    centre: np.ndarray,
    shape: np.ndarray,
    which: np.ndarray,
    points: np.ndarray,
    truth: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """Which images are in the slice; blobs are made by moving some of the cluster's neighbours there."""
    own = np.flatnonzero(which == near)
    if kind == "cluster":
        return np.isin(np.arange(len(points)), own)
    if kind == "class":
        return np.isin(np.arange(len(points)), own[truth[own] == 1])
    direction = generator.normal(size=INTRINSIC)
    direction /= np.linalg.norm(direction)
    if kind == "edge":
        along = ((points[own] - centre[near]) / shape[near]) @ direction
        return np.isin(np.arange(len(points)), own[np.argsort(-along)[: max(size, len(own) // 5)]])
    chosen = generator.choice(len(points), size, replace=False)
    middle = centre[near] + direction
    spread = 0.2 * generator.normal(size=(size, INTRINSIC))
    if kind == "long":
        line = generator.normal(size=INTRINSIC)
        spread += np.outer(generator.uniform(-1.5, 1.5, size), line / np.linalg.norm(line))
    elif kind == "ring":
        plane = np.linalg.qr(generator.normal(size=(INTRINSIC, 2)))[0]
        angle = generator.uniform(0, 2 * np.pi, size)
        spread += 1.2 * np.stack([np.cos(angle), np.sin(angle)], axis=1) @ plane.T
    elif kind == "two":
        spread[: size // 2] += 2.5 * generator.normal(size=INTRINSIC) / np.sqrt(INTRINSIC) * 2
    points[chosen] = middle + spread
    which[chosen] = -1
    return np.isin(np.arange(len(points)), chosen)


def _rotation(rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(generator.normal(size=(columns, rows)))[0].T
