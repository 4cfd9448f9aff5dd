"""The set loss against transformers' own for DETR-like detectors, torchvision's and SciPy's."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.torch_compat import import_torchvision
from pipeline.train import losses
from pipeline.train.set_loss import COSTS, WEIGHTS, Objects, corners, costs, match, set_loss


def drawn(queries: int, objects: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, Objects]:
    random = torch.Generator().manual_seed(seed)

    def boxes(n: int) -> torch.Tensor:
        return torch.rand(n, 4, generator=random) * 0.4 + 0.1

    named = torch.zeros(objects, tokens)
    named[torch.arange(objects), torch.randint(tokens, (objects,), generator=random)] = 1
    logits = torch.randn(queries, tokens, generator=random)
    return logits[None], boxes(queries)[None], together((boxes(objects), named, torch.zeros(0, 4)))


def together(*images: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> Objects:
    return Objects.of([tuple(part.numpy() for part in image) for image in images])  # type: ignore[misc]


def mean_loss(logits: torch.Tensor, boxes: torch.Tensor, truth: Objects, times: int = 1) -> torch.Tensor:
    loss, pairs = set_loss(logits, boxes, truth, times)
    assert pairs == len(match(logits, boxes, truth, times)[0])
    return loss / max(1, pairs)


@settings(deadline=None, max_examples=15)
@given(queries=st.integers(3, 6), objects=st.integers(1, 3), seed=st.integers(0, 99))
def test_no_other_matching_is_cheaper(queries: int, objects: int, seed: int) -> None:
    logits, boxes, truth = drawn(queries, objects, 5, seed)
    table = costs(logits, boxes, truth).numpy().T
    query, which = match(logits, boxes, truth)
    assert sorted(which.tolist()) == list(range(objects)) and len(set(query.tolist())) == objects
    best = min(sum(table[q, k] for k, q in enumerate(some)) for some in itertools.permutations(range(queries), objects))
    assert table[query, which].sum() == pytest.approx(best, rel=1e-5)


def test_several_matches_an_object_give_each_as_many_queries() -> None:
    logits, boxes, truth = drawn(9, 2, 4, 1)
    query, which = match(logits, boxes, truth, times=3)
    assert np.bincount(which).tolist() == [3, 3] and len(set(query.tolist())) == 6
    assert len(match(logits, boxes, truth, times=50)[0]) == 8  # no more than there are queries


def test_matching_and_loss_are_those_of_transformers() -> None:
    """With one token a class the loss is Deformable DETR's, which transformers has on its own."""
    import_torchvision()
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss

    logits, boxes, truth = drawn(12, 3, 6, 2)
    other = drawn(12, 2, 6, 3)
    outputs = {"logits": torch.cat([logits, other[0]]), "pred_boxes": torch.cat([boxes, other[1]])}
    targets = [{"class_labels": t.tokens.argmax(1), "boxes": t.boxes} for t in (truth, other[2])]
    both = together(*((t.boxes, t.tokens, t.ignore) for t in (truth, other[2])))
    matcher = DeformableDetrHungarianMatcher(class_cost=COSTS[0], bbox_cost=COSTS[1], giou_cost=COSTS[2])
    theirs = DeformableDetrImageLoss(matcher, num_classes=6, focal_alpha=0.25, losses=["labels", "boxes"])
    mine = dict(zip(*match(outputs["logits"], outputs["pred_boxes"], both)[::-1], strict=True))
    expected = [dict(zip(which.tolist(), query.tolist(), strict=True)) for query, which in matcher(outputs, targets)]
    assert mine == expected[0] | {3 + which: query for which, query in expected[1].items()}
    parts = theirs(outputs, targets)
    # theirs counts the focal loss of all queries over their number and back, so it too is a sum over objects
    total = WEIGHTS[0] * parts["loss_ce"] + WEIGHTS[1] * parts["loss_bbox"] + WEIGHTS[2] * parts["loss_giou"]
    ours = mean_loss(outputs["logits"], outputs["pred_boxes"], both)
    assert ours.item() == pytest.approx(total.item(), rel=1e-5)


def test_tokens_a_caption_has_not_got_and_ignored_regions_do_not_count() -> None:
    logits, boxes, truth = drawn(8, 2, 5, 4)
    longer = torch.cat([logits, torch.full((1, 8, 3), -torch.inf)], dim=2)
    wider = together((truth.boxes, torch.cat([truth.tokens, torch.zeros(2, 3)], dim=1), truth.ignore))
    plain = mean_loss(logits, boxes, truth)
    assert mean_loss(longer, boxes, wider).item() == pytest.approx(plain.item())
    everywhere = together((truth.boxes, truth.tokens, torch.tensor([[0.5, 0.5, 1.0, 1.0]])))
    inside = mean_loss(logits, boxes, everywhere)
    kept = torch.from_numpy(match(logits, boxes, truth)[0])
    others = torch.ones(8, dtype=torch.bool)
    others[kept] = False
    excused = losses.sigmoid_focal(logits[0, others], torch.zeros_like(logits[0, others])).sum() / 2
    assert inside.item() == pytest.approx((plain - excused).item(), rel=1e-5)


def test_an_image_without_objects_teaches_that_nothing_is_there() -> None:
    logits, boxes, _ = drawn(5, 1, 4, 5)
    nothing = together((torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, 4)))
    expected = losses.sigmoid_focal(logits, torch.zeros_like(logits)).sum()
    assert mean_loss(logits, boxes, nothing).item() == pytest.approx(expected.item())


def test_an_image_is_judged_by_its_own_objects_and_regions_alone() -> None:
    some = [drawn(9, n, 4, seed) for seed, n in enumerate((2, 0, 3))]
    regions = [torch.rand(n, 4, generator=torch.Generator().manual_seed(n)) for n in (1, 2, 0)]
    parts = [(t.boxes, t.tokens, region) for (*_, t), region in zip(some, regions, strict=True)]
    pairs = [len(t.boxes) * 2 for *_, t in some]
    alone = [
        mean_loss(logits, boxes, together(part), 2).item() * max(1, n)
        for (logits, boxes, _), part, n in zip(some, parts, pairs, strict=True)
    ]
    logits, boxes = (torch.cat([s[k] for s in some]) for k in (0, 1))
    assert mean_loss(logits, boxes, together(*parts), 2).item() == pytest.approx(sum(alone) / sum(pairs), rel=1e-5)


def test_focal_giou_and_dice_are_those_of_others() -> None:
    import_torchvision()
    from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss
    from transformers.loss.loss_for_object_detection import dice_loss

    logits, boxes, truth = drawn(6, 6, 7, 6)
    wanted = (torch.rand(6, 7, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    torch.testing.assert_close(losses.sigmoid_focal(logits[0], wanted), sigmoid_focal_loss(logits[0], wanted))
    mine, theirs = corners(boxes[0]), corners(truth.boxes)
    torch.testing.assert_close(1 - losses.giou(mine, theirs), generalized_box_iou_loss(mine, theirs), atol=1e-5, rtol=0)
    torch.testing.assert_close(losses.dice(logits[0], wanted).sum() / 6, dice_loss(logits[0], wanted, 6))


def test_gradients_reach_tokens_and_boxes() -> None:
    logits, boxes, truth = drawn(6, 2, 4, 7)
    leaves: list[Any] = [logits.requires_grad_(), boxes.requires_grad_()]
    mean_loss(*leaves, truth).backward()
    query = match(logits.detach(), boxes.detach(), truth)[0].tolist()
    assert all(bool(leaf.grad.abs().sum() > 0) for leaf in leaves)
    assert sorted(torch.nonzero(boxes.grad[0].abs().sum(1)).flatten().tolist()) == sorted(query)
