"""Do certificates keep their promise, and what do they cost in coverage? Simulated gold draws, in numbers.

A shape is a distribution of scores and of being right given the score, so that the precision above every
score is known. From it, gold (and other images, whose scores lay the grid) is drawn many times, a
threshold is chosen by each mode, and it is violated when the true precision there is below the target.
Coverage is the accepted share of answers as a share of the oracle's, who knows the shape.

Run: python benchmarks/trust.py [--draws 2000] [--mapie] [SHAPE ...]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from pipeline.config import TrustConfig
from pipeline.trust.certify import Design, certify

TARGET, DELTA, GOLD = 0.9, 0.1, (50, 200, 1000)
OTHERS = 200  # images whose scores lay the grid
POPULATION = 400_000  # images that the truth is measured on
LEAST = 10  # answers the naive rule wants
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Answers on `images` images: (n,) image, score and whether it is right."""

    image: NDArray[np.int64]
    score: Floats
    right: NDArray[np.bool_]
    images: int


@dataclass(frozen=True)
class Rule:
    """Accept what scores at least so much, the best so many of an image."""

    threshold: float
    most: float = np.inf


def logistic(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


Mode = Callable[[Sample, Sample], Rule | None]

# name -> (score of a uniform, precision of a score, answers an image, correlation within an image)
SHAPES: dict[str, tuple[Callable[[Floats], Floats], Callable[[Floats], Floats], float, float]] = {
    "calibrated": (lambda u: u**0.5, lambda s: s, 1.0, 0.0),
    "sharp": (lambda u: u, lambda s: logistic(12 * (s - 0.3)), 1.0, 0.0),
    "overconfident": (lambda u: u**0.2, lambda s: 0.6 + 0.39 * s**4, 1.0, 0.0),
    "plateau": (lambda u: u, lambda s: np.where(s > 0.4, 0.96, 0.5), 1.0, 0.0),
    "worst first": (lambda u: u, lambda s: np.where(s > 0.9, 0.8, np.where(s > 0.3, 0.99, 0.4)), 1.0, 0.0),
    "just below": (lambda u: u, lambda s: np.full_like(s, TARGET - 1e-3), 1.0, 0.0),
    "ties": (lambda u: np.ceil(4 * u) / 4, lambda s: 0.55 + 0.44 * s, 1.0, 0.0),
    "rare": (lambda u: u, lambda s: logistic(12 * (s - 0.3)), 0.15, 0.0),
    "correlated": (lambda u: u, lambda s: logistic(12 * (s - 0.3)), 3.0, 0.6),
    "all or none": (lambda u: u, lambda s: np.full_like(s, 0.94), 6.0, 0.98),
}


def draw(shape: str, images: int, generator: np.random.Generator) -> Sample:
    """Answers on so many images. Those of one image share a part of their luck; crowded ones have less of it."""
    score_of, precision_of, each, correlation = SHAPES[shape]
    luck = generator.normal(size=images)
    if each == 1:
        counts = np.ones(images, np.int64)
    elif correlation:
        # More answers on the unlucky images: the mean over images is not the mean over answers.
        counts = generator.poisson(each * np.exp(-0.3 * luck - 0.045))
    else:
        counts = (generator.random(images) < each).astype(np.int64)
    image = np.repeat(np.arange(images), counts)
    score = score_of(generator.random(len(image))).astype(np.float32).astype(np.float64)
    own = generator.normal(size=len(image))
    mixed = norm.cdf(np.sqrt(correlation) * luck[image] + np.sqrt(1 - correlation) * own)
    return Sample(image, score, mixed > 1 - precision_of(score), images)


class Truth:
    """Precision and coverage of any threshold and cap, from a large sample."""

    def __init__(self, shape: str) -> None:
        sample = draw(shape, POPULATION, np.random.default_rng(1))
        order = np.argsort(-sample.score, kind="stable")
        self.score, self.right, image = sample.score[order], sample.right[order], sample.image[order]
        by_image = np.argsort(image, kind="stable")
        first = np.searchsorted(image[by_image], image[by_image])
        self.rank = np.empty(len(order), np.int64)
        self.rank[by_image] = np.arange(len(order)) - first
        self.curves: dict[float, tuple[Floats, Floats]] = {}
        score, precision = self.curve(np.inf)
        last = np.append(score[1:] != score[:-1], True)
        safe = np.flatnonzero((precision > TARGET) & last)
        self.oracle = (safe[-1] + 1) / len(order) if len(safe) else 0.0
        # Sampling error of the population itself: a precision so near the target is not called below it.
        self.slack = 2 * np.sqrt(TARGET * (1 - TARGET) * max(1.0, SHAPES[shape][2]) / len(order))

    def curve(self, most: float) -> tuple[Floats, Floats]:
        """Falling scores of the best `most` answers of each image, and the precision down to each."""
        if most not in self.curves:
            kept = self.rank < most
            right = self.right[kept]
            self.curves[most] = self.score[kept], np.cumsum(right) / np.arange(1, len(right) + 1)
        return self.curves[most]

    def at(self, rule: Rule) -> tuple[float, float]:
        score, precision = self.curve(rule.most)
        accepted = int(np.searchsorted(-score, -rule.threshold, side="right"))
        return (float(precision[accepted - 1]) if accepted else 1.0), accepted / len(self.score)


def certified(gold: Sample, others: Sample, unit: str, method: str) -> Rule | None:
    """The rule that the pipeline would use."""
    config = TrustConfig(target=TARGET, delta=DELTA, unit=unit, method=method)  # type: ignore[arg-type]
    design = Design(others.image, others.score, np.ones(len(others.score), bool), others.images)
    trial = certify(gold.image, gold.score, gold.right, gold.images, design, config)
    if trial.chosen is None:
        return None
    most = np.inf if unit == "box" else float(trial.tally.most[trial.chosen])
    return Rule(float(trial.grid[trial.chosen]), most)


def naive(gold: Sample) -> Rule | None:
    """The lowest score at which at least ten answers are right often enough on gold: no guarantee."""
    order = np.argsort(-gold.score, kind="stable")
    precision = np.cumsum(gold.right[order]) / np.arange(1, len(order) + 1)
    last = np.append(gold.score[order][1:] != gold.score[order][:-1], True)[: len(order)]
    meets = np.flatnonzero((precision >= TARGET) & last & (np.arange(1, len(order) + 1) >= LEAST))
    return Rule(float(gold.score[order][meets[-1]])) if len(meets) else None


def peer(gold: Sample, others: Sample, method: str) -> Rule | None:
    """MAPIE's controller on the same gold and the same grid."""
    from mapie.risk_control import BinaryClassificationController

    config = TrustConfig(target=TARGET, delta=DELTA, unit="box")
    design = Design(others.image, others.score, np.ones(len(others.score), bool), others.images)
    grid = certify(gold.image, gold.score, gold.right, gold.images, design, config).grid
    controller = BinaryClassificationController(
        predict_function=lambda x: np.column_stack([1 - x, x]),
        risk="precision",
        target_level=TARGET,
        confidence_level=1 - DELTA,
        list_predict_params=grid,
        fwer_method=method,
    )
    controller.calibrate(gold.score, gold.right.astype(int))
    best = controller.best_predict_param
    return None if best is None else Rule(float(np.ravel(best)[0]))


MODES: dict[str, Mode] = {
    "image, fixed sequence": lambda gold, others: certified(gold, others, "image", "fixed_sequence"),
    "image, Holm": lambda gold, others: certified(gold, others, "image", "holm"),
    "box, fixed sequence": lambda gold, others: certified(gold, others, "box", "fixed_sequence"),
    "box, Holm": lambda gold, others: certified(gold, others, "box", "holm"),
    "naive": lambda gold, others: naive(gold),
}
PEERS: dict[str, Mode] = {
    "MAPIE, fixed sequence": lambda gold, others: peer(gold, others, "fixed_sequence"),
    "MAPIE, Holm": lambda gold, others: peer(gold, others, "bonferroni_holm"),
}


@dataclass(frozen=True)
class Outcome:
    """Of one mode, shape and size of gold: shares of all draws."""

    shape: str
    gold: int
    mode: str
    draws: int
    certified: float
    violated: float
    coverage: float  # as a share of the oracle's; NaN where the oracle accepts next to nothing
    seconds: float  # a draw

    @property
    def allowed(self) -> float:
        """delta and three standard errors of the simulation."""
        return DELTA + 3 * float(np.sqrt(DELTA * (1 - DELTA) / self.draws))


def simulate(shape: str, gold: int, draws: int, modes: dict[str, Mode], seed: int = 0) -> Iterator[Outcome]:
    """Every mode on the same draws."""
    truth, generator = Truth(shape), np.random.default_rng(seed)
    seen: dict[str, list[tuple[bool, bool, float]]] = {mode: [] for mode in modes}
    spent = dict.fromkeys(modes, 0.0)
    for _ in range(draws):
        sample, others = draw(shape, gold, generator), draw(shape, OTHERS, generator)
        for mode, choose in modes.items():
            start = time.perf_counter()
            rule = choose(sample, others) if len(sample.score) else None
            spent[mode] += time.perf_counter() - start
            precision, coverage = (1.0, 0.0) if rule is None else truth.at(rule)
            seen[mode].append((rule is not None, precision < TARGET - truth.slack, coverage))
    for mode, found in seen.items():
        sure, wrong, coverage = np.array(found, float).mean(axis=0)
        share = coverage / truth.oracle if truth.oracle > 0.01 else np.nan
        yield Outcome(shape, gold, mode, draws, sure, wrong, share, spent[mode] / draws)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--mapie", action="store_true", help="also MAPIE's controllers, where answers are independent")
    parser.add_argument("--gold", type=int, nargs="*", default=GOLD)
    given = parser.parse_args()
    print(f"target {TARGET}, delta {DELTA}, {given.draws} draws; a violation in more of them than allowed is marked !")
    heads = ("certified", "violated", "of the oracle's", "ms")
    print(f"{'shape':14s} {'gold':>5s} {'mode':22s} {heads[0]:>9s} {heads[1]:>9s} {heads[2]:>16s} {heads[3]:>6s}")
    for shape in given.shapes:
        independent = SHAPES[shape][3] == 0
        modes = {k: v for k, v in MODES.items() if not (independent and k.startswith("image"))}
        for gold in given.gold:
            for o in simulate(shape, gold, given.draws, modes | (PEERS if given.mapie and independent else {})):
                mark = "!" if o.violated > o.allowed else " "
                print(
                    f"{o.shape:14s} {o.gold:5d} {o.mode:22s} {o.certified:9.3f} {o.violated:8.3f}{mark} "
                    f"{o.coverage:16.3f} {o.seconds * 1000:6.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
