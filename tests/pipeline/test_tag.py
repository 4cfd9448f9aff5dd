from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from pipeline.models.tiny import TinyEncoder
from pipeline.models.zero_shot import class_vectors
from pipeline.ontology import Class, Ontology
from pipeline.tag import tag, tag_producer

ONTOLOGY = Ontology(
    (Class("cat", ("a cat", "kitten")), Class("dog", ("a dog",)), Class("car", ("a car", "van", "bus")))
)
TEMPLATES = ["a photo of {}", "{} in the snow"]


def unit(n: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_tags_are_a_plain_softmax_over_prompt_ensembles(n: int, seed: int) -> None:
    encoder, vectors = TinyEncoder(), unit(n, seed)
    centres = []
    for c in ONTOLOGY:
        mean = encoder.encode_texts([t.format(p) for t in TEMPLATES for p in c.prompts]).mean(axis=0)
        centres.append(mean / np.linalg.norm(mean))
    expected = softmax(vectors @ np.stack(centres).T * encoder.temperature, axis=1)
    rows = tag(vectors, [f"i{k}" for k in range(n)], "b", ONTOLOGY, TEMPLATES, encoder).to_pylist()
    assert len(rows) == 3 * n
    for k in range(n):
        mine = [r for r in rows if r["image_id"] == f"i{k}"]
        by_class = {r["class_name"]: r["probability"] for r in mine}
        np.testing.assert_allclose([by_class[c] for c in ONTOLOGY.names], expected[k], atol=1e-5)
        assert [r["rank"] for r in mine] == [1, 2, 3]
        assert [r["probability"] for r in mine] == sorted(by_class.values(), reverse=True)
        assert all(r["score"] == r["probability"] and r["x1"] is None and r["batch"] == "b" for r in mine)
    assert len({r["annotation_id"] for r in rows}) == len(rows)


def test_class_vectors_are_unit_and_in_order() -> None:
    centres = class_vectors(ONTOLOGY, TEMPLATES, TinyEncoder())
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1)
    (alone,) = class_vectors(Ontology((ONTOLOGY.classes[1],)), TEMPLATES, TinyEncoder())
    np.testing.assert_allclose(centres[1], alone)


def test_equal_classes_rank_in_the_ontology_s_order() -> None:
    twins = Ontology((Class("z", ("same",)), Class("a", ("same",))))
    rows = tag(unit(1, 0), ["i"], "b", twins, ["{}"], TinyEncoder()).to_pylist()
    assert [(r["class_name"], r["probability"]) for r in rows] == [("z", 0.5), ("a", 0.5)]


def test_one_class_is_certain_and_no_images_give_no_rows() -> None:
    one = Ontology((Class("a", ("x",)),))
    assert tag(unit(1, 0), ["i"], "b", one, ["{}"], TinyEncoder()).column("probability").to_pylist() == [1.0]
    assert tag(np.zeros((0, 0), np.float32), [], "b", one, ["{}"], TinyEncoder()).num_rows == 0


def test_an_image_s_tags_do_not_depend_on_the_others() -> None:
    vectors = unit(7, 3)
    all_rows = tag(vectors, list("abcdefg"), "b", ONTOLOGY, TEMPLATES, TinyEncoder())
    alone = tag(vectors[4:5], ["e"], "b", ONTOLOGY, TEMPLATES, TinyEncoder())
    assert all_rows.slice(12, 3).equals(alone)


@pytest.mark.parametrize(
    ("ontology", "templates", "encoder"),
    [
        (Ontology((Class("cat", ("x",)),)), TEMPLATES, "e@1#0"),
        (ONTOLOGY, TEMPLATES[:1], "e@1#0"),
        (ONTOLOGY, TEMPLATES, "e@1#1"),
    ],
)
def test_the_producer_follows_prompts_templates_and_encoder(
    ontology: Ontology, templates: Sequence[str], encoder: str
) -> None:
    first = tag_producer("e@1#0", ONTOLOGY, TEMPLATES)
    assert first.startswith("e_zero_shot@1#")
    assert tag_producer(encoder, ontology, templates) != first == tag_producer("e@1#0", ONTOLOGY, TEMPLATES)
