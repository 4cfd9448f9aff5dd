from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import boxes as box_ops
from pipeline.models.compact_detector import TERM_OF_ID, TERMS, CompactDetector, match_terms, producer
from pipeline.models.roles import Detector
from pipeline.ontology import Class, Ontology


def ontology(**prompts: str) -> Ontology:
    return Ontology(tuple(Class(name, tuple(words.split("|"))) for name, words in prompts.items()))


def test_the_80_terms_are_coco_s() -> None:
    assert len(TERMS) == len(set(TERMS)) == len(TERM_OF_ID) == 80
    known = {1: "person", 13: "stop sign", 14: "parking meter", 27: "backpack", 44: "bottle", 67: "dining table"}
    known |= {70: "toilet", 72: "tv", 82: "refrigerator", 84: "book", 90: "toothbrush"}
    assert {i: TERM_OF_ID[i] for i in known} == known


@pytest.mark.parametrize(
    ("prompt", "term"),
    [
        ("dog", "dog"),
        ("A Dog.", "dog"),
        ("the dogs", "dog"),
        ("traffic_lights", "traffic light"),
        ("sandwiches", "sandwich"),
        ("wine glasses", "wine glass"),
        ("people", "person"),
        ("skis", "skis"),
        ("scissors", "scissors"),
        ("mice", "mouse"),
    ],
)
def test_words_plurals_and_synonyms_match_exactly(prompt: str, term: str) -> None:
    assert [(t.matched, t.similarity) for t in match_terms(ontology(c=prompt))] == [(term, 1.0)]


@pytest.mark.weights
@pytest.mark.parametrize(
    ("prompt", "term"),
    [("sofa", "couch"), ("automobile", "car"), ("puppy", "dog"), ("aircraft", "airplane"), ("motorbike", "motorcycle")],
)
def test_other_words_match_by_meaning(prompt: str, term: str) -> None:
    (found,) = match_terms(ontology(c=prompt))
    assert found.matched == term and 0.55 <= found.similarity < 1


@pytest.mark.weights
@pytest.mark.parametrize("prompt", ["tree", "tree crown seen from above", "woven fabric", "crack", "solar panel"])
def test_what_coco_has_no_word_for_is_not_matched(prompt: str) -> None:
    (found,) = match_terms(ontology(c=prompt))
    assert found.matched is None and 0 <= found.similarity < 0.55


@pytest.fixture(scope="module")
def detector() -> CompactDetector:
    return CompactDetector(ontology(animal="dog|cat", car="car", tree="tree"))


@pytest.mark.weights
def test_it_fills_the_role_and_says_how_it_understood(detector: CompactDetector) -> None:
    assert isinstance(detector, Detector)
    said = [(t.class_name, t.prompt, t.matched) for t in detector.vocabulary()]
    assert said == [("animal", "dog", "dog"), ("animal", "cat", "cat"), ("car", "car", "car"), ("tree", "tree", None)]


@pytest.mark.weights
def test_a_class_without_a_term_yields_nothing() -> None:
    found = CompactDetector(ontology(tree="tree")).detect([np.zeros((50, 50, 3), np.uint8)])
    assert [len(f.classes) for f in found] == [0]
    assert found[0].boxes.shape == (0, 4)


@pytest.mark.weights
def test_boxes_lie_inside_and_are_ranked_and_do_not_depend_on_neighbours(detector: CompactDetector) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((120, 300), (301, 77), (1, 5))]
    together = detector.detect(images)
    for image, found in zip(images, together, strict=True):
        alone = detector.detect([image])[0]
        assert (alone.boxes == found.boxes).all() and (alone.scores == found.scores).all()
        assert (box_ops.clip(found.boxes, image.shape[1], image.shape[0]) == found.boxes).all()
        assert (np.diff(found.scores) <= 0).all() and ((found.scores >= 0.05) & (found.scores <= 1)).all()
        assert found.boxes.dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([0.3, 0.5, 0.7]))
def test_suppression_is_torchvision_s_batched_nms(seed: int, count: int, threshold: float) -> None:
    import torch

    from pipeline.torch_compat import import_torchvision

    ops = import_torchvision().ops
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 40, (count, 2)).astype(np.float32)
    corners = np.concatenate([low, low + rng.integers(1, 40, (count, 2))], axis=1).astype(np.float32)
    scores = rng.permutation(count).astype(np.float32) / count
    terms = rng.integers(0, 2, count)
    detector = CompactDetector.__new__(CompactDetector)
    detector._nms_iou, detector._classes = threshold, {"a": {"dog"}, "b": {"car"}}
    found = detector._by_class(corners, scores, [("dog", "car")[t] for t in terms])
    kept = ops.batched_nms(torch.tensor(corners), torch.tensor(scores), torch.tensor(terms), threshold).numpy()
    assert (found.boxes == corners[kept]).all()
    assert found.classes == tuple(("a", "b")[t] for t in terms[kept])


def test_the_producer_changes_with_prompts_and_thresholds() -> None:
    first = producer(ontology(a="dog"))
    assert first.startswith("compact_detector@") and first == producer(ontology(a="dog"))
    others = {producer(ontology(a="cat")), producer(ontology(a="dog"), 0.4), producer(ontology(a="dog"), floor=0.1)}
    assert len(others) == 3 and first not in others
    assert producer(ontology(a="dog"), name="mine").startswith("mine@")
