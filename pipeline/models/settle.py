"""From what a prompted detector proposes to what it says: thresholds, negative prompts, one box an object.

All of it works on stored proposals, so a threshold or a negative prompt changes nothing that the
network has to compute again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.boxes import Boxes
from pipeline.matching import Ints, suppress


@dataclass(frozen=True)
class Rule:
    """What one prompt means for one class.

    Attributes:
        prompt: as the network was asked.
        negative: a box of this prompt is not the class, and removes the class's weaker boxes there.
        box_threshold: lowest score of a box's best word. text_threshold: lowest mean over its words.
    """

    class_name: str
    prompt: str
    negative: bool
    box_threshold: float
    text_threshold: float


@dataclass(frozen=True)
class Proposals:
    """Boxes as the network gave them for each prompt, in n rows.

    Attributes:
        image: (n,) number of the image. prompt: (n,) number of the prompt.
        boxes: (n, 4) xyxy pixels. scores: (n,) probability of the prompt's best word, text: of its mean word.
    """

    image: Ints
    prompt: Ints
    boxes: Boxes
    scores: NDArray[np.floating]
    text: NDArray[np.floating]


@dataclass(frozen=True)
class Settled:
    """What is left. `row`: (m,) rows of the proposals, by image and then best first. `rule`: (m,) whose each is."""

    row: Ints
    rule: Ints


def settle(
    found: Proposals, at: Ints, rules: Sequence[Rule], nms_iou: float, one_class_iou: float | None = None
) -> Settled:
    """Boxes of the classes, out of proposals of many images at once.

    Per class and image, boxes that overlap by more than `nms_iou` are one, and the best of them counts:
    where that is a negative prompt's, none is left.

    Args:
        at: for each rule, which of `found.prompt` is its prompt.
        one_class_iou: boxes of different classes that overlap by more than this are one object, and only
            its best class is kept; None keeps all.
    """
    row, rule = _by_rule(found.prompt, at)
    box_threshold = np.array([r.box_threshold for r in rules])[rule]
    text_threshold = np.array([r.text_threshold for r in rules])[rule]
    enough = (found.scores[row] >= box_threshold) & (found.text[row] >= text_threshold)
    row, rule = row[enough], rule[enough]
    names = {name: i for i, name in enumerate(dict.fromkeys(r.class_name for r in rules))}
    group = found.image[row] * max(len(names), 1) + np.array([names[r.class_name] for r in rules], np.int64)[rule]
    row, rule = _winners(found, row, rule, group, nms_iou)
    positive = ~np.array([r.negative for r in rules], bool)[rule]
    row, rule = row[positive], rule[positive]
    if one_class_iou is not None:
        row, rule = _winners(found, row, rule, found.image[row], one_class_iou)
    order = np.lexsort((row, -found.scores[row], found.image[row]))
    return Settled(row[order], rule[order])


def _by_rule(prompt: Ints, at: Ints) -> tuple[Ints, Ints]:
    """Each proposal once for every rule that its prompt has."""
    by = np.argsort(prompt, kind="stable")
    first, last = (np.searchsorted(prompt[by], at, side) for side in ("left", "right"))
    count = last - first
    rule = np.repeat(np.arange(len(at)), count)
    within = np.arange(len(rule)) - np.repeat(np.cumsum(count) - count, count)
    return by[np.repeat(first, count) + within], rule


def _winners(found: Proposals, row: Ints, rule: Ints, group: Ints, threshold: float) -> tuple[Ints, Ints]:
    order = np.lexsort((rule, row, -found.scores[row]))
    winner = suppress(group, found.boxes[row], order, threshold)
    alone = winner == np.arange(len(row))
    return row[alone], rule[alone]
