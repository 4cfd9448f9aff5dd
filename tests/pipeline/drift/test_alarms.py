from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline import schema
from pipeline.config import DriftConfig, parse_config
from pipeline.drift import alarms
from pipeline.drift.kernel import image_kernel
from pipeline.drift.permutations import auc_parts, permutation_test
from pipeline.errors import ConfigError


def rows(batch: str, *p_values: float | None) -> list[dict[str, Any]]:
    return [
        {"batch": batch, "test": f"t{k}", "subject": "s", "p_value": p, "drifted": p is not None and p < 0.01,
         "alpha": 0.01, "images": 1, "reference_images": 1, "note": ""}
        for k, p in enumerate(p_values)
    ]  # fmt: skip


def test_a_batch_has_one_p_value_and_one_part_of_the_allowance() -> None:
    config = DriftConfig(alarm_rate=0.04, horizon=2)
    table = rows("c", 0.5, 0.006, None) + rows("a", 0.011) + rows("b", None) + rows("d", 0.02, 0.3)
    found = {r["batch"]: r for r in alarms(schema.table("drift").from_rows(table), config).to_pylist()}
    assert [found[b]["position"] for b in "abcd"] == [1, 2, 3, 4]
    assert [found[b]["stretch"] for b in "abcd"] == [1, 1, 2, 2]
    assert [found[b]["spent"] for b in "abcd"] == pytest.approx([0.02, 0.04, 0.02, 0.04])
    assert found["c"]["p_value"] == pytest.approx(0.012) and found["c"]["test"] == "t1"
    assert [found[b]["alarm"] for b in "abcd"] == [True, False, True, False]
    assert found["b"]["p_value"] is None and found["b"]["test"] is None
    assert [found[b]["drifted"] for b in "abcd"] == [False, False, True, False]


def test_tests_that_cannot_alarm_are_not_counted() -> None:
    config = DriftConfig(alarm_rate=0.04, horizon=2)
    table = rows("a", 0.015, 0.5, 0.4)
    table[1]["least_p"], table[2]["least_p"] = 1 / 3, 0.02
    (found,) = alarms(schema.table("drift").from_rows(table), config).to_pylist()
    assert found["tests"] == 2 and found["p_value"] == pytest.approx(0.03) and not found["alarm"]
    table[2]["least_p"] = 0.021
    (found,) = alarms(schema.table("drift").from_rows(table), config).to_pylist()
    assert found["tests"] == 1 and found["alarm"]


def test_no_rows_give_no_alarms() -> None:
    assert alarms(schema.table("drift").empty(), DriftConfig()).num_rows == 0


@pytest.mark.parametrize("settings", [{"alarm_rate": 0.001}, {"horizon": 10_000}, {"most_permutations": 1000}])
def test_settings_under_which_nothing_can_alarm_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"no alarm is possible.*set most_permutations to"):
        parse_config({"name": "x", "classes": {"a": {}}, "source": {"uri": "s"}, "drift": settings})


def streams(count: int, shift: float, config: DriftConfig) -> tuple[float, float]:
    """Share of streams of 24 batches with any alarm, and with any batch called drifted by a test alone.

    All batches of a stream are compared with one reference, by two tests.
    """
    rng = np.random.default_rng(7)
    m, n = 6, 18
    everyone, side = np.arange(m + n), np.arange(m + n) < m
    alarmed = drifted = 0
    for stream in range(count):
        reference, tested = rng.normal(size=(n, 3)), []
        for batch in range(24):
            points = np.concatenate([rng.normal(size=(m, 3)) + shift * (batch >= 12), reference])
            kernel = image_kernel(points.astype(np.float32), everyone, m + n).statistic(everyone)
            p_values = [
                permutation_test(s, everyone, side, config.permutations, 24 * stream + batch, config.most_permutations)[
                    1
                ]
                for s in (kernel, auc_parts(points[:, 1]))
            ]
            tested += rows(f"{batch:02d}", *p_values)
        table = alarms(schema.table("drift").from_rows(tested), config)
        alarmed += any(table.column("alarm").to_pylist())
        drifted += any(table.column("drifted").to_pylist())
    return alarmed / count, drifted / count


@pytest.mark.slow
def test_of_500_streams_of_24_batches_without_drift_no_more_than_the_rate_alarm() -> None:
    config = DriftConfig(permutations=60, most_permutations=3000, alarm_rate=0.1, horizon=24)
    alarmed, drifted = streams(500, 0.0, config)
    assert alarmed * 500 <= stats.binom.ppf(0.999, 500, config.alarm_rate)
    assert alarmed <= config.alarm_rate, alarmed
    assert drifted > 0.2, "each test alone would have cried wolf"


def test_a_stream_that_drifts_alarms() -> None:
    config = DriftConfig(permutations=60, most_permutations=3000, alarm_rate=0.1, horizon=24)
    alarmed, _ = streams(2, 2.0, config)
    assert alarmed == 1.0
