from __future__ import annotations

import pytest

from pipeline.ontology import Class, Ontology

TREES = Ontology((Class("Tree", ("tree", "tree crown"), ("Dead", "Alive")), Class("Bird", ("bird",))))


@pytest.mark.parametrize(
    ("word", "name"),
    [("Tree", "Tree"), (" tREE ", "Tree"), ("dead", "Tree"), ("BIRD", "Bird"), ("tree crown", None), ("", None)],
)
def test_names_and_aliases_are_matched_without_regard_to_case(word: str, name: str | None) -> None:
    assert TREES.resolve(word) == name


def test_classes_keep_their_order() -> None:
    assert TREES.names == ["Tree", "Bird"] and len(TREES) == 2 and [c.name for c in TREES] == TREES.names
    assert TREES.prompts() == [("Tree", "tree"), ("Tree", "tree crown"), ("Bird", "bird")]


def test_a_name_wins_over_another_class_s_alias() -> None:
    both = Ontology((Class("bird", ("bird",)), Class("animal", ("animal",), ("bird",))))
    assert both.resolve("bird") == "bird"
