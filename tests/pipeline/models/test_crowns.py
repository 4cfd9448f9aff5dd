"""The shipped user labeller, on its own photo."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pipeline import boxes as box_ops
from pipeline.config import projects_root, samples_root
from pipeline.models.user import UserLabeller
from pipeline.ontology import Class, Ontology

ONTOLOGY = Ontology((Class("Tree", ("tree",)),))
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@pytest.fixture(scope="module")
def crowns() -> UserLabeller:
    return UserLabeller("crowns", "labellers.py:Crowns", projects_root() / "trees", ONTOLOGY, {})


def meadow(light: int = 140) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (np.array([light, light + 10, light - 60]) + rng.integers(-6, 7, (400, 400, 1))).astype(np.uint8)


def test_a_meadow_has_no_crowns_and_a_painted_one_is_found(crowns: UserLabeller) -> None:
    image = meadow()
    assert len(crowns.detect([image])[0].scores) == 0
    y, x = np.mgrid[:400, :400]
    turned = np.radians(20)
    along = (x - 200) * np.cos(turned) - (y - 200) * np.sin(turned)
    across = (x - 200) * np.sin(turned) + (y - 200) * np.cos(turned)
    shadow = (np.abs(across) < 24) & (along > 0) & (along < 90)
    crown = (x - 200) ** 2 + (y - 200) ** 2 < 25**2
    image[shadow] = (30, 40, 60)
    image[crown] = np.random.default_rng(1).integers((40, 55, 0), (150, 165, 60), (int(crown.sum()), 3))
    found = crowns.detect([image])[0]
    assert box_ops.iou(found.boxes[:1], [[175, 175, 225, 225]])[0, 0] > 0.5


def test_scores_and_boxes_are_valid_on_anything(crowns: UserLabeller) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((400, 400), (37, 80), (3, 2), (1, 1))]
    for image, found in zip(images, crowns.detect(images), strict=True):
        assert ((found.scores >= 0) & (found.scores <= 1)).all()
        assert (box_ops.clip(found.boxes, image.shape[1], image.shape[0]) == found.boxes).all()


@pytest.mark.weights
def test_better_scores_are_more_often_right_on_the_held_out_part_of_its_photo(crowns: UserLabeller) -> None:
    batch = samples_root() / "trees" / "2026-07-01-yell"
    assert batch.is_dir(), f"{batch} is missing; run: cvp samples pull trees"
    photo = np.asarray(Image.open(batch / "yell_528000_south.png").convert("RGB"))
    truth = _boxes(batch / "yell_528000_south.xml")
    right, scores, found = [], [], 0
    for x in range(0, photo.shape[1] - 399, 400):
        for y in range(0, photo.shape[0] - 399, 400):
            people, _ = box_ops.in_window(truth, (x, y, 400, 400))
            people = people[box_ops.area(people) > 0]
            seen = crowns.detect([photo[y : y + 400, x : x + 400]])[0]
            overlap = box_ops.iou(seen.boxes, people)
            right += list(overlap.max(1, initial=0) >= 0.5)
            scores += list(seen.scores)
            found += int((overlap.max(0, initial=0) >= 0.5).sum())
    order = np.argsort(-np.array(scores), kind="stable")
    ranked = np.array(right)[order]
    assert found / len(truth) > 0.4
    assert ranked[:50].mean() > 0.6
    assert ranked[:50].mean() > 2 * ranked.mean() > 4 * ranked[-200:].mean()


def _boxes(path: Path) -> np.ndarray:
    objects = ElementTree.parse(path).getroot().iter("object")
    return np.array([[float(o.findtext(f"bndbox/{c}") or 0) for c in CORNERS] for o in objects])
