"""DETR's set loss for a detector that is asked with words: each object is matched with the one box that suits it best.

Carion et al. 2020, with the focal costs of Deformable DETR (Zhu et al. 2021) and, in place of classes, the
tokens of Grounding DINO (Liu et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.train.losses import giou, sigmoid_focal

COSTS = (2.0, 5.0, 2.0)  # of tokens, L1 and GIoU when matching
WEIGHTS = (1.0, 5.0, 2.0)  # of the same in the loss


@dataclass(frozen=True)
class Objects:
    """What an image shows.

    Attributes:
        boxes: (n, 4) centre x, y, width and height as shares of the image.
        tokens: (n, t) 1 at the caption's tokens that name the object, else 0.
        ignore: (m, 4) regions, written alike, in which nothing is wrong.
    """

    boxes: Any
    tokens: Any
    ignore: Any


def corners(boxes: Any) -> Any:
    """(n, 4) x1, y1, x2, y2 of centres and sizes."""
    import torch

    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)


def costs(logits: Any, boxes: Any, objects: Objects) -> Any:
    """(queries, n) how badly each query suits each object.

    Args:
        logits: (queries, t), -inf where the caption has no token. boxes: (queries, 4).
    """
    import torch
    from torch.nn import functional

    finite = logits.clamp(min=-50)
    probability = finite.sigmoid()
    positive = 0.25 * (1 - probability) ** 2 * functional.softplus(-finite)
    negative = 0.75 * probability**2 * functional.softplus(finite)
    share = objects.tokens / objects.tokens.sum(-1, keepdim=True).clamp(min=1)
    apart = torch.cdist(boxes, objects.boxes, p=1)
    pairs = corners(boxes)[:, None].expand(-1, len(objects.boxes), -1).reshape(-1, 4)
    wanted = corners(objects.boxes)[None].expand(len(boxes), -1, -1).reshape(-1, 4)
    overlap = giou(pairs, wanted).reshape(len(boxes), len(objects.boxes))
    return COSTS[0] * (positive - negative) @ share.T + COSTS[1] * apart - COSTS[2] * overlap


def match(logits: Any, boxes: Any, objects: Objects, times: int = 1) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Queries and their objects, at the least total cost (Hungarian method).

    Args:
        times: how many queries each object gets; more than one teaches faster where no single answer is asked for
            (H-DETR, Jia et al. 2023).
    """
    import torch
    from scipy.optimize import linear_sum_assignment

    with torch.no_grad():
        table = costs(logits, boxes, objects).cpu().double().numpy()
    times = max(1, min(times, len(table) // max(1, table.shape[1])))
    query, column = linear_sum_assignment(np.tile(table, (1, times)))
    return query.astype(np.int64), (column % max(1, table.shape[1])).astype(np.int64)


def set_loss(logits: Any, boxes: Any, objects: list[Objects], times: int = 1) -> Any:
    """Loss of a batch, a mean over its matched pairs.

    Args:
        logits: (b, queries, t), -inf where the caption has no token. boxes: (b, queries, 4) shares.
    """
    import torch

    tokens = places = overlaps = boxes.sum() * 0
    pairs = 0
    for logit, box, truth in zip(logits, boxes, objects, strict=True):
        query, which = (torch.from_numpy(i).to(box.device) for i in match(logit, box, truth, times))
        wanted = torch.zeros_like(logit)
        wanted[query] = truth.tokens[which]
        judged = torch.isfinite(logit)
        judged &= ~_excused(box, truth, query)[:, None]
        tokens = tokens + sigmoid_focal(logit[judged], wanted[judged]).sum()
        places = places + (box[query] - truth.boxes[which]).abs().sum()
        overlaps = overlaps + (1 - giou(corners(box[query]), corners(truth.boxes[which]))).sum()
        pairs += len(query)
    return (WEIGHTS[0] * tokens + WEIGHTS[1] * places + WEIGHTS[2] * overlaps) / max(1, pairs)


def _excused(boxes: Any, truth: Objects, matched: Any) -> Any:
    """(queries,) which unmatched boxes lie for the most part in a region to be ignored."""
    import torch

    free = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    if len(truth.ignore):
        mine, other = corners(boxes.detach())[:, None], corners(truth.ignore)[None]
        side = (torch.minimum(mine[..., 2:], other[..., 2:]) - torch.maximum(mine[..., :2], other[..., :2])).clamp(0)
        own = (boxes.detach()[:, 2] * boxes.detach()[:, 3]).clamp(min=1e-9)
        free = (side[..., 0] * side[..., 1] / own[:, None] > 0.5).any(dim=1)
        free[matched] = False
    return free
