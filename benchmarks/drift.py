"""Drift of embeddings and of scores: our tests against alibi-detect's MMDDrift and SciPy's permutation test.

alibi-detect's pins would change the project's, so it runs in an environment of its own, under CVP_HOME/peers.

Run: python benchmarks/drift.py
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from common import in_turn, own_environment, peak_memory, report
from scipy import stats

from pipeline.drift.kernel import feature_kernel, image_kernel
from pipeline.drift.permutations import ks_parts, permutation_test

ALIBI = "alibi-detect 0.13 MMDDrift"
IMAGES, DIMENSIONS, PERMUTATIONS, ROUNDS = 1000, 256, 500, 3
PAIRS, SMALL, ALPHA = 2000, 50, 0.05
THEIRS = """
import json, sys, time
import numpy as np, torch
from alibi_detect.cd import MMDDrift
torch.set_num_threads(1)
said = []
with np.load(sys.argv[1]) as given:
    permutations = int(given["permutations"])
    for reference, batch, width in zip(given["reference"], given["batch"], given["width"]):
        start = time.process_time()
        sigma = np.array([np.sqrt(width / 2)], np.float32)
        fixed = dict(sigma=sigma, configure_kernel_from_x_ref=False, n_permutations=permutations)
        test = MMDDrift(reference, "pytorch", **fixed)
        found = test.predict(batch)["data"]
        said.append((float(found["distance"]), float(found["p_val"]), time.process_time() - start))
print(json.dumps(said))
"""


class Alibi:
    """MMDDrift on pairs of samples, with a bandwidth given for each."""

    def __init__(self) -> None:
        self.python = own_environment("alibi-detect==0.13.0", "torch<2.14")

    def __call__(
        self, reference: np.ndarray, batch: np.ndarray, width: list[float], permutations: int
    ) -> list[tuple[float, float, float]]:
        """Squared MMD, p-value and core-seconds of each of (pairs, images, dimensions)."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pairs.npz"
            np.savez(path, reference=reference, batch=batch, width=width, permutations=permutations)
            command = [str(self.python), "-c", THEIRS, str(path)]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [tuple(row) for row in json.loads(said.splitlines()[-1])]


def unit(points: np.ndarray) -> np.ndarray:
    return (points / np.linalg.norm(points, axis=-1, keepdims=True)).astype(np.float32)


def samples(images: int, dimensions: int, shift: float, generator: np.random.Generator) -> np.ndarray:
    """(2, images, dimensions) unit vectors of a reference and of a batch that lies `shift` to one side."""
    points = generator.normal(size=(2, images, dimensions))
    points[1, :, 0] += shift
    return unit(points)


def ours(pair: np.ndarray, permutations: int, draw: int = 0) -> tuple[float, float, float]:
    """Squared MMD, p-value and the kernel's width: every image a location of its own."""
    everyone = np.arange(2 * pair.shape[1])
    kernel = image_kernel(pair.reshape(len(everyone), -1), everyone, len(everyone))
    in_batch = everyone >= pair.shape[1]
    return *permutation_test(kernel.statistic, everyone, in_batch, permutations, draw)[:2], kernel.width


def by_features(images: int, dimensions: int = 512, permutations: int = 199) -> float:
    """p-value of as many images against as many, of one distribution, by random features."""
    pair = np.random.default_rng(2).standard_normal((2 * images, dimensions), np.float32)
    pair /= np.linalg.norm(pair, axis=1, keepdims=True)
    everyone = np.arange(2 * images)
    statistic = feature_kernel(pair, everyone, len(everyone)).statistic
    return permutation_test(statistic, everyone, everyone < images, permutations, 0)[1]


def embeddings(alibi: Alibi) -> None:
    pair = samples(IMAGES, DIMENSIONS, 0.1, np.random.default_rng(0))
    mine, theirs = [], []
    for _ in range(ROUNDS):
        start = time.process_time()
        found, p_value, width = ours(pair, PERMUTATIONS)
        mine.append(time.process_time() - start)
        theirs += alibi(pair[:1], pair[1:], [width], PERMUTATIONS)
    expected, their_p = theirs[0][:2]
    assert abs(found - expected) < 1e-5, "the statistics must agree"
    report(
        f"drift of embeddings: squared MMD and p-value, {IMAGES} x {DIMENSIONS} against {IMAGES}",
        statistics.median(mine),
        statistics.median(seconds for _, _, seconds in theirs),
        peer_name=ALIBI,
        aim=40,
        agreement=f"statistics differ by {abs(found - expected):.0e} (theirs is float32); "
        f"p {p_value:.3f} and {their_p:.3f} by different exchanges",
        memory={
            "1x": peak_memory(partial(ours, pair, PERMUTATIONS)),
            "10x, by random features": peak_memory(partial(by_features, 10 * IMAGES, DIMENSIONS, PERMUTATIONS)),
        },
        note=f"{PERMUTATIONS} permutations; the peer in an environment of its own",
    )


def false_alarms(alibi: Alibi) -> None:
    """Share of pairs of samples of one distribution that are called drifted."""
    generator = np.random.default_rng(1)
    pairs = np.stack([samples(SMALL, 16, 0, generator) for _ in range(PAIRS)])
    found = [ours(pair, 199, draw) for draw, pair in enumerate(pairs)]
    theirs = alibi(pairs[:, 0], pairs[:, 1], [width for _, _, width in found], 199)
    rate = float(np.mean([p < ALPHA for _, p, _ in found]))
    report(
        f"false alarms at {ALPHA} over {PAIRS} pairs of equal distribution, {SMALL} images against {SMALL}",
        rate,
        float(np.mean([p < ALPHA for _, p, _ in theirs])),
        peer_name=ALIBI,
        unit="of pairs",
        aim="at most 0.05, and 0.01 for chance",
        met=rate <= ALPHA + 0.01,
        agreement=f"statistics within {max(abs(a[0] - b[0]) for a, b in zip(found, theirs, strict=True)):.0e}",
        note="199 permutations; the peer leaves out what was observed, so that its p can be 0",
    )


def at_scale() -> None:
    start = time.process_time()
    p_value = by_features(100_000)
    spent = time.process_time() - start
    memory = {str(n): peak_memory(partial(by_features, n)) for n in (10_000, 100_000)}
    report(
        "drift of embeddings, 100,000 x 512 against 100,000, by random features",
        spent,
        None,
        peer_name=ALIBI,
        aim="works within 4 GiB",
        met=max(memory.values()) < 4096,
        agreement=f"p {p_value:.3f}, of one distribution",
        memory=memory,
        note="199 permutations; the peer would hold a kernel of 160 GB",
    )


def scores() -> None:
    """Kolmogorov-Smirnov distance of scores that have ties; every image a location of its own."""

    def tested(values: np.ndarray) -> tuple[float, float]:
        everyone = np.arange(len(values))
        in_batch = everyone < len(values) // 2
        return permutation_test(ks_parts(values), everyone, in_batch, PERMUTATIONS, 0)[:2]

    def exchanged(values: np.ndarray) -> tuple[float, float]:
        found = stats.permutation_test(
            np.split(values, 2),
            lambda a, b: stats.ks_2samp(a, b, method="asymp").statistic,
            n_resamples=PERMUTATIONS,
            alternative="greater",
            rng=0,
        )
        return float(found.statistic), float(found.pvalue)

    def drawn(images: int) -> np.ndarray:
        generator = np.random.default_rng(3)
        return np.concatenate([generator.beta(4, 2, images), generator.beta(4.2, 2, images)]).round(2)

    turn, mine, theirs = in_turn(partial(tested, drawn(IMAGES)), partial(exchanged, drawn(IMAGES)), ROUNDS)
    start = time.process_time()
    formula = stats.ks_2samp(*np.split(drawn(IMAGES), 2))
    spent = time.process_time() - start
    assert abs(mine[0] - theirs[0]) < 1e-12, "the distances must agree"
    report(
        f"drift of scores: Kolmogorov-Smirnov distance and p-value, {IMAGES} against {IMAGES}",
        turn.ours,
        turn.peer,
        peer_name="SciPy permutation_test of ks_2samp",
        aim=4,
        agreement=f"distances differ by {abs(mine[0] - theirs[0]):.0e}; "
        f"p {mine[1]:.3f} and {theirs[1]:.3f} by different exchanges",
        memory={size: peak_memory(partial(tested, drawn(n))) for size, n in (("1x", IMAGES), ("10x", 10 * IMAGES))},
        note=f"{PERMUTATIONS} permutations; ks_2samp's own p, {formula.pvalue:.3f} in {spent:.4f} core-s, "
        "is for values without ties and images that are independent",
    )


def main() -> None:
    alibi = Alibi()
    embeddings(alibi)
    false_alarms(alibi)
    at_scale()
    scores()


if __name__ == "__main__":
    main()
