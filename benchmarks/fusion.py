"""Weighted box fusion against ensemble-boxes, and learnt skills against crowd-kit: equal answers, and time.

Run: python benchmarks/fusion.py (needs the dependency group `peers`)
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pandas as pd
from common import peak_memory, report
from crowdkit.aggregation import DawidSkene
from ensemble_boxes import weighted_boxes_fusion

from pipeline.fuse.answers import Skills, dawid_skene
from pipeline.fuse.boxes import Fused, weighted_boxes

IMAGES, LABELLERS, BOXES, CLASSES, IOU = 100, 3, 100, 5, 0.55
ITEMS, WORKERS = 5000, 5


def image(generator: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Boxes in [0, 1], scores and classes of each labeller, around the same 60 objects."""
    low, size = 0.85 * generator.random((60, 2)), 0.03 + 0.12 * generator.random((60, 2))
    kinds = generator.integers(0, CLASSES, 60)
    seen = []
    for _ in range(LABELLERS):
        pick = generator.integers(0, 60, BOXES)
        corner = low[pick] + generator.normal(0, 0.006, (BOXES, 2))
        boxes = np.clip(np.concatenate([corner, corner + size[pick]], axis=1), 0, 1)
        seen.append((boxes, generator.random(BOXES), kinds[pick]))
    return seen


def fused(images: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]]) -> Fused:
    corners, score = (np.concatenate([part[k] for seen in images for part in seen]) for k in (0, 1))
    group = np.concatenate([part[2] + CLASSES * i for i, seen in enumerate(images) for part in seen])
    return weighted_boxes(group, corners, score, LABELLERS, IOU)


def boxes() -> None:
    generator = np.random.default_rng(0)
    images = [image(generator) for _ in range(IMAGES)]
    start = time.process_time()
    ours = fused(images)
    middle = time.process_time()
    theirs = [weighted_boxes_fusion(*(list(p) for p in zip(*seen, strict=True)), iou_thr=IOU) for seen in images]
    end = time.process_time()
    worst = 0.0
    for i, (b, s, _) in enumerate(theirs):
        mine = ours.group // CLASSES == i
        order, other = np.lexsort((ours.boxes[mine][:, 0], -ours.score[mine])), np.lexsort((b[:, 0], -s))
        worst = max(worst, np.abs(ours.boxes[mine][order] - b[other]).max())
        worst = max(worst, np.abs(ours.score[mine][order] - s[other]).max())
    quick, slow = (middle - start) / IMAGES * 1000, (end - middle) / IMAGES * 1000
    report(
        f"weighted box fusion, {LABELLERS} x {BOXES} boxes an image",
        quick,
        slow,
        peer_name="ensemble-boxes",
        unit="ms",
        aim=5,
        agreement=f"coordinates and scores within {worst:.0e}",
        memory={"1x": peak_memory(partial(fused, images)), "10x": peak_memory(partial(fused, images * 10))},
    )


def answered(items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(items x WORKERS,) item, worker and class of each answer, of workers of unequal skill."""
    generator = np.random.default_rng(0)
    true = generator.integers(0, CLASSES, items)
    item, worker = (a.ravel() for a in np.meshgrid(np.arange(items), np.arange(WORKERS), indexing="ij"))
    right = generator.random(len(item)) < np.linspace(0.9, 0.5, WORKERS)[worker]
    return item, worker, np.where(right, true[item], generator.integers(0, CLASSES, len(item)))


def skills(item: np.ndarray, worker: np.ndarray, answer: np.ndarray) -> Skills:
    return dawid_skene(item, worker, answer, int(item.max()) + 1, WORKERS, CLASSES)


def answers() -> None:
    item, worker, answer = answered(ITEMS)
    start = time.process_time()
    ours = skills(item, worker, answer)
    middle = time.process_time()
    theirs = DawidSkene(n_iter=100).fit(pd.DataFrame({"task": item, "worker": worker, "label": answer}))
    end = time.process_time()
    worst = max(
        np.abs(ours.confusion[w, :, said] - row[list(range(CLASSES))].to_numpy()).max()
        for (w, said), row in theirs.errors_.iterrows()
    )
    report(
        f"labellers' skills (Dawid-Skene) from {len(item)} answers",
        middle - start,
        end - middle,
        peer_name="crowd-kit",
        unit="core-s",
        aim=5,
        agreement=f"probabilities within {worst:.0e}",
        memory={size: peak_memory(partial(skills, *answered(n))) for size, n in (("1x", ITEMS), ("10x", 10 * ITEMS))},
    )


if __name__ == "__main__":
    boxes()
    answers()
