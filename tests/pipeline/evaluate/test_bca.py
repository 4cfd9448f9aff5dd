"""Intervals by BCa, through evaluation and comparisons, against SciPy's on the same resamples."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import bootstrap

from pipeline.evaluate import compare, evaluate
from pipeline.evaluate.comparisons import LEAST_DRAWS
from pipeline.evaluate.rows import LEFT_OUT, Resampling, sample_weights

CLASSES, DRAWS = ["a", "b"], 300


def scipys(values: np.ndarray, draws: int) -> list[float]:
    """SciPy's BCa interval of a mean, of our resamples of all test images."""
    drawn = sample_weights(len(values), draws, "test", "all")[1:] @ values / len(values)
    known = SimpleNamespace(bootstrap_distribution=drawn)
    found = bootstrap((values,), np.mean, n_resamples=0, bootstrap_result=known, method="BCa", confidence_level=0.95)
    return list(found.confidence_interval)


def answers(tables, images: int, model: str, seed: int) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Rows, (n,) confidence and (n,) whether it is right; every image is an `a`."""
    generator = np.random.default_rng(seed)
    confidence, right = generator.beta(8, 1, images).astype(np.float32), generator.random(images) < 0.95
    rows = [(f"i{k:04d}", "a" if r else "b", None, c) for k, (r, c) in enumerate(zip(right, confidence, strict=True))]
    return tables.boxes(rows, model), confidence.astype(np.float64), right


def world(tables, images: int) -> tuple[pa.Table, pa.Table, object]:
    ids = [f"i{k:04d}" for k in range(images)]
    config = tables.config(CLASSES, task="classification", evaluation={"bootstrap": DRAWS, "interval": "bca"})
    return tables.truth([(i, "a", None) for i in ids]), tables.splits(ids), config


@pytest.mark.parametrize("images", [40, LEFT_OUT])
def test_of_evaluation(tables, images: int) -> None:
    truth, splits, config = world(tables, images)
    said, confidence, right = answers(tables, images, "m@1#0", 0)
    row = tables.metric(evaluate(said, truth, splits, tables.members({}), config)["evaluation"], "brier")
    assert [row["low"], row["high"]] == pytest.approx(scipys((confidence - right) ** 2, DRAWS))


@pytest.mark.parametrize("seed", range(3))
def test_groups_stand_in_for_single_images_where_there_are_many(seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(sigma=1.5, size=3 * LEFT_OUT + 7)
    resampling = Resampling(2000, 0.95, bca=True)
    weights = resampling.weights(len(values), "test", "all")
    found = resampling.limits([weights @ values / weights.sum(axis=1)])[0]
    expected = np.array(scipys(values, 2000))
    percentiles = np.quantile(weights[1:2001] @ values / len(values), [0.025, 0.975])
    assert np.abs(found - expected).max() < 0.1 * np.abs(percentiles - expected).max()


def test_of_comparisons(tables) -> None:
    truth, splits, config = world(tables, 64)  # a power of two: accuracies are exact, and so are ties
    (one, _, right), (two, _, other) = (answers(tables, 64, f"m{k}@1#0", k) for k in (1, 2))
    (row,) = compare(pa.concat_tables([one, two]), truth, splits, tables.members({}), config).to_pylist()
    expected = scipys(right.astype(float) - other, LEAST_DRAWS)
    assert [row["low"], row["high"]] == pytest.approx(expected)


def test_memory_does_not_grow_with_the_square_of_the_images() -> None:
    many = Resampling(10, 0.95, bca=True).weights(20_000, "test", "all")
    assert many.shape == (1 + 10 + LEFT_OUT, 20_000)
    assert (many[11:].sum(axis=0) == LEFT_OUT - 1).all()  # each image is left out once
