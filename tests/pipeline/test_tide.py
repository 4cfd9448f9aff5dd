from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tide
from pipeline.matching import pairs

CLASSES = 3
BOX = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(4, 24), st.integers(4, 24))
OBJECT = st.tuples(st.integers(0, 2), st.integers(0, CLASSES - 1), BOX, st.sampled_from([False] * 5 + [True]))
SHIFT = st.tuples(*[st.integers(-5, 5)] * 4)
NEAR = st.tuples(st.integers(0, 11), SHIFT, st.integers(0, CLASSES - 1), st.booleans())
SCORE = st.integers(1, 12).map(lambda s: s / 16)
SCENE = st.tuples(
    st.lists(OBJECT, max_size=12),
    st.lists(st.tuples(NEAR, SCORE), max_size=20),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, CLASSES - 1), BOX, SCORE), max_size=8),
)


def arrays(scene: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Detections and objects as arrays, boxes as xyxy; detections lie near objects or anywhere."""
    objects, near, far = scene
    seen = []
    for (k, shift, other, keep), score in near:
        if k < len(objects):
            image, kind, box, _ = objects[k]
            moved = np.add(box, shift)
            seen.append((image, kind if keep else other, (*moved[:2], *np.maximum(moved[2:], 2)), score))
    seen += list(far)

    def columns(rows: list, width: int) -> list[np.ndarray]:
        return [np.array([r[c] for r in rows]) for c in range(width)]

    def table(rows: list) -> dict[str, np.ndarray]:
        image, kind, box, last = columns(rows, 4)
        box = box.reshape(-1, 4).astype(float)
        corners = np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1)
        return {"image": image.astype(int), "kind": kind.astype(int), "boxes": corners, "last": last}

    found, truth = table(seen), table(objects)
    order = np.argsort(found["image"], kind="stable")
    return {k: v[order] for k, v in found.items()}, truth


def judged_of(scene: Any, most: int = tide.MOST) -> tide.Judged:
    seen, truth = arrays(scene)
    score, ignore = seen["last"].astype(float), truth["last"].astype(bool)
    kept = tide.best_of_image(seen["image"], score, most)
    image, kind, boxes, score = seen["image"][kept], seen["kind"][kept], seen["boxes"][kept], score[kept]
    found = pairs(image, boxes, truth["image"], truth["boxes"], tide.NEAR, ignore)
    return tide.judge(image, kind, score, truth["kind"], ignore, found, CLASSES)


def ap_by_hand(kind: np.ndarray, score: np.ndarray, right: np.ndarray, order: np.ndarray, totals: list[int]) -> float:
    """Mean over classes with objects, in plain loops."""
    values = []
    for k, total in enumerate(totals):
        if not total:
            continue
        mine = sorted(np.flatnonzero(kind == k), key=lambda p: (-score[p], order[p]))
        hits = [bool(right[p]) for p in mine]
        precision = [sum(hits[: q + 1]) / (q + 1) for q in range(len(hits))]
        recall = [sum(hits[: q + 1]) / total for q in range(len(hits))]
        grid = [x / 100 for x in range(101)]
        values.append(
            np.mean([max([p for p, r in zip(precision, recall, strict=True) if r >= x] or [0]) for x in grid])
        )
    return float(np.mean(values)) if values else float("nan")


@settings(max_examples=150, deadline=None)
@given(SCENE)
def test_a_single_cost_is_the_ap_with_that_error_mended(scene: Any) -> None:
    judged = judged_of(scene)
    rise_seen, rise_truth = tide.single_costs(judged)
    totals = judged.totals.tolist()
    counted = ~judged.excused
    right = judged.error == tide.RIGHT

    def ap(kind: np.ndarray, right: np.ndarray, keep: np.ndarray, totals: list[int]) -> float:
        keep = keep & counted
        return ap_by_hand(kind[keep], judged.score[keep], right[keep], judged.turn[keep], totals)

    everything = np.ones(len(right), bool)
    before = ap(judged.kind, right, everything, totals)
    for p in range(len(right)):
        if right[p] or judged.excused[p] or not sum(totals):
            assert rise_seen[p] == 0
            continue
        kind, mended, keep = judged.kind.copy(), right.copy(), everything.copy()
        if judged.mends[p]:
            kind[p], mended[p] = judged.truth_kind[judged.target[p]], True
        else:
            keep[p] = False
        assert rise_seen[p] == pytest.approx(ap(kind, mended, keep, totals) - before, abs=1e-12)
    for q in range(len(judged.truth_kind)):
        if judged.found[q] or judged.truth_ignore[q]:
            assert rise_truth[q] == 0
            continue
        fewer = list(totals)
        fewer[judged.truth_kind[q]] -= 1
        after = ap(judged.kind, right, everything, fewer)
        assert rise_truth[q] == pytest.approx(after - before, abs=1e-12, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(SCENE)
def test_every_detection_and_object_is_accounted_for(scene: Any) -> None:
    judged = judged_of(scene)
    right = judged.error == tide.RIGHT
    assert (right == (judged.hit >= 0)).all() and not (right & judged.excused).any()
    assert len(set(judged.hit[right].tolist())) == right.sum() == judged.found.sum()
    assert (judged.truth_kind[judged.hit[right]] == judged.kind[right]).all()
    assert not (judged.found & judged.truth_ignore).any()
    mended = judged.target[judged.mends]
    assert len(set(mended.tolist())) == len(mended) and not judged.found[mended].any()
    assert sum(tide.counts(judged).values()) == (~right).sum() + judged.missed.sum()


def test_each_kind_by_hand() -> None:
    objects = [
        (0, 0, (10, 10, 20, 20), False),
        (0, 1, (50, 50, 20, 20), False),
        (0, 0, (10, 60, 20, 20), False),
        (0, 2, (80, 5, 15, 15), True),
        (1, 2, (0, 0, 10, 10), False),
    ]
    far = [
        (0, 0, (10, 10, 20, 20), 0.9),  # right
        (0, 0, (11, 10, 20, 20), 0.8),  # again
        (0, 0, (50, 50, 20, 21), 0.8),  # is of class 1
        (0, 0, (20, 60, 20, 20), 0.7),  # IoU 1/3
        (0, 1, (10, 35, 10, 10), 0.6),  # nothing there
        (0, 2, (82, 8, 8, 7), 0.6),  # in an ignore region
        (0, 2, (60, 50, 20, 20), 0.5),  # another class, and beside it
    ]
    judged = judged_of((objects, [], far))
    assert tide.counts(judged) == {
        "classification": 1,
        "localisation": 1,
        "both": 1,
        "duplicate": 1,
        "background": 2,  # as in tidecv, what lies in an ignore region is counted, though it costs nothing
        "missed": 1,
    }
    assert judged.excused.tolist() == [False] * 5 + [True, False]
    assert judged.missed.tolist() == [False] * 4 + [True]
    costs = tide.costs(judged)
    assert all(costs[k] >= 0 for k in tide.KINDS)
    # Class 0: right, again, class 1, IoU 1/3, of two objects: AP 51/101. Class 1: nothing right; class 2 neither.
    assert tide.mean_precision(judged) == pytest.approx(51 / 101 / 3)
    # Without the duplicate the rest stays: it comes after all that is right.
    assert costs["duplicate"] == 0
    # The box made right: 2 of 4 at full recall.
    assert costs["localisation"] == pytest.approx(50 / 101 * 0.5 / 3)
    # Class 1 wholly found and first.
    assert costs["classification"] == pytest.approx(1 / 3)


def test_nothing_at_all() -> None:
    judged = judged_of(([], [], []))
    assert np.isnan(tide.mean_precision(judged)) and set(tide.counts(judged).values()) == {0}
    assert [len(a) for a in tide.single_costs(judged)] == [0, 0]


@pytest.mark.peers
@settings(max_examples=300, deadline=None)
@given(SCENE, st.sampled_from([3, 100]))
def test_equal_to_tidecv(scene: Any, most: int) -> None:
    seen, truth = arrays(scene)
    judged = judged_of(scene, most)
    if np.isnan(tide.mean_precision(judged)):
        return  # where nothing counts, tidecv divides by zero
    run = by_tidecv(seen, truth, most)
    assert tide.mean_precision(judged) * 100 == pytest.approx(run.ap, abs=1e-9)
    from tidecv import TIDE

    main = {e.short_name: or_nothing(partial(run.fix_main_errors, error_types=[e]), e) for e in TIDE._error_types}
    special = {e.short_name: or_nothing(run.fix_special_errors, e) for e in TIDE._special_error_types}
    ours, number = tide.costs(judged), tide.counts(judged)
    names = dict(zip(tide.KINDS, ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), strict=True))
    theirs = {error.short_name: count for error, count in run.count_errors().items()}
    assert {names[k]: v for k, v in number.items()} == theirs
    for name, short in names.items():
        assert ours[name] * 100 == pytest.approx(main[short], abs=1e-9, nan_ok=True), name
    if not np.isnan(ours["false_negatives"]):  # else tidecv has neither
        assert ours["false_positives"] * 100 == pytest.approx(special["FalsePos"], abs=1e-9)
        assert ours["false_negatives"] * 100 == pytest.approx(special["FalseNeg"], abs=1e-9)


def or_nothing(fix: Callable[[], dict[Any, float]], error: Any) -> float:
    """tidecv divides by zero where mending leaves neither detections nor objects."""
    try:
        return fix()[error]
    except ZeroDivisionError:
        return float("nan")


def by_tidecv(seen: dict[str, np.ndarray], truth: dict[str, np.ndarray], most: int) -> Any:
    from tidecv import TIDE
    from tidecv.data import Data

    def xywh(boxes: np.ndarray) -> list[list[float]]:
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()

    people, found = Data("people", max_dets=most), Data("model", max_dets=most)
    for image in range(3):
        people.add_image(image, str(image))
    for kind in range(CLASSES):
        people.add_class(kind, str(kind))
    for image, kind, box, ignore in zip(
        truth["image"], truth["kind"], xywh(truth["boxes"]), truth["last"], strict=True
    ):
        add = people.add_ignore_region if ignore else people.add_ground_truth
        add(int(image), int(kind), box=box)
    for image, kind, box, score in zip(seen["image"], seen["kind"], xywh(seen["boxes"]), seen["last"], strict=True):
        found.add_detection(int(image), int(kind), float(score), box=box)
    return TIDE().evaluate(people, found, mode=TIDE.BOX)
