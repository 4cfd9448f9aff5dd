from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.torch_compat import import_torchvision
from pipeline.train import losses

ops = import_torchvision().ops
seeds = st.integers(0, 10_000)


def random_boxes(n: int, random: np.random.Generator, size: float = 100) -> torch.Tensor:
    low = random.uniform(0, size, (n, 2))
    return torch.tensor(np.hstack([low, low + random.uniform(4, size, (n, 2))]), dtype=torch.float32)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_giou_is_torchvisions(seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random_boxes(12, random), random_boxes(12, random)
    assert torch.allclose(losses.giou(a, b), ops.generalized_box_iou(a, b).diagonal(), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_focal_is_torchvisions_on_judged_locations(seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = torch.tensor(random.normal(size=(40, 3)), dtype=torch.float32)
    labels = torch.tensor(random.integers(-2, 3, 40))
    judged = labels > -2
    truth = torch.zeros(40, 3)
    for i, label in enumerate(labels.tolist()):
        if label >= 0:
            truth[i, label] = 1
    expected = ops.sigmoid_focal_loss(logits[judged], truth[judged], alpha=0.25, gamma=2, reduction="sum")
    assert torch.allclose(losses.focal(logits, labels), expected, rtol=1e-4)


def test_centerness_is_one_in_the_middle_and_falls_to_the_sides() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    at = torch.tensor([[5.0, 10.0], [2.0, 10.0], [2.0, 4.0], [0.0, 4.0]])
    expected = [1.0, math.sqrt(2 / 8), math.sqrt(2 / 8 * 4 / 16), 0.0]
    assert losses.centerness(at, box.expand(4, 4)).tolist() == pytest.approx(expected)


def naive(
    points: torch.Tensor,
    strides: torch.Tensor,
    limits: torch.Tensor,
    boxes: torch.Tensor,
    classes: torch.Tensor,
    ignore: torch.Tensor,
) -> list[int]:
    labels = []
    for (x, y), stride, (low, high) in zip(points.tolist(), strides.tolist(), limits.tolist(), strict=True):
        best, label = math.inf, -1
        for (x1, y1, x2, y2), name, ignored in zip(boxes.tolist(), classes.tolist(), ignore.tolist(), strict=True):
            if not (x1 < x < x2 and y1 < y < y2):
                continue
            if ignored:
                label = -2 if label < 0 else label
                continue
            central = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < 1.5 * stride
            reach = max(x - x1, y - y1, x2 - x, y2 - y)
            area = (x2 - x1) * (y2 - y1)
            if central and low < reach <= high and area < best:
                best, label = area, name
        labels.append(label)
    return labels


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(0, 9))
def test_assign_is_the_plain_reading_of_the_rules(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    strides = torch.tensor([8.0] * 60 + [16.0] * 40)
    points = torch.tensor(random.uniform(0, 200, (100, 2)), dtype=torch.float32)
    limits = losses.level_limits(strides, (8, 16), (40.0,))
    boxes, classes = random_boxes(n, random), torch.tensor(random.integers(0, 3, n))
    ignore = torch.tensor(random.random(n) < 0.3)
    got = losses.assign(points, strides, limits, boxes, classes, ignore)
    assert got.labels.tolist() == naive(points, strides, limits, boxes, classes, ignore)
    positive = got.labels >= 0
    own = got.boxes[positive]
    at = points[positive]
    assert ((at > own[:, :2]) & (at < own[:, 2:])).all()


def test_every_size_has_exactly_one_level() -> None:
    strides = torch.tensor([8.0, 16.0, 32.0])
    low, high = losses.level_limits(strides, (8, 16, 32), (64.0, 128.0)).T
    for reach in (1.0, 64.0, 64.5, 128.0, 500.0):
        assert int(((reach > low) & (reach <= high)).sum()) == 1
