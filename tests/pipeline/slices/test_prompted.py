from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import schema, slices
from pipeline.config import SliceConfig, parse_config
from pipeline.errors import ConfigError
from pipeline.models.tiny import TinyEncoder
from pipeline.slices.prompted import learned_similarity
from tests.pipeline.curated_rows import unit


def planar(angles: np.ndarray) -> np.ndarray:
    return unit(np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], axis=1))


def of_text(texts: Any) -> np.ndarray:
    """A text tower: 'east' is the first axis, 'north' the second."""
    return np.array([[1.0, 0, 0] if "east" in t else [0, 1.0, 0] for t in texts])


def table_of(specs: list[SliceConfig], angles: np.ndarray, places: pa.Table | None = None) -> pa.Table:
    ids = [f"i{k:03d}" for k in range(len(angles))]
    facts = pa.table({"image_id": ids, "n": pa.array(range(len(ids)), pa.int64())})
    none = schema.table("map").empty()
    return slices.declared_table(facts, specs, ids, planar(angles), none if places is None else places, lambda: of_text)


def members(table: pa.Table, name: str) -> list[str]:
    return [r["image_id"] for r in table.to_pylist() if r["slice"] == name]


def test_a_text_with_a_given_similarity_selects_by_cosine() -> None:
    angles = np.linspace(0, np.pi / 2, 91)
    table = table_of([SliceConfig(name="e", text="east", at_least=np.cos(np.radians(30.5)))], angles)
    assert members(table, "e") == [f"i{k:03d}" for k in range(31)]
    assert len(members(table, "all")) == 91
    (told,) = {r["definition"] for r in table.to_pylist() if r["slice"] == "e"}
    assert told == "text 'east': similarity of 0.8616 or more"


def test_a_learned_similarity_parts_two_groups_and_finds_none_in_one() -> None:
    rng = np.random.default_rng(0)
    angles = np.concatenate([rng.normal(0.2, 0.05, 40), rng.normal(1.2, 0.1, 160)])
    table = table_of([SliceConfig(name="e", text="east"), SliceConfig(name="few", where="n < 3")], angles)
    assert members(table, "e") == [f"i{k:03d}" for k in range(40)]
    assert members(table, "few") == ["i000", "i001", "i002"]
    assert learned_similarity(rng.normal(0.3, 0.02, 500)) is None
    assert learned_similarity(np.full(50, 0.3)) is None and learned_similarity(np.zeros(3)) is None


def test_what_is_more_alike_than_the_group_stays_in_it() -> None:
    rng = np.random.default_rng(1)
    alike = np.concatenate([rng.normal(0.2, 0.08, 900), rng.normal(0.6, 0.01, 100), [0.99]])
    limit = learned_similarity(alike)
    assert limit is not None and 0.5 < limit < 0.6


def test_a_polygon_selects_on_the_map_and_the_map_stays_when_images_are_added() -> None:
    rng = np.random.default_rng(0)
    vectors = unit(rng.normal(size=(60, 5)) * [4, 2, 1, 1, 1])
    ids = [f"i{k:03d}" for k in range(60)]
    first = slices.map_of("e", ids[:40], vectors[:40], schema.table("map_axes").empty())
    second = slices.map_of("e", ids, vectors, first["map_axes"])
    assert second["map"].slice(0, 40).equals(first["map"]) and second["map_axes"].equals(first["map_axes"])
    places = second["map"].to_pylist()
    chosen = [r["image_id"] for r in places if r["x"] > 0.1 and -0.3 < r["y"] < 0.3 and r["x"] < 2]
    corners = [(0.1, -0.3), (2, -0.3), (2, 0.3), (0.1, 0.3)]
    table = slices.declared_table(
        pa.table({"image_id": ids}), [SliceConfig(name="p", polygon=corners)], ids, vectors, second["map"],
        lambda: pytest.fail("no text was asked for"),
    )  # fmt: skip
    assert chosen and members(table, "p") == chosen
    other = slices.map_of("f", ids, vectors, first["map_axes"])  # another encoder has a map of its own
    assert other["map_axes"].column("encoder").unique().to_pylist() == ["f"]


def test_the_map_is_that_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.decomposition import PCA

    monkeypatch.setattr("pipeline.slices.mapped._BLOCK", 7)
    vectors = unit(np.random.default_rng(0).normal(size=(50, 6)) * [3, 2, 1, 1, 1, 1])
    ids = [f"i{k:03d}" for k in range(50)]
    made = slices.map_of("e", ids, vectors, schema.table("map_axes").empty())["map"]
    expected = PCA(2).fit_transform(vectors.astype(float))
    for name, column in zip("xy", expected.T, strict=True):
        found = made.column(name).to_numpy()
        np.testing.assert_allclose(found * np.sign(found @ column), column, atol=1e-6)
    empty = slices.map_of("e", [], np.zeros((0, 0)), schema.table("map_axes").empty())
    assert empty["map"].num_rows == empty["map_axes"].num_rows == 0


def test_an_encoder_without_texts_is_refused_with_the_remedy() -> None:
    class ImagesOnly:
        pass

    with pytest.raises(ConfigError, match="ImagesOnly knows images only") as raised:
        slices.text_tower(ImagesOnly(), "a slice declared by a text")
    assert "text tower" in raised.value.remedy and "polygon" in raised.value.remedy
    assert slices.text_tower(TinyEncoder(), "x")(["a tree"]).shape[0] == 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "needs one of where, text and polygon"),
        ({"where": "boxes > 3", "text": "snow"}, "needs one of"),
        ({"where": "boxes > 3", "at_least": 0.2}, "at_least goes with text"),
        ({"polygon": [[0, 0], [1, 1]]}, "three corners"),
    ],
)
def test_a_slice_is_declared_in_one_way(spec: dict[str, Any], words: str) -> None:
    data = {"name": "x", "classes": {"a": {}}, "source": {"uri": "s"}, "evaluation": {"slices": [{"name": "s"} | spec]}}
    with pytest.raises(ConfigError, match=words):
        parse_config(data)


def test_slices_that_need_vectors_are_no_slices_without_labels() -> None:
    specs = [SliceConfig(name="t", text="snow"), SliceConfig(name="w", where="width > 3")]
    assert [s.name for s in slices.without_labels(specs)] == ["w"]
