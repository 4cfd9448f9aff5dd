"""Thresholds, negative prompts and suppression, against plain loops."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.boxes import iou, nms
from pipeline.models.settle import Proposals, Rule, settle

PROMPTS = ["car", "toy car", "truck"]
RULES = [
    Rule("car", "car", False, 0.3, 0.2),
    Rule("car", "toy car", True, 0.3, 0.2),
    Rule("truck", "truck", False, 0.5, 0.0),
    Rule("toy", "toy car", False, 0.3, 0.0),
]
AT = np.array([PROMPTS.index(rule.prompt) for rule in RULES])


def _proposals(seed: int, n: int = 80) -> Proposals:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, (n, 2))
    boxes = np.hstack([low, low + rng.uniform(5, 40, (n, 2))])
    scores = rng.uniform(0, 1, n)
    return Proposals(rng.integers(0, 4, n), rng.integers(0, 3, n), boxes, scores, scores * rng.uniform(0.4, 1, n))


def _plainly(found: Proposals, rules: list[Rule], nms_iou: float) -> set[tuple[int, str]]:
    """The same by loops: suppression within image and class, negatives included."""
    said = set()
    for image in range(4):
        for name in {r.class_name for r in rules}:
            members, negative = [], []
            for rule in rules:
                if rule.class_name != name:
                    continue
                for i in range(len(found.scores)):
                    asked = found.image[i] == image and PROMPTS[found.prompt[i]] == rule.prompt
                    if asked and found.scores[i] >= rule.box_threshold and found.text[i] >= rule.text_threshold:
                        members.append(i)
                        negative.append(rule.negative)
            if members:
                kept = nms(found.boxes[members], found.scores[members], nms_iou)
                said |= {(members[k], name) for k in kept if not negative[k]}
    return said


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.5, 0.8]))
def test_settling_equals_plain_loops(seed: int, nms_iou: float) -> None:
    found = _proposals(seed)
    result = settle(found, AT, RULES, nms_iou)
    said = {(int(r), RULES[k].class_name) for r, k in zip(result.row, result.rule, strict=True)}
    assert said == _plainly(found, RULES, nms_iou)
    images = found.image[result.row]
    assert (np.diff(images) >= 0).all()
    falling = np.diff(found.scores[result.row]) <= 0
    assert falling[np.diff(images) == 0].all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_an_object_has_one_class_when_asked(seed: int) -> None:
    found = _proposals(seed)
    result = settle(found, AT, RULES, 0.5, one_class_iou=0.6)
    every = settle(found, AT, RULES, 0.5)
    assert set(result.row) <= set(every.row)
    for image in range(4):
        mine = result.row[found.image[result.row] == image]
        overlap = iou(found.boxes[mine], found.boxes[mine])
        assert (overlap[~np.eye(len(mine), dtype=bool)] <= 0.6).all()


def test_the_same_box_is_not_car_and_truck() -> None:
    box = np.array([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    found = Proposals(np.zeros(2, np.int64), np.array([0, 2]), box, np.array([0.6, 0.7]), np.array([0.6, 0.7]))
    assert len(settle(found, AT, RULES, 0.5).row) == 2
    assert settle(found, AT, RULES, 0.5, one_class_iou=0.8).row.tolist() == [1]


def test_a_confusable_suppresses_only_where_it_is_surer() -> None:
    box = np.array([[0.0, 0, 10, 10], [0, 0, 10, 11]])
    car, toy = np.array([0.6, 0.7]), np.array([0.7, 0.6])
    rules = [r for r in RULES if r.class_name == "car"]
    surer_toy = Proposals(np.zeros(2, np.int64), np.array([0, 1]), box, car, car)
    assert settle(surer_toy, AT[:2], rules, 0.5).row.tolist() == []
    surer_car = replace(surer_toy, scores=toy, text=toy)
    assert settle(surer_car, AT[:2], rules, 0.5).row.tolist() == [0]


def test_nothing_in_gives_nothing_out() -> None:
    none = Proposals(*(np.zeros(0, np.int64),) * 2, np.zeros((0, 4)), np.zeros(0), np.zeros(0))
    assert len(settle(none, AT, RULES, 0.5, 0.5).row) == 0
