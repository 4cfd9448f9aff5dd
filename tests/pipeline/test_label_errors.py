from __future__ import annotations

import importlib.util
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
from cleanlab.rank import get_label_quality_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from sklearn.isotonic import IsotonicRegression

from pipeline import label_errors, masks, matching, schema
from pipeline.label_errors import Found, badly_outlined, suspicions, wrong_classes
from pipeline.models.probe import Embeddings

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


def find(
    tables, models: pa.Table, truth: pa.Table, splits: pa.Table, trained: list[str], masks: pa.Table | None = None
) -> list[dict]:
    images = tables.images(splits["image_id"].to_pylist())
    masks = schema.table("masks").empty() if masks is None else masks
    classes = ["cat", "dog"]
    return label_errors.find_boxes(models, masks, truth, images, splits, trained, classes).to_pylist()


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


FEW = st.integers(2, 40)


def scored(generator: np.random.Generator, count: int) -> tuple[np.ndarray, ...]:
    """Shares beyond and short, and scores that know something of them, with ties."""
    beyond, short = generator.beta(1, 5, (2, count)).round(2) / 2
    return beyond, short, (1 - beyond - short + generator.normal(0, 0.1, count)).round(1)


@settings(deadline=None)
@given(FEW, st.integers(0, 999))
def test_of_masks_only_the_order_of_scores_counts_and_neither_that_of_rows(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    beyond, short, score = scored(generator, count)
    expected = badly_outlined(beyond, short, score)
    assert (expected >= 0).all() and (expected <= 1).all()
    for change in (lambda s: s**3, lambda s: np.exp(5 * s) + 7):
        np.testing.assert_allclose(badly_outlined(beyond, short, change(score)), expected, atol=1e-9)
    order = generator.permutation(count)
    np.testing.assert_allclose(badly_outlined(beyond[order], short[order], score[order]), expected[order], atol=1e-9)


@settings(deadline=None)
@given(FEW, st.integers(0, 999))
def test_suspicion_of_masks_is_what_markov_leaves_as_far_as_the_score_counts(count: int, seed: int) -> None:
    beyond, short, score = scored(np.random.default_rng(seed), count)
    regression = IsotonicRegression()
    against = np.zeros(count)
    for apart in (beyond, short):
        usual = 1 - regression.fit_transform(score, 1 - apart)
        against = np.maximum(
            against, [max(0.0, 1 - u / a) if a > 0 else 0.0 for u, a in zip(usual, apart, strict=True)]
        )
    worth = regression.fit_transform(score, 1 - beyond - short)
    expected = worth * against + (1 - worth) * np.average(against, weights=worth)
    np.testing.assert_allclose(badly_outlined(beyond, short, score), expected, atol=1e-9)


def test_a_model_that_always_draws_too_wide_doubts_nobody_but_whoever_differs_more() -> None:
    generator = np.random.default_rng(0)
    beyond, short, score = np.full(200, 0.01), generator.uniform(0.2, 0.3, 200), generator.random(200)
    assert badly_outlined(beyond, short, score).max() < 0.5
    short[7] = 0.9
    found = badly_outlined(beyond, short, score)
    assert found.argmax() == 7 and found[7] > 0.4 > 2 * np.delete(found, 7).max()
    assert badly_outlined(np.zeros(5), np.zeros(5), np.ones(5)).max() == 0


def test_of_masks_nothing_said_or_nothing_alike() -> None:
    nothing = np.zeros(0)
    assert len(badly_outlined(nothing, nothing, nothing)) == 0
    np.testing.assert_array_equal(badly_outlined(np.ones(3), np.zeros(3), np.ones(3)), np.zeros(3))


def outlined(tables, wrong: str | None) -> tuple[pa.Table, pa.Table, list[str]]:
    """Sixty right masks of cats and a model's, a pixel wider; the 61st is as `wrong` says. Both in the same boxes."""
    ids = [f"i{k:02d}" for k in range(61)]
    right, wider = np.zeros((2, 100, 100), bool)
    right[20:60, 20:60], wider[19:61, 19:61] = True, True
    drawn = [masks.encode(right)] * 61
    if wrong is not None:
        drawn[60] = wrong
    truth = tables.truth([(i, "cat", (20, 20, 60, 60)) for i in ids], mask=drawn)
    said = {"annotation_id": truth["annotation_id"], "image_id": truth["image_id"], "batch": truth["batch"]}
    said |= {
        "producer": ["s@1#0"] * 61,
        "mask": [masks.encode(wider)] * 61,
        "area": [42 * 42] * 61,
        "score": [0.9] * 61,
    }
    return truth, schema.table("masks").from_columns(said), ids


def half() -> str:
    """The left half of the mask of `outlined`."""
    cut = np.zeros((100, 100), bool)
    cut[20:60, 20:40] = True
    return masks.encode(cut)


def test_a_mask_is_doubted_with_what_a_model_draws_in_its_box(tables) -> None:
    truth, said, ids = outlined(tables, half())
    nothing = tables.boxes([])
    (row,) = find(tables, nothing, truth, tables.splits(ids), [], said)
    assert (row["error"], row["model"], row["annotation_id"]) == (
        "badly_outlined",
        "s@1#0",
        truth["annotation_id"][60].as_py(),
    )
    assert [row[k] for k in (*schema.CORNERS, "suggested")] == [19, 19, 61, 61, "cat"] and row["mask"] == said["mask"][
        60
    ].as_py()
    overlap = np.array(
        [coco_iou(*pair) for pair in zip(truth["mask"].to_pylist(), said["mask"].to_pylist(), strict=True)]
    )
    # Here people fall short only. All scores are equal, so what is usual is the mean.
    apart = 1 - overlap
    against = np.maximum(0, 1 - apart.mean() / apart)
    assert row["suspicion"] == pytest.approx(overlap.mean() * against[60] + apart.mean() * against.mean())
    assert find(tables, nothing, outlined(tables, None)[0], tables.splits(ids), [], said) == []
    assert find(tables, nothing, truth, tables.splits(ids, "train"), ["s@1#0"], said) == []
    assert len(find(tables, nothing, truth, tables.splits(ids, "train"), [], said)) == 1


def coco_iou(a: str, b: str) -> float:
    """By pycocotools itself."""
    one, other = ({"size": [100, 100], "counts": c.encode()} for c in (a, b))
    return float(coco.iou([one], [other], [0])[0, 0])


def test_a_mask_in_a_box_that_is_wrong_itself_is_not_doubted_too(tables) -> None:
    truth, said, ids = outlined(tables, half())
    boxes = [(i, "cat", (20, 20, 60, 60) if i != "i60" else (42, 20, 82, 60), 0.8) for i in ids]
    found = find(tables, tables.boxes(boxes), truth, tables.splits(ids), [], said)
    assert [(r["error"], r["image_id"]) for r in found] == [("badly_located", "i60")]


def test_crowds_and_ignore_regions_have_no_outline_to_doubt(tables) -> None:
    truth, said, ids = outlined(tables, half())
    place = truth.column_names.index("ignore")
    aside = truth.set_column(place, "ignore", [[False] * 60 + [True]])
    assert find(tables, tables.boxes([]), aside, tables.splits(ids), [], said) == []


def made_up_classes(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    true = generator.integers(0, 3, 300)
    given = np.where(generator.random(300) < 0.1, (true + 1) % 3, true)
    logits = generator.normal(0, 1, (300, 3)) + 3 * np.eye(3)[true]
    shares = np.exp(logits)
    return given, shares / shares.sum(axis=1, keepdims=True), given != true


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9999))
def test_wrong_classes_are_those_of_cleanlab_whatever_classes_are_absent(seed: int) -> None:
    from cleanlab.filter import find_label_issues

    given, shares, wrong = made_up_classes(seed)
    found = wrong_classes(given, shares)
    np.testing.assert_array_equal(found, find_label_issues(given, shares, n_jobs=1))
    assert (found & wrong).sum() > 0.6 * max(found.sum(), wrong.sum())
    gapped = np.insert(shares, 1, 0.0, axis=1)  # a class of the ontology that nobody gave
    np.testing.assert_array_equal(wrong_classes(given + (given > 0), gapped), found)
    assert not wrong_classes(np.zeros(4, np.int64), np.full((4, 3), 1 / 3)).any()


NAMES = ["a", "b", "c"]


def tagged(tables, shares: np.ndarray, ids: list[str]) -> pa.Table:
    order = np.argsort(-shares, axis=1)
    said = [(i, NAMES[k], None, shares[n, k]) for n, i in enumerate(ids) for k in order[n]]
    more = {"probability": [r[3] for r in said], "rank": [1, 2, 3] * len(ids)}
    return tables.boxes(said, "z@1#0", "tags", **more)


def listed(tables, tags: pa.Table, truth: pa.Table, embeddings: Embeddings | None = None) -> list[dict]:
    ids = truth["image_id"].unique().to_pylist()
    embeddings = embeddings or Embeddings("e@1#0", (), np.zeros((0, 2), np.float32))
    groups = {i: i for i in ids}
    return label_errors.find_classes(tags, truth, tables.splits(ids), NAMES, embeddings, groups).to_pylist()


def test_wrong_classes_of_images_are_listed_with_a_better_one(tables) -> None:
    given, shares, _ = made_up_classes(0)
    ids = [f"i{k:03d}" for k in range(300)]
    truth = tables.truth([(i, NAMES[k], None) for i, k in zip(ids, given, strict=True)])
    found = listed(tables, tagged(tables, shares, ids), truth)
    expected = np.flatnonzero(wrong_classes(given, shares.astype(np.float32).astype(np.float64)))
    assert sorted(r["image_id"] for r in found) == [ids[k] for k in expected]
    for row in found:
        k = int(row["image_id"][1:])
        assert row["class_name"] == NAMES[given[k]] and row["suggested"] == NAMES[shares[k].argmax()]
        assert row["suspicion"] == pytest.approx(1 - shares[k, given[k]], abs=1e-6) and row["x1"] is None
    quality = get_label_quality_scores(given, shares, method="self_confidence")
    assert [1 - r["suspicion"] for r in found] == pytest.approx(quality[expected].tolist(), abs=1e-6)


def test_a_probe_judges_what_it_did_not_learn_where_it_agrees_more_with_people(tables) -> None:
    """Vectors tell the classes apart; tags know nothing."""
    generator = np.random.default_rng(0)
    true = generator.integers(0, 3, 300)
    wrong = generator.random(300) < 0.1
    given = np.where(wrong, (true + 1) % 3, true)
    vectors = (np.eye(3)[true] + generator.normal(0, 0.25, (300, 3))).astype(np.float32)
    ids = [f"i{k:03d}" for k in range(300)]
    # An image with two classes and one that nobody embedded are passed over.
    truth = [(i, NAMES[k], None) for i, k in zip(ids, given, strict=True)]
    truth = tables.truth([*truth, ("two", "a", None), ("two", "b", None), ("unseen", "a", None)])
    embeddings = Embeddings("e@1#0", (*ids, "two"), np.concatenate([vectors, np.ones((1, 3), np.float32)]))
    guesses = tagged(tables, generator.dirichlet(np.ones(3), 300), ids)
    found = listed(tables, guesses, truth, embeddings)
    assert {r["model"].split("@")[0] for r in found} == {"out_of_fold_probe"}
    suspects = np.isin(ids, [r["image_id"] for r in found])
    assert (suspects & wrong).sum() > 0.9 * wrong.sum() and (suspects & wrong).sum() > 0.6 * suspects.sum()
    better = tagged(tables, 0.9 * np.eye(3)[given] + 0.1 / 3, ids)
    assert listed(tables, better, truth, embeddings) == []  # they agree with all labels, so they judge
    few = schema.where_in(better, "image_id", ids[:60])  # they agree with all, but of few images: the probe judges
    assert listed(tables, few, truth, embeddings) == found


def test_with_few_labels_only_tags_judge_and_without_either_nobody_does(tables) -> None:
    ids = [f"i{k}" for k in range(8)]
    truth = tables.truth([(i, NAMES[k % 2], None) for k, i in enumerate(ids)])
    embeddings = Embeddings("e@1#0", tuple(ids), np.eye(8, dtype=np.float32))
    shares = np.full((8, 3), 0.1)
    shares[np.arange(8), np.array([1, 1, 0, 1, 0, 1, 0, 1])] = 0.8
    (row,) = listed(tables, tagged(tables, shares, ids), truth, embeddings)
    assert (row["image_id"], row["model"]) == ("i0", "z@1#0")
    assert listed(tables, schema.table("tags").empty(), truth, embeddings) == []
