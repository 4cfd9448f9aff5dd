from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline import schema
from pipeline.config import DriftConfig, parse_config
from pipeline.drift import alarms, standing
from pipeline.drift.kernel import image_kernel
from pipeline.drift.permutations import auc_parts, permutation_test
from pipeline.errors import ConfigError

START = datetime(2026, 11, 27, tzinfo=UTC)
DEFAULT = DriftConfig()
NONE = schema.table("alarms").empty()


def rows(batch: str, *p_values: float | None, contents: str = "", reference: str = "r") -> list[dict[str, Any]]:
    return [
        {"batch": batch, "test": f"t{k}", "subject": "s", "p_value": p, "drifted": p is not None and p < 0.01,
         "alpha": 0.01, "images": 1, "reference_images": 1, "note": "", "contents": contents or batch,
         "reference": reference}
        for k, p in enumerate(p_values)
    ]  # fmt: skip


def look(tests: list[dict[str, Any]], before: pa.Table = NONE, config: DriftConfig = DEFAULT, day: int = 0) -> pa.Table:
    return alarms(schema.table("drift").from_rows(tests), before, config, START + timedelta(days=day))


def test_a_batch_has_one_p_value_and_one_part_of_the_allowance() -> None:
    config = DriftConfig(alarm_rate=0.04, horizon=2)
    table = rows("c", 0.5, 0.006, None) + rows("a", 0.011) + rows("b", None) + rows("d", 0.02, 0.3)
    found = {r["batch"]: r for r in look(table, config=config).to_pylist()}
    assert list(found) == ["a", "c", "d"], "a batch that nothing can be said of is not looked at"
    assert [found[b]["position"] for b in "acd"] == [1, 2, 3]
    assert [found[b]["stretch"] for b in "acd"] == [1, 1, 2]
    assert [found[b]["spent"] for b in "acd"] == pytest.approx([0.02, 0.04, 0.02])
    assert found["c"]["p_value"] == pytest.approx(0.012) and found["c"]["test"] == "t1"
    assert [found[b]["alarm"] for b in "acd"] == [True, True, False]
    assert [found[b]["drifted"] for b in "acd"] == [False, True, False]


def test_tests_that_cannot_alarm_are_not_counted() -> None:
    config = DriftConfig(alarm_rate=0.04, horizon=2)
    table = rows("a", 0.015, 0.5, 0.4)
    table[1]["least_p"], table[2]["least_p"] = 1 / 3, 0.02
    (found,) = look(table, config=config).to_pylist()
    assert found["tests"] == 2 and found["p_value"] == pytest.approx(0.03) and not found["alarm"]
    table[2]["least_p"] = 0.021
    (found,) = look(table, config=config).to_pylist()
    assert found["tests"] == 1 and found["alarm"]


def test_a_first_look_stands_whatever_later_tests_say() -> None:
    first = look(rows("a", 1e-6) + rows("b", 0.4))
    assert first.column("alarm").to_pylist() == [True, False]
    later = look(rows("a", 0.9, reference="more") + rows("b", 1e-6, reference="more") + rows("c", 0.2), first, day=1)
    assert later.slice(0, 2).equals(first)
    (new,) = later.slice(2).to_pylist()
    assert new["batch"] == "c" and new["position"] == 3 and new["at"] == START + timedelta(days=1)
    # A run that repeats one, or goes on after a crash, adds nothing; nor does a batch that has left the store.
    assert look(rows("c", 0.2), later, day=2).equals(later)
    assert look([], later, day=2).equals(later)


def test_looks_in_turn_are_looks_at_once_in_all_but_the_time() -> None:
    days = [rows("a", 0.3), rows("b", 1e-7), rows("c", 0.2)]
    turns = NONE
    for day in range(3):
        turns = look([r for tests in days[: day + 1] for r in tests], turns, day=day)
    assert turns.drop_columns(["at"]).equals(look([r for tests in days for r in tests]).drop_columns(["at"]))


def test_a_batch_is_looked_at_once_it_can_be_and_anew_when_its_images_change() -> None:
    waiting = look(rows("a", None, None) + rows("b", 0.5))
    assert waiting.column("batch").to_pylist() == ["b"]
    seen = look(rows("a", 0.6, None) + rows("b", 1e-7, contents="other"), waiting, day=1)
    assert seen.column("batch").to_pylist() == ["b", "a", "b"]
    assert seen.column("alarm").to_pylist() == [False, False, True]
    assert seen.column("contents").to_pylist() == ["b", "a", "other"]
    assert schema.table("alarms").duplicate_keys(seen) == 0
    # The images are those of the first look again: that one stands.
    assert look(rows("b", 1e-9), seen, day=2).equals(seen)


@given(st.lists(st.tuples(st.sampled_from([0.01, 0.05, 0.2]), st.integers(1, 30)), min_size=1, max_size=60))
def test_a_stretch_never_spends_more_than_the_rate_however_settings_change(settings: list[tuple[float, int]]) -> None:
    table, rates = NONE, []
    for number, (rate, horizon) in enumerate(settings):
        config = DriftConfig(alarm_rate=rate, horizon=horizon)
        table = look(rows(f"{number:03d}", 0.5), table, config, day=number)
        rates.append(rate)
    found = table.to_pylist()
    for stretch in range(1, found[-1]["stretch"] + 1):
        mine = [k for k, r in enumerate(found) if r["stretch"] == stretch]
        assert sum(found[k]["level"] for k in mine) <= rates[mine[-1]] * (1 + 1e-6)
        assert found[mine[-1]]["spent"] == pytest.approx(sum(found[k]["level"] for k in mine))


def test_a_table_of_an_earlier_version_is_begun_anew() -> None:
    old = NONE.append_column("x", pa.array([], pa.int8())).drop_columns(["x", "contents", "reference", "at"])
    row = {"batch": "a", "position": 1, "stretch": 1, "tests": 0, "p_value": None, "level": 0.1, "spent": 0.1,
           "alarm": True, "test": None, "subject": None, "drifted": False}  # fmt: skip
    stored = schema.table("alarms").upgraded(pa.Table.from_pylist([row], schema=old.schema))
    assert look(rows("a", 0.5), stored).equals(look(rows("a", 0.5)))


def test_drift_of_an_earlier_version_waits_until_it_is_made_again() -> None:
    tests = [row | {"contents": None} for row in rows("a", 1e-9)]
    assert look(tests).num_rows == 0


def test_an_alarm_stands_until_the_batch_is_repaired() -> None:
    broken, fine = rows("a", 0.0, contents="broken"), rows("b", 0.9)
    looks = look(broken + fine)
    assert standing(looks, schema.table("drift").from_rows(broken + fine))["batch"].to_pylist() == ["a"]
    repaired = rows("a", 0.8, contents="repaired") + fine
    later = look(repaired, looks, day=1)
    tests = schema.table("drift").from_rows(repaired)
    assert later["alarm"].to_pylist() == [True, False, False] and standing(later, tests).num_rows == 0
    assert standing(later, schema.table("drift").from_rows(broken)).num_rows == 1, "as it was then, it alarms again"


def test_no_rows_give_no_alarms() -> None:
    assert look([]).num_rows == 0


@pytest.mark.parametrize("settings", [{"alarm_rate": 0.001}, {"horizon": 10_000}, {"most_permutations": 1000}])
def test_settings_under_which_nothing_can_alarm_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"no alarm is possible.*set most_permutations to"):
        parse_config({"name": "x", "classes": {"a": {}}, "source": {"uri": "s"}, "drift": settings})


def streams(count: int, shift: float, config: DriftConfig) -> tuple[float, float]:
    """Share of streams of 24 batches with any alarm, and with any batch called drifted by a test alone.

    Batches are compared by two tests with a reference that two locations of each earlier batch have joined.
    """
    rng = np.random.default_rng(7)
    m = 6
    alarmed = drifted = 0
    for stream in range(count):
        reference, table = rng.normal(size=(18, 3)), NONE
        for batch in range(24):
            arrived = rng.normal(size=(m, 3)) + shift * (batch >= 12)
            points = np.concatenate([arrived, reference])
            everyone, side = np.arange(len(points)), np.arange(len(points)) < m
            kernel = image_kernel(points.astype(np.float32), everyone, len(points)).statistic
            p_values = [
                permutation_test(s, everyone, side, config.permutations, 24 * stream + batch, config.most_permutations)[
                    1
                ]
                for s in (kernel, auc_parts(points[:, 1]))
            ]
            table = look(rows(f"{batch:02d}", *p_values), table, config)
            reference = np.concatenate([reference, arrived[:2]])
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


def grown_references(count: int, days: int) -> np.ndarray:
    """(days, days, count, 2) p-values [day, batch] of streams without drift, by two t tests, exact for normals.

    Of each batch of 8 locations half are labelled after its day and join the reference, which begins with 10; each
    day every batch there is yet is tested again, against the reference without its own.
    """
    rng = np.random.default_rng(11)
    start, batches = rng.normal(size=(10, count, 2)), rng.normal(size=(days, 8, count, 2))
    found = np.full((days, days, count, 2), np.nan)
    for day in range(days):
        for batch in range(day + 1):
            labelled = [batches[b, :4] for b in range(day) if b != batch]
            found[day, batch] = stats.ttest_ind(batches[batch], np.concatenate([start, *labelled]), axis=0).pvalue
    return found


def test_a_reference_that_grows_keeps_the_rate_only_because_first_looks_stand() -> None:
    count, days = 10_000, 12
    config = DriftConfig(alarm_rate=0.1, horizon=days)
    p_values = grown_references(count, days)
    alarm = np.minimum(1, 2 * p_values.min(axis=3)) <= config.alarm_rate / days  # never where there is no batch yet
    first = alarm[np.arange(days), np.arange(days)]
    assert first.any(axis=0).mean() <= config.alarm_rate, "the bound"
    assert alarm.any(axis=(0, 1)).mean() > 1.3 * config.alarm_rate, "of many looks the worst cries wolf"
    for stream in range(40):
        table = NONE
        for day in range(days):
            tests = [r for b in range(day + 1) for r in rows(f"{b:02d}", *p_values[day, b, stream].tolist())]
            table = look(tests, table, config, day)
        assert table.column("alarm").to_pylist() == first[:, stream].tolist()
