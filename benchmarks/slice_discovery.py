"""Precision@10 over planted slices: regions of errors against K-means and a mixture like Domino's.

Each method sees one half of a world (`planted.py`), offers ten slices in its own order, and ranks the images
of the other half in each. A planted slice scores the largest share of its images among the first ten of any
offered slice (Eyuboglu et al. 2022), here of the first ten or of only as many slices as were planted.

Run: python benchmarks/slice_discovery.py [worlds] [images] [first seed]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from common import peak_memory, report
from planted import World, separate, world
from scipy.special import logsumexp, softmax
from scipy.stats import beta
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from pipeline.slices.regions import find_regions

WORLDS, IMAGES, SEED = 42, 10_000, 2000  # seeds 0 to 20 chose how far shapes are shrunk
OFFERED, SHOWN, COMPONENTS = 10, 10, 25
Method = Callable[[World, np.ndarray], np.ndarray]
Scores = list[tuple[str, float, float]]


def regions(made: World, first: np.ndarray) -> np.ndarray:
    """(images of the other half, slices) rank scores, the lowest first."""
    found = find_regions(made.vectors[first], made.errors[first], made.truth[first], most=OFFERED)
    return found.distances(made.vectors[~first], made.truth[~first])


def k_means(made: World, first: np.ndarray) -> np.ndarray:
    """Clusters by the Clopper-Pearson lower bound of their error rate; images by distance."""
    model = KMeans(COMPONENTS, n_init=4, random_state=0).fit(made.vectors[first])
    wrong = np.bincount(model.labels_, made.errors[first], COMPONENTS)
    size = np.bincount(model.labels_, minlength=COMPONENTS)
    lower = np.where(wrong > 0, beta.ppf(0.05, np.maximum(wrong, 1), size - wrong + 1), 0)
    apart = model.transform(made.vectors[~first])
    apart[apart > apart.min(axis=1, keepdims=True)] = np.inf
    return apart[:, np.argsort(-lower)[:OFFERED]]


def erring_first(method: Method) -> Method:
    """The same slices; in each, images that err come before those that do not, as answers tell the mixture."""

    def ranked(made: World, first: np.ndarray) -> np.ndarray:
        score = method(made, first)
        return np.where(np.isfinite(score), np.arctan(score) - 2 * made.errors[~first, None], np.inf)

    return ranked


def mixture(weight: float) -> Method:
    """Domino's error-aware mixture: normal embeddings, classes and answers, the latter two times `weight`."""

    def method(made: World, first: np.ndarray) -> np.ndarray:
        pca = PCA(min(128, made.vectors.shape[1]), random_state=0).fit(made.vectors[first])
        points = pca.transform(made.vectors).astype(np.float64)
        classes = np.stack([np.eye(2)[made.truth], np.eye(2)[made.answer]])
        share = _by_confusion(made.truth[first], made.answer[first])
        previous = -np.inf
        for _ in range(100):
            joint, parts = _fitted(points[first], classes[:, first], share, points, classes, weight)
            bound = float(logsumexp(joint[first], axis=1).mean())
            share = softmax(joint[first], axis=1)
            if abs(bound - previous) < 1e-3:
                break
            previous = bound
        gap = np.abs(parts[0] - parts[1]).max(axis=1)
        return -softmax(joint[~first], axis=1)[:, np.argsort(-gap)[:OFFERED]]

    return method


def _by_confusion(truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Starting shares: each component leans to one cell of the confusion matrix, with noise, as in Domino."""
    cell = 2 * truth + answer
    share = np.random.default_rng(0).random((len(truth), COMPONENTS))
    share[cell[:, None] == np.arange(COMPONENTS)[None] % 4] += 2
    return share / share.sum(axis=1, keepdims=True)


def _fitted(
    points: np.ndarray, classes: np.ndarray, share: np.ndarray, everyone: np.ndarray, known: np.ndarray, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """Joint log-likelihood of everyone by component, and each component's (classes, answers)."""
    size = share.sum(axis=0) + 1e-9
    centre = share.T @ points / size[:, None]
    spread = np.maximum(share.T @ points**2 / size[:, None] - centre**2, 0) + 1e-6
    parts = np.stack([share.T @ c / size[:, None] for c in classes])
    joint = -0.5 * (everyone**2 @ (1 / spread).T - 2 * everyone @ (centre / spread).T)
    joint -= 0.5 * ((centre**2 / spread).sum(axis=1) + np.log(spread).sum(axis=1))
    joint += np.log(size / len(points))
    for c, part in zip(known, parts, strict=True):
        joint += weight * (c @ np.log(part + 1e-9).T)
    return joint, parts


def precisions(made: World, first: np.ndarray, score: np.ndarray) -> Scores:
    """Kind of each planted slice and its precision@10 among all and among the first as many slices."""
    found: Scores = []
    for kind, inside in made.slices:
        each = []
        for column in score.T:
            top = np.argsort(column, kind="stable")[:SHOWN]
            top = top[np.isfinite(column[top])]
            each.append(inside[~first][top].sum() / SHOWN)
        found.append((kind, max(each, default=0.0), max(each[: len(made.slices)], default=0.0)))
    return found


METHODS: dict[str, Method] = {
    "regions": regions,
    "regions, erring first": erring_first(regions),
    "K-means 25": k_means,
    "K-means 25, erring first": erring_first(k_means),
    "mixture 25, weight 1": mixture(1),
    "mixture 25, weight 10": mixture(10),
}


def measure(made: Iterable[World]) -> tuple[dict[str, Scores], dict[str, float]]:
    """Precisions and core-seconds of each method."""
    scores: dict[str, Scores] = {name: [] for name in METHODS}
    spent = dict.fromkeys(METHODS, 0.0)
    for each in made:
        count = len(each.vectors)
        first = np.random.default_rng(each.seed).permutation(count) < count // 2
        for name, method in METHODS.items():
            start = time.process_time()
            score = method(each, first)
            spent[name] += time.process_time() - start
            scores[name] += precisions(each, first, score)
    return scores, spent


def memory(images: int, seed: int) -> float:
    """MiB that our method grows by in one world."""
    each, first = world(images, seed), np.arange(images) < images // 2
    return peak_memory(partial(METHODS["regions, erring first"], each, first))


def told(scores: dict[str, Scores], spent: dict[str, float]) -> None:
    kinds = sorted({kind for kind, _, _ in scores["regions"]})
    print(f"\n{len(scores['regions'])} slices\n{'':24}{'of 10':>7}{'as many':>9}{'core-s':>8}  ", end="")
    print("".join(f"{k:>9}" for k in kinds))
    for name, rows in scores.items():
        by_kind = [np.mean([p for k, p, _ in rows if k == kind]) for kind in kinds]
        of_ten, as_many = np.mean([r[1] for r in rows]), np.mean([r[2] for r in rows])
        figures = "".join(f"{p:9.2f}" for p in by_kind)
        print(f"{name:24}{of_ten:7.2f}{as_many:9.2f}{spent[name]:8.2f}  {figures}")


def main(count: int = WORLDS, images: int = IMAGES, seed: int = SEED) -> None:
    seeds = range(seed, seed + count)
    print(f"{count} worlds of {images} images, seeds {seed} to {seed + count - 1}; core-seconds in all")
    scores, spent = measure(world(images, s) for s in seeds)
    told(scores, spent)
    easy, easy_spent = measure(separate(images, s) for s in seeds[:10])
    told(easy, easy_spent)
    means = {name: float(np.mean([p for _, p, _ in rows])) for name, rows in scores.items()}
    ours = means["regions, erring first"]
    peers = {name: value for name, value in means.items() if not name.startswith("regions")}
    best = max(peers, key=peers.__getitem__)
    slices = f"{len(scores['regions'])} planted slices"
    easy_ours, easy_peer = (float(np.mean([p for _, p, _ in easy[name]])) for name in ("regions", "K-means 25"))
    report(
        f"slice discovery, precision@10 over {slices}",
        ours,
        peers[best],
        peer_name=best,
        unit="precision@10",
        more_is_better=True,
        aim="0.85",
        met=ours >= 0.85,
        agreement=", ".join(f"{name} {value:.2f}" for name, value in means.items()),
        note=f"round clusters of known number: {easy_ours:.2f}, K-means {easy_peer:.2f}",
    )
    domino = "mixture 25, weight 10"
    report(
        f"the same, {count} worlds of {images} images",
        spent["regions, erring first"],
        spent[domino],
        peer_name=domino,
        aim=4,
        agreement="as above",
        note=f"K-means 25: {spent['K-means 25, erring first']:.2f} core-s",
        memory={"1x": memory(images, seed), "10x": memory(10 * images, seed)},
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
