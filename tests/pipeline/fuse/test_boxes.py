from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.boxes import iou
from pipeline.fuse.boxes import weighted_boxes


def reference(boxes: np.ndarray, score: np.ndarray, labellers: int, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Weighted box fusion of one group, box by box, as the paper tells it; means in float32 as in ensemble-boxes."""
    clusters: list[list[int]] = []
    means: list[np.ndarray] = []
    for i in np.argsort(-score, kind="stable"):
        overlap = iou(boxes[i], np.array(means).reshape(-1, 4))[0] if means else np.zeros(0)
        best = int(np.argmax(overlap)) if len(overlap) else -1
        if best >= 0 and overlap[best] > least:
            clusters[best].append(i)
            total = np.zeros(4, np.float32)
            for member in clusters[best]:
                total += score[member] * boxes[member]
            means[best] = (total / score[clusters[best]].sum()).astype(np.float32).astype(np.float64)
        else:
            clusters.append([i])
            means.append(boxes[i])
    shares = [min(labellers, len(c)) / labellers * score[c].mean() for c in clusters]
    return np.array(means).reshape(-1, 4), np.array(shares)


def some_boxes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    centre = generator.random((max(1, n // 4), 2))[generator.integers(0, max(1, n // 4), n)]
    low = centre + generator.normal(0, 0.02, (n, 2))
    return np.concatenate([low, low + 0.1 + 0.05 * generator.random((n, 2))], axis=1), generator.random(n)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(0, 1000), st.sampled_from([0.3, 0.55, 0.8]))
def test_many_groups_at_once_are_each_alone(sizes: list[int], seed: int, least: float) -> None:
    parts = [some_boxes(n, seed + k) for k, n in enumerate(sizes)]
    boxes, score = np.concatenate([b for b, _ in parts]), np.concatenate([s for _, s in parts])
    group = np.repeat(np.arange(len(sizes)) * 7, sizes)
    shuffle = np.random.default_rng(seed).permutation(len(group))
    fused = weighted_boxes(group[shuffle], boxes[shuffle], score[shuffle], 3, least)
    assert (fused.group[fused.cluster] == group[shuffle]).all()
    for k, (b, s) in enumerate(parts):
        expected, shares = reference(b, s, 3, least)
        mine = fused.group == 7 * k
        order, theirs = np.lexsort((fused.boxes[mine][:, 0], -fused.score[mine])), np.lexsort((expected[:, 0], -shares))
        assert fused.boxes[mine][order] == pytest.approx(expected[theirs], abs=1e-6)
        assert fused.score[mine][order] == pytest.approx(shares[theirs], abs=1e-6)


@pytest.mark.peers
@pytest.mark.parametrize("classes", [1, 5])
def test_equal_to_ensemble_boxes(classes: int) -> None:
    from ensemble_boxes import weighted_boxes_fusion

    generator = np.random.default_rng(classes)
    for _ in range(10):
        lists = [some_boxes(60, int(generator.integers(1 << 30))) for _ in range(3)]
        lists = [(np.clip(b, 0, 1), s) for b, s in lists]
        lists = [
            (b[(b[:, 2] > b[:, 0]) & (b[:, 3] > b[:, 1])], s[(b[:, 2] > b[:, 0]) & (b[:, 3] > b[:, 1])])
            for b, s in lists
        ]
        labels = [generator.integers(0, classes, len(s)) for _, s in lists]
        theirs = weighted_boxes_fusion([b for b, _ in lists], [s for _, s in lists], labels, iou_thr=0.55)
        boxes, score = (np.concatenate([part[k] for part in lists]) for k in (0, 1))
        ours = weighted_boxes(np.concatenate(labels), boxes, score, 3, 0.55)
        order, other = np.lexsort((ours.boxes[:, 0], -ours.score)), np.lexsort((theirs[0][:, 0], -theirs[1]))
        assert np.abs(ours.boxes[order] - theirs[0][other]).max() < 1e-9
        assert np.abs(ours.score[order] - theirs[1][other]).max() < 1e-9
        assert (ours.group[order] == theirs[2][other]).all()


def test_nothing_and_one() -> None:
    nothing = weighted_boxes(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), 2, 0.5)
    assert len(nothing.score) == len(nothing.cluster) == 0
    one = weighted_boxes(np.array([9]), np.array([[0.0, 0, 1, 1]]), np.array([0.8]), 2, 0.5)
    assert one.score == pytest.approx([0.4]) and one.boxes.tolist() == [[0, 0, 1, 1]] and one.group.tolist() == [9]
