"""Minimal examples of what is wrong in the packages that we compare with, and what ours does there.

Those of sliceline are in slices/test_search.py, those of pycocotools in test_masks.py. Where a package mends one, its
test fails, and the docs (docs/data-core.md) can be shortened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import quality
from pipeline.config import QualityConfig
from pipeline.label_errors import Found, suspicions

HERE, FAR = (0, 0, 20, 20), (30, 30, 50, 50)


def object_lab(*images: tuple[list[Any], list[Any]]) -> list[float]:
    """cleanlab's score of each image, given (box, class) of people and (box, class, score) of a detector."""
    from cleanlab.object_detection.rank import get_label_quality_scores

    labels = [
        {"bboxes": np.array([b for b, _ in people], float), "labels": np.array([c for _, c in people])}
        for people, _ in images
    ]
    predictions = []
    for _, seen in images:
        rows = [np.array([[*b, s] for b, k, s in seen if k == c], float).reshape(-1, 5) for c in range(2)]
        held = np.empty(2, object)
        held[:] = rows
        predictions.append(held)
    return [float(s) for s in get_label_quality_scores(labels, predictions, verbose=False)]


def test_object_lab_says_of_an_image_what_others_make_it_say() -> None:
    """cleanlab issue 1301: the least similarity of all images given stands for 'none'."""
    swapped = [(HERE, 1)], [(HERE, 0, 0.99)]
    right = [(HERE, 1), (FAR, 1)], [(HERE, 1, 0.9), (FAR, 1, 0.9)]
    assert object_lab(swapped) == [1.0]  # nothing is wrong with it, alone
    assert object_lab(swapped, right)[0] < 0.2


def test_object_lab_depends_on_what_scores_are_called() -> None:
    """Its limit of 0.95 is of scores as they are: lower ones in the same order say that nothing is wrong."""
    right = [(HERE, 1), (FAR, 1)], [(HERE, 1, 0.9), (FAR, 1, 0.9)]
    assert object_lab(([(HERE, 1)], [(HERE, 0, 0.96)]), right)[0] < 0.2
    assert object_lab(([(HERE, 1)], [(HERE, 0, 0.94)]), right) == [1.0, 1.0]


@pytest.mark.parametrize("score", [0.96, 0.94])
def test_ours_finds_the_swap_however_sure_the_detector_says_it_is(score: float) -> None:
    def rows(boxes: list[Any], kinds: list[int], scores: list[float]) -> Found:
        n = len(kinds)
        return Found(np.arange(n), np.array(kinds), np.array(boxes, float), np.array(scores), np.zeros(n, bool))

    # Twenty images with one object each, of which the last is called by another name.
    kinds = [k % 2 for k in range(20)]
    truth = rows([HERE] * 20, [*kinds[:-1], 1 - kinds[-1]], [np.nan] * 20)
    found = suspicions(rows([HERE] * 20, kinds, [score] * 20), truth, 0.5)
    assert found.swapped.argmax() == 19 and found.swapped[19] > 0.5


def tide(truth: list[Any], seen: list[Any], ignored: list[Any]) -> Any:
    """tidecv's run, given (image, class, box[, score])."""
    from tidecv import TIDE
    from tidecv.data import Data

    people, found = Data("people"), Data("model")
    for k in range(2):
        people.add_image(k, str(k))
        people.add_class(k, str(k))
    for image, kind, box in truth:
        people.add_ground_truth(image, kind, box=box)
    for image, kind, box in ignored:
        people.add_ignore_region(image, kind, box=box)
    for image, kind, box, score in seen:
        found.add_detection(image, kind, score, box=box)
    return TIDE().evaluate(people, found, mode=TIDE.BOX)


def mended(run: Any) -> dict[str, float]:
    return {error.short_name: cost for error, cost in run.fix_main_errors().items()}


@pytest.mark.peers
def test_tidecv_divides_by_zero() -> None:
    with pytest.raises(ZeroDivisionError):
        mended(tide([(0, 0, [0, 0, 10, 10])], [], []))


@pytest.mark.peers
def test_tidecv_mends_a_detection_that_is_not_counted() -> None:
    """In an ignore region, so that neither AP nor people know of it; made right, it is worth 100 points."""
    run = tide([(0, 0, [0, 0, 10, 10])], [(0, 0, [0, 0, 10, 4], 0.9)], [(0, 0, [0, 0, 20, 20])])
    assert run.ap == 0 and mended(run)["Loc"] == 100


@pytest.mark.peers
def test_tidecv_counts_a_class_that_no_object_has() -> None:
    """One false alarm, after all that is right, of a class without objects costs half of AP; COCO leaves it out."""
    run = tide([(0, 0, [50, 50, 10, 10])], [(0, 0, [50, 50, 10, 10], 0.9), (1, 1, [0, 0, 8, 8], 0.1)], [])
    assert run.ap == 50 and mended(run)["Bkg"] == 50


def flags_of_cleanvision(folder: Path, **pictures: Image.Image) -> dict[str, dict[str, bool]]:
    from cleanvision import Imagelab

    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    lab = Imagelab(data_path=str(folder))
    lab.find_issues({kind: {} for kind in ("grayscale", "low_information", "blurry")}, n_jobs=1, verbose=False)
    return {Path(path).stem: row for path, row in lab.issues.to_dict("index").items()}


@pytest.mark.peers
def test_cleanvision_takes_the_mode_of_a_file_for_its_colour(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    grey = Image.fromarray(generator.integers(100, 106, (64, 64), dtype=np.uint8))
    found = flags_of_cleanvision(tmp_path, grey=grey, stored_as_rgb=grey.convert("RGB"))
    # The same picture: one is grey, and of little information; the other is neither.
    assert found["grey"]["is_grayscale_issue"] and not found["stored_as_rgb"]["is_grayscale_issue"]
    assert found["grey"]["is_low_information_issue"] and not found["stored_as_rgb"]["is_low_information_issue"]
    assert quality.measure(np.asarray(grey.convert("RGB")))["colourfulness"] < QualityConfig().grayscale


@pytest.mark.peers
def test_cleanvision_takes_few_greys_for_sharpness(tmp_path: Path) -> None:
    """A glow without any edge, in 256 greys and in twenty."""
    across = np.linspace(-1, 1, 256) ** 2
    glow = np.exp(-3 * (across[:, None] + across))
    wide, narrow = ((glow * top).astype(np.uint8) for top in (255, 20))
    found = flags_of_cleanvision(tmp_path, wide=Image.fromarray(wide), narrow=Image.fromarray(narrow))
    assert found["wide"]["is_blurry_issue"] and not found["narrow"]["is_blurry_issue"]
    assert quality.measure(np.repeat(narrow[..., None], 3, axis=2))["sharpness"] < 1  # thousands in focus
