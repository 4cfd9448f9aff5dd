"""What networks should have said of an image, and how wrong they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

RADIUS = 1.5  # centre sampling, in strides (FCOS, journal version, 2020)


@dataclass(frozen=True)
class Targets:
    """Of each location of one crop: class index (-1: ground, -2: not judged) and its box (l, 4) xyxy."""

    labels: Any
    boxes: Any


def assign(points: Any, strides: Any, limits: Any, boxes: Any, classes: Any, ignore: Any) -> Targets:
    """Match locations with boxes.

    A location takes the smallest box in whose centre region it lies, if the box's size suits its level.
    Other locations inside an ignored box are not judged. A location elsewhere in a box is ground.

    Args:
        points: (l, 2) centres. strides: (l,). limits: (l, 2) smallest and largest distance to a side.
        boxes: (n, 4) xyxy. classes: (n,). ignore: (n,) bool.
    """
    import torch

    labels = torch.full((len(points),), -1, dtype=torch.long, device=points.device)
    target = torch.zeros((len(points), 4), dtype=points.dtype, device=points.device)
    if not len(boxes):
        return Targets(labels, target)
    x, y = points[:, :1], points[:, 1:]
    sides = torch.stack([x - boxes[:, 0], y - boxes[:, 1], boxes[:, 2] - x, boxes[:, 3] - y], dim=2)
    inside = sides.amin(dim=2) > 0
    labels[(inside & ignore).any(dim=1)] = -2
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = (points[:, None] - centre).abs().amax(dim=2) < RADIUS * strides[:, None]
    reach = sides.amax(dim=2)
    suited = (reach > limits[:, :1]) & (reach <= limits[:, 1:])
    allowed = inside & near & suited & ~ignore
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    cost = torch.where(allowed, area, torch.inf)
    smallest, chosen = cost.min(dim=1)
    positive = torch.isfinite(smallest)
    labels[positive] = classes[chosen[positive]]
    target[positive] = boxes[chosen[positive]]
    return Targets(labels, target)


def level_limits(strides: Any, levels: tuple[int, ...], limits: tuple[float, ...]) -> Any:
    """(l, 2) range of sizes of each location's level."""
    import torch

    edges = [0.0, *limits, float("inf")]
    ranges = {s: (edges[i], edges[i + 1]) for i, s in enumerate(levels)}
    return torch.tensor([ranges[int(s)] for s in strides.tolist()], dtype=strides.dtype, device=strides.device)


def focal(logits: Any, labels: Any) -> Any:
    """Sum of the sigmoid focal loss over judged locations.

    Args:
        logits: (m, c). labels: (m,) class index, or -1 for ground; -2 is left out.
    """
    import torch

    judged = labels > -2
    logits, labels = logits[judged], labels[judged]
    truth = torch.zeros_like(logits)
    positive = labels >= 0
    truth[positive, labels[positive]] = 1.0
    return sigmoid_focal(logits, truth).sum()


def sigmoid_focal(logits: Any, truth: Any) -> Any:
    """Sigmoid focal loss (Lin et al. 2017; alpha 0.25, gamma 2) of each logit, `truth` being 0 or 1."""
    import torch
    from torch.nn import functional

    probability = torch.sigmoid(logits)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    miss = probability * (1 - truth) + (1 - probability) * truth
    weight = 0.25 * truth + 0.75 * (1 - truth)
    return weight * miss**2 * entropy


def dice(logits: Any, truth: Any) -> Any:
    """(...) dice loss (Milletari et al. 2016) of (..., pixels) logits; one is added above and below, as in DETR."""
    probability = logits.sigmoid()
    common = 2 * (probability * truth).sum(-1)
    return 1 - (common + 1) / (probability.sum(-1) + truth.sum(-1) + 1)


def giou(a: Any, b: Any) -> Any:
    """(m,) generalised IoU of paired boxes, in (-1, 1] (Rezatofighi et al., CVPR 2019)."""
    import torch

    def size(low: Any, high: Any) -> Any:
        side = (high - low).clamp(min=0)
        return side[:, 0] * side[:, 1]

    common = size(torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:]))
    union = size(a[:, :2], a[:, 2:]) + size(b[:, :2], b[:, 2:]) - common
    hull = size(torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:]))
    return common / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)


def centerness(points: Any, boxes: Any) -> Any:
    """(m,) FCOS's centerness of locations in their boxes, in [0, 1]."""
    near, far = points - boxes[:, :2], boxes[:, 2:] - points
    low, high = near.minimum(far), near.maximum(far)
    ratio = (low / high.clamp(min=1e-6)).clamp(min=0)
    return (ratio[:, 0] * ratio[:, 1]).sqrt()
