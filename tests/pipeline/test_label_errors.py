from __future__ import annotations

import importlib.util
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from pipeline import label_errors, matching, schema
from pipeline.label_errors import Found, suspicions, wrong_classes

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "label_errors.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("label_errors_benchmark", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["label_errors_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def rows(found: Found, order: np.ndarray) -> Found:
    return Found(*(getattr(found, f.name)[order] for f in fields(Found)))


@pytest.mark.parametrize("seed", [1, 2])
def test_planted_errors_stand_out(bench: ModuleType, seed: int) -> None:
    world = bench.made_up(1000, seed)
    areas = bench.areas_under_curve(world, bench.ours(world))
    assert min(areas.values()) >= 0.85, areas


def test_only_the_order_of_scores_counts(bench: ModuleType) -> None:
    world = bench.made_up(100)
    expected = suspicions(world.seen, world.truth, 0.5)
    for change in (np.sqrt, lambda s: s**5, lambda s: np.log(s) * 7 + 100):
        found = suspicions(replace(world.seen, score=change(world.seen.score)), world.truth, 0.5)
        for f in fields(found):
            np.testing.assert_allclose(getattr(found, f.name), getattr(expected, f.name), rtol=1e-12)


def test_neither_order_nor_blocks_count(bench: ModuleType, monkeypatch) -> None:
    world, generator = bench.made_up(100), np.random.default_rng(0)
    expected = suspicions(world.seen, world.truth, 0.5)
    monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", 7)
    seen, truth = (generator.permutation(len(o.score)) for o in (world.seen, world.truth))
    found = suspicions(rows(world.seen, seen), rows(world.truth, truth), 0.5)
    np.testing.assert_allclose(found.overlooked, expected.overlooked[seen], rtol=1e-12)
    np.testing.assert_allclose(found.located, expected.located[truth], rtol=1e-12)
    np.testing.assert_allclose(found.swapped, expected.swapped[truth], rtol=1e-12)


def scene(tables) -> tuple[pa.Table, pa.Table, list[str]]:
    """Forty right cats and dogs, and image x where people left one out, moved one, and called one by another name."""
    ids = [f"i{k}" for k in range(40)]
    right = [(i, c, (5, 5 + y, 25, 25 + y)) for i in ids for c, y in (("cat", 0), ("dog", 50))]
    said = [(*r, 0.8) for r in right]
    said += [
        ("x", "cat", (0, 0, 20, 20), 0.8),
        ("x", "cat", (40, 40, 60, 60), 0.8),
        ("x", "dog", (70, 70, 90, 90), 0.8),
    ]
    people = [*right, ("x", "cat", (49, 49, 69, 69)), ("x", "cat", (70, 70, 90, 90))]
    return tables.boxes(said), tables.truth(people), [*ids, "x"]


def find(tables, models: pa.Table, truth: pa.Table, splits: pa.Table, trained: list[str]) -> list[dict]:
    tags = schema.table("tags").empty()
    return label_errors.find(models, tags, truth, splits, trained, ["cat", "dog"], "detection").to_pylist()


def test_each_kind_is_named_with_what_speaks_against_it(tables) -> None:
    models, truth, ids = scene(tables)
    found = {r["error"]: r for r in find(tables, models, truth, tables.splits(ids), [])}
    assert sorted(found) == ["badly_located", "overlooked", "swapped"]
    assert [found["overlooked"][k] for k in ("image_id", "class_name", "x1", "x2")] == ["x", "cat", 0, 20]
    assert [found["badly_located"][k] for k in ("class_name", "x1", "x2")] == ["cat", 40, 60]
    assert [found["swapped"][k] for k in ("class_name", "suggested", "x1")] == ["cat", "dog", 70]
    # 40 of 42 cats of this score are found; the moved one shares 121 of 679 square pixels with where it is.
    assert found["overlooked"]["suspicion"] == pytest.approx(40 / 42)
    assert found["badly_located"]["suspicion"] == pytest.approx(40 / 42 * (1 - 121 / 679))
    people = set(truth["annotation_id"].to_pylist())
    assert found["swapped"]["annotation_id"] in people and found["overlooked"]["annotation_id"] not in people


def test_trained_models_do_not_judge_what_they_learnt(tables) -> None:
    models, truth, ids = scene(tables)
    assert find(tables, models, truth, tables.splits(ids, "train"), ["m@1#0"]) == []
    assert len(find(tables, models, truth, tables.splits(ids, "train"), [])) == 3
    assert find(tables, models, truth, tables.splits(ids, gold=False), []) == []


def test_ignore_regions_are_neither_wrong_nor_say_that_anything_is(tables) -> None:
    models, truth, ids = scene(tables)
    more = [("x", "dog", (0, 0, 100, 100))]
    truth = pa.concat_tables([truth, tables.truth(more, ignore=[True])])
    assert [r["error"] for r in find(tables, models, truth, tables.splits(ids), [])] == ["badly_located", "swapped"]


def test_nothing_said_or_nothing_drawn(tables) -> None:
    models, truth, ids = scene(tables)
    assert find(tables, models.slice(0, 0), truth, tables.splits(ids), []) == []
    assert find(tables, models, truth.slice(0, 0), tables.splits(ids), []) == []  # nothing says what a score is worth


def made_up_classes(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    true = generator.integers(0, 3, 300)
    given = np.where(generator.random(300) < 0.1, (true + 1) % 3, true)
    logits = generator.normal(0, 1, (300, 3)) + 3 * np.eye(3)[true]
    shares = np.exp(logits)
    return given, shares / shares.sum(axis=1, keepdims=True), given != true


@pytest.mark.parametrize("seed", range(3))
def test_wrong_classes_are_those_of_cleanlab_whatever_classes_are_absent(seed: int) -> None:
    from cleanlab.filter import find_label_issues

    given, shares, wrong = made_up_classes(seed)
    found = wrong_classes(given, shares)
    np.testing.assert_array_equal(found, find_label_issues(given, shares, n_jobs=1))
    assert (found & wrong).sum() > 0.6 * max(found.sum(), wrong.sum())
    gapped = np.insert(shares, 1, 0.0, axis=1)  # a class of the ontology that nobody gave
    np.testing.assert_array_equal(wrong_classes(given + (given > 0), gapped), found)
    assert not wrong_classes(np.zeros(4, np.int64), np.full((4, 3), 1 / 3)).any()


def test_wrong_classes_of_images_are_listed_with_a_better_one(tables) -> None:
    given, shares, _ = made_up_classes(0)
    names, ids = ["a", "b", "c"], [f"i{k:03d}" for k in range(300)]
    truth = tables.truth([(i, names[k], None) for i, k in zip(ids, given, strict=True)])
    order = np.argsort(-shares, axis=1)
    said = [(i, names[k], None, shares[n, k]) for n, i in enumerate(ids) for k in order[n]]
    more = {"probability": [r[3] for r in said], "rank": [1, 2, 3] * 300}
    tags = tables.boxes(said, "z@1#0", "tags", **more)
    found = label_errors.find(tags, tags, truth, tables.splits(ids), [], names, "classification").to_pylist()
    expected = np.flatnonzero(wrong_classes(given, shares.astype(np.float32).astype(np.float64)))
    assert sorted(r["image_id"] for r in found) == [ids[k] for k in expected]
    for row in found:
        k = int(row["image_id"][1:])
        assert row["class_name"] == names[given[k]] and row["suggested"] == names[shares[k].argmax()]
        assert row["suspicion"] == pytest.approx(1 - shares[k, given[k]], abs=1e-6) and row["x1"] is None
