"""Linear probes: one on all labels, and a learning curve that says what more labels would buy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import TrainingConfig
from pipeline.ids import seed
from pipeline.intervals import wilson
from pipeline.models.probe import Probe

STRENGTHS = (0.1, 1.0, 10.0)  # inverse regularisation, on vectors of unit variance along the whole
FOLDS = 3
OUT_OF_FOLD = 5  # folds

Vectors = NDArray[np.float32]
Labels = NDArray[np.str_]


@dataclass(frozen=True)
class Labelled:
    """(n, d) vectors and their n class names."""

    vectors: Vectors
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, at: NDArray[np.int64]) -> Labelled:
        return Labelled(self.vectors[at], self.labels[at])


def fit(data: Labelled, encoder: str, draw: int) -> Probe:
    """Multinomial logistic regression, its strength chosen by cross-validation on `data` alone.

    A class of which `data` has no example is unknown to the probe.
    """
    from sklearn.linear_model import LogisticRegression

    classes = np.unique(data.labels)
    centre = data.vectors.mean(axis=0)
    # One factor for all axes keeps the encoder's geometry; per-axis scaling would blow up noise.
    spread = float(np.sqrt(np.mean((data.vectors - centre) ** 2))) or 1.0
    scaled = (data.vectors - centre).astype(np.float64) / spread
    weight, bias = np.zeros((len(classes), scaled.shape[1])), np.zeros(len(classes))
    if len(classes) > 1:
        strength = _strength(scaled, data.labels, draw)
        model = LogisticRegression(C=strength / scaled.shape[1], max_iter=1000).fit(scaled, data.labels)
        weight, bias = model.coef_, model.intercept_
        if len(classes) == 2:
            # scikit-learn keeps one row for two classes; half of it each way is the same softmax.
            weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / spread
    bias = bias - weight @ centre
    return Probe(tuple(str(c) for c in classes), weight.astype(np.float32), bias.astype(np.float32), encoder)


def _strength(vectors: NDArray[np.float64], labels: Labels, draw: int) -> float:
    """The strength with the best cross-validated likelihood; the middle one when there is too little data."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    folds = min(FOLDS, int(np.unique(labels, return_counts=True)[1].min()))
    if folds < 2:
        return STRENGTHS[1]
    split = StratifiedKFold(folds, shuffle=True, random_state=draw)
    scores = [
        cross_val_score(
            LogisticRegression(C=s / vectors.shape[1], max_iter=1000), vectors, labels, cv=split, scoring="neg_log_loss"
        ).mean()
        for s in STRENGTHS
    ]
    return STRENGTHS[int(np.argmax(scores))]


def out_of_fold(data: Labelled, groups: Sequence[str], encoder: str, draw: int) -> NDArray[np.float64]:
    """(n, classes) probabilities of the classes in order, each by a probe that learnt from other groups.

    Args:
        groups: (n,) what each belongs to; folds take groups whole and share the classes out evenly
            (scikit-learn's StratifiedGroupKFold).

    Returns:
        NaN for classes in fewer than OUT_OF_FOLD groups, of which a probe may see none, and for their images.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    classes, kind = np.unique(data.labels, return_inverse=True)
    _, group = np.unique(np.asarray(groups, str), return_inverse=True)
    pairs = np.unique(np.stack([kind, group]), axis=1)
    common = np.bincount(pairs[0], minlength=len(classes)) >= OUT_OF_FOLD
    said = np.full((len(data), len(classes)), np.nan)
    rows = np.flatnonzero(common[kind])
    if common.sum() < 2:
        return said
    folds = StratifiedGroupKFold(OUT_OF_FOLD, shuffle=True, random_state=draw)
    for learnt, asked in folds.split(rows, kind[rows], group[rows]):
        probe = fit(data.take(rows[learnt]), encoder, draw)
        if len(probe.classes) == common.sum():
            said[np.ix_(rows[asked], common)] = probe.probabilities(data.vectors[rows[asked]])
    return said


def learning_curve(
    train: Labelled, held_out: dict[str, Labelled], config: TrainingConfig, level: float, encoder: str
) -> list[dict[str, Any]]:
    """Points of accuracy over labels a class, as rows of `curves` without the model.

    Each budget is drawn `config.repeats` times, the same draws whatever the budget's neighbours. The value
    is the mean; the interval is for one such draw, so it covers both the luck of the draw (variance between
    draws) and that of the held-out images (binomial): Wilson's, with as many images as give that variance.
    The last point, at the mean number of labels a class, uses all.

    Args:
        held_out: by split name; splits without images give no points.
    """
    rows = []
    counts = np.unique(train.labels, return_counts=True)[1]
    budgets: list[int | None] = [b for b in sorted(set(config.budgets)) if b < counts.max(initial=0)]
    splits = {name: data for name, data in held_out.items() if len(data)}
    if not len(counts) or not splits:
        return []
    for budget in [*budgets, None]:
        repeats = config.repeats if budget is not None else 1
        draws = [seed("learning", config.seed, budget, i) for i in range(repeats)]
        probes = [fit(train.take(_draw(train.labels, budget, d)), encoder, d) for d in draws]
        for name, data in splits.items():
            value, low, high = _interval([accuracy(p, data) for p in probes], len(data), level)
            x = float(counts.mean()) if budget is None else float(budget)
            rows.append(
                {"split": name, "class_name": "all", "curve": "learning", "x": x, "y": value, "low": low, "high": high}
            )
    return rows


def _draw(labels: Labels, budget: int | None, draw: int) -> NDArray[np.int64]:
    """Up to `budget` rows of each class, without replacement; all rows when it is None."""
    if budget is None:
        return np.arange(len(labels))
    random = np.random.default_rng(draw)
    parts = [random.permutation(np.flatnonzero(labels == c))[:budget] for c in np.unique(labels)]
    return np.sort(np.concatenate(parts))


def accuracy(probe: Probe, data: Labelled) -> float:
    """Share of `data` whose most probable class is its label."""
    best = probe.probabilities(data.vectors).argmax(axis=1)
    return float(np.mean(np.array(probe.classes)[best] == data.labels))


def _interval(values: Sequence[float], images: int, level: float) -> tuple[float, float | None, float | None]:
    share = float(np.mean(values))
    binomial = share * (1 - share)
    between = float(np.var(values, ddof=1)) if len(values) > 1 else 0.0
    effective = binomial / (binomial / images + between) if binomial > 0 else float(images)
    low, high = wilson(share * effective, effective, level)
    return share, low, high
