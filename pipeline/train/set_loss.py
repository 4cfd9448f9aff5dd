"""DETR's set loss for a detector that is asked with words: each object is matched with the one box that suits it best.

Carion et al. 2020, with the focal costs of Deformable DETR (Zhu et al. 2021) and, in place of classes, the
tokens of Grounding DINO (Liu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.train.losses import giou, sigmoid_focal

COSTS = (2.0, 5.0, 2.0)  # of tokens, L1 and GIoU when matching
WEIGHTS = (1.0, 5.0, 2.0)  # of the same in the loss


@dataclass(frozen=True)
class Objects:
    """What the images of a batch show.

    Attributes:
        boxes: (n, 4) centre x, y, width and height as shares of the image.
        tokens: (n, t) 1 at the caption's tokens that name the object, else 0.
        ignore: (m, 4) regions, written alike, in which nothing is wrong.
        image, ignore_image: (n,), (m,) which image of the batch each is in, in ascending order.
    """

    boxes: Any
    tokens: Any
    ignore: Any
    image: Any
    ignore_image: Any

    @classmethod
    def of(cls, images: Sequence[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]], device: Any = "cpu") -> Objects:
        """From each image's (k, 4) boxes, (k, t) tokens and (j, 4) regions."""
        import torch

        parts = [torch.from_numpy(np.concatenate(part).astype(np.float32)) for part in zip(*images, strict=True)]
        counts = ([len(image[which]) for image in images] for which in (0, 2))
        numbers = [torch.from_numpy(np.repeat(np.arange(len(images)), count)) for count in counts]
        return cls(*(part.to(device) for part in (*parts, *numbers)))


def corners(boxes: Any) -> Any:
    """(n, 4) x1, y1, x2, y2 of centres and sizes."""
    import torch

    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)


def costs(logits: Any, boxes: Any, objects: Objects) -> Any:
    """(n, queries) how badly each query of its image suits each object.

    Args:
        logits: (b, queries, t), -inf where the caption has no token. boxes: (b, queries, 4).
    """
    from torch.nn import functional

    finite = logits.clamp(min=-50)
    probability = finite.sigmoid()
    positive = 0.25 * (1 - probability) ** 2 * functional.softplus(-finite)
    negative = 0.75 * probability**2 * functional.softplus(finite)
    share = objects.tokens / objects.tokens.sum(-1, keepdim=True).clamp(min=1)
    named = ((positive - negative)[objects.image] * share[:, None]).sum(-1)
    answers = boxes[objects.image]
    wanted = objects.boxes[:, None].expand_as(answers)
    overlap = giou(corners(answers).flatten(0, 1), corners(wanted).flatten(0, 1)).reshape(answers.shape[:2])
    return COSTS[0] * named + COSTS[1] * (answers - wanted).abs().sum(-1) - COSTS[2] * overlap


def match(logits: Any, boxes: Any, objects: Objects, times: int = 1) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Queries and their objects, at the least total cost in each image (Hungarian method).

    Args:
        times: how many queries each object gets; more than one teaches faster where no single answer is asked for
            (H-DETR, Jia et al. 2023).
    """
    import torch
    from scipy.optimize import linear_sum_assignment

    with torch.no_grad():
        table = costs(logits, boxes, objects).cpu().double().numpy()
    number = np.bincount(objects.image.cpu().numpy(), minlength=len(logits))
    queries, which = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for first, count in zip(np.cumsum(number) - number, number, strict=True):
        if count:
            each = max(1, min(times, table.shape[1] // count))
            query, column = linear_sum_assignment(np.tile(table[first : first + count].T, (1, each)))
            queries.append(query)
            which.append(first + column % count)
    return np.concatenate(queries).astype(np.int64), np.concatenate(which).astype(np.int64)


def set_loss(logits: Any, boxes: Any, objects: Objects, times: int = 1) -> tuple[Any, int]:
    """Loss of a batch, to be divided by the number of its matched pairs, and that number.

    Args:
        logits: (b, queries, t), -inf where the caption has no token. boxes: (b, queries, 4) shares.
    """
    import torch

    query, which = (torch.from_numpy(i).to(boxes.device) for i in match(logits, boxes, objects, times))
    image = objects.image[which]
    wanted = torch.zeros_like(logits)
    wanted[image, query] = objects.tokens[which]
    judged = torch.isfinite(logits) & ~_excused(boxes, objects, image, query)[..., None]
    tokens = sigmoid_focal(logits[judged], wanted[judged]).sum()
    answers, truth = boxes[image, query], objects.boxes[which]
    places = (answers - truth).abs().sum()
    overlaps = (1 - giou(corners(answers), corners(truth))).sum()
    return WEIGHTS[0] * tokens + WEIGHTS[1] * places + WEIGHTS[2] * overlaps, len(query)


def _excused(boxes: Any, objects: Objects, image: Any, query: Any) -> Any:
    """(b, queries) which unmatched boxes lie for the most part in a region to be ignored."""
    import torch

    answers = boxes.detach()[objects.ignore_image]
    mine, other = corners(answers), corners(objects.ignore)[:, None]
    side = (torch.minimum(mine[..., 2:], other[..., 2:]) - torch.maximum(mine[..., :2], other[..., :2])).clamp(0)
    own = (answers[..., 2] * answers[..., 3]).clamp(min=1e-9)
    inside = (side[..., 0] * side[..., 1] / own > 0.5).int()
    regions = torch.zeros(boxes.shape[:2], dtype=torch.int32, device=boxes.device)
    free = regions.index_add(0, objects.ignore_image, inside) > 0
    free[image, query] = False
    return free
