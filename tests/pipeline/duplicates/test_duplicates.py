from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import schema
from pipeline.config import CurationConfig
from pipeline.duplicates import Found, find_duplicates
from tests.pipeline.curated_rows import image_rows, quality_rows, unit

CONFIG = CurationConfig(hash_duplicate=4, embedding_duplicate=0.02)
NONE = ([], np.zeros((0, 4), np.float32))


def far_hashes(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, n).tolist()


def flipped(value: int, bits: int) -> int:
    return int(np.int64(value) ^ np.int64((1 << bits) - 1))


def test_the_kept_image_is_the_largest_then_the_sharpest_then_the_first() -> None:
    ids = ["a", "b", "c", "d"]
    images = image_rows(ids, width=[50, 100, 100, 100])
    quality = quality_rows(ids, phash=[7, 7, 7, 7], sharpness=[900.0, 5.0, 9.0, 9.0])
    found = find_duplicates(images, quality, *NONE, CONFIG).duplicates
    assert found.select(["image_id", "duplicate_of", "kind", "distance"]).to_pylist() == [
        {"image_id": i, "duplicate_of": "c", "kind": "perceptual", "distance": 0.0} for i in ("a", "b", "d")
    ]
    assert len(set(found.column("cluster").to_pylist())) == 1


def test_kinds_and_distances() -> None:
    ids = ["a", "b", "c", "d", "e"]
    hashes = far_hashes(5)
    hashes[1] = flipped(hashes[0], 3)
    vectors = unit([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.1, 0, 1], [1, -1, 0]])
    found = find_duplicates(image_rows(ids), quality_rows(ids, phash=hashes), ids, vectors, CONFIG).duplicates
    rows = {r["image_id"]: r for r in found.to_pylist()}
    assert set(rows) == {"b", "d"}
    assert (rows["b"]["kind"], rows["b"]["duplicate_of"], rows["b"]["distance"]) == ("perceptual", "a", 3.0)
    assert (rows["d"]["kind"], rows["d"]["duplicate_of"]) == ("embedding", "c")
    assert rows["d"]["distance"] == pytest.approx(1 - 1 / np.sqrt(1.01), abs=1e-6)
    assert rows["b"]["cluster"] != rows["d"]["cluster"]


def test_the_same_file_in_two_batches_is_an_exact_duplicate() -> None:
    images = pa.concat_tables([image_rows(["a", "b"], "one"), image_rows(["a"], "two")])
    quality = pa.concat_tables(
        [quality_rows(["a", "b"], "one", phash=far_hashes(2)), quality_rows(["a"], "two", phash=far_hashes(1))]
    )
    found = find_duplicates(images, quality, *NONE, CONFIG).duplicates
    assert found.drop_columns("cluster").to_pylist() == [
        {"image_id": "a", "duplicate_of": "a", "kind": "exact", "distance": 0.0}
    ]


def test_overlapping_tiles_are_no_duplicates_of_each_other_but_of_a_copy() -> None:
    ids = ["t0", "t1", "t2", "copy"]
    images = image_rows(ids, parent_id=["p", "p", "p", "q"], tile_x=[0, 50, 100, 0], width=[100, 100, 100, 90])
    same = quality_rows(ids, phash=[5] * 4)
    found = {
        (r["image_id"], r["duplicate_of"]) for r in find_duplicates(images, same, *NONE, CONFIG).duplicates.to_pylist()
    }
    assert found == {("t2", "t0"), ("copy", "t0")}  # t1 overlaps t0; t2 only touches it
    alone = images.slice(0, 2)
    assert find_duplicates(alone, same.slice(0, 2), *NONE, CONFIG).duplicates.num_rows == 0


def test_flat_images_are_not_compared_by_hash() -> None:
    ids = ["a", "b"]
    quality = quality_rows(ids, phash=[0, 0], issues=[["low_information"], ["low_information"]])
    assert find_duplicates(image_rows(ids), quality, *NONE, CONFIG).duplicates.num_rows == 0


def test_nothing_gives_nothing() -> None:
    empty = (schema.table("images").empty(), schema.table("quality").empty())
    assert find_duplicates(*empty, *NONE, CONFIG).duplicates.num_rows == 0
    assert find_duplicates(image_rows(["a"]), empty[1], *NONE, CONFIG).duplicates.num_rows == 0


class World:
    """Random images, tiles of few photos among them, with hashes and vectors that are often near."""

    def __init__(self, n: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.ids = [f"i{i:02d}" for i in range(n)]
        self.hashes = [flipped(HASHES[int(k)], int(b)) for k, b in draw.integers(0, [4, 9], (n, 2))]
        self.parents = [f"p{k}" for k in draw.integers(0, 1 + n // 3, n)]
        self.left = draw.integers(0, 80, n).tolist()
        self.widths = draw.integers(50, 60, n).tolist()
        self.vectors = unit(draw.normal(size=(n, 2)))
        self.embedded = draw.random(n) < 0.9

    def find(self, some: list[int], config: CurationConfig = CONFIG, before: pa.Table | None = None) -> Found:
        def of(values: list[Any]) -> list[Any]:
            return [values[i] for i in some]

        images = image_rows(of(self.ids), width=of(self.widths), parent_id=of(self.parents), tile_x=of(self.left))
        quality = quality_rows(of(self.ids), phash=of(self.hashes))
        there = [i for i in some if self.embedded[i]]
        return find_duplicates(images, quality, [self.ids[i] for i in there], self.vectors[there], config, before)

    def linked(self, i: int, j: int, config: CurationConfig = CONFIG) -> bool:
        overlap = self.left[i] < self.left[j] + self.widths[j] and self.left[j] < self.left[i] + self.widths[i]
        if self.parents[i] == self.parents[j] and overlap:
            return False
        bits = ((self.hashes[i] % 2**64) ^ (self.hashes[j] % 2**64)).bit_count()
        apart = 1 - self.vectors[i].astype(float) @ self.vectors[j].astype(float)
        both = self.embedded[i] and self.embedded[j]
        return bits <= config.hash_duplicate or bool(both and apart < config.embedding_duplicate)


HASHES = far_hashes(4, 1)


@given(st.integers(1, 25), st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_clusters_are_the_connected_components_of_brute_force(n: int, seed: int) -> None:
    world = World(n, seed)
    graph = nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from((i, j) for i in range(n) for j in range(i + 1, n) if world.linked(i, j))
    found = world.find(list(range(n)))
    expected = {frozenset(world.ids[i] for i in part) for part in nx.connected_components(graph) if len(part) > 1}
    clusters: dict[str, set[str]] = {}
    for row in found.duplicate_clusters.to_pylist():
        clusters.setdefault(row["cluster"] or row["image_id"], set()).add(row["image_id"])
    assert {frozenset(c) for c in clusters.values() if len(c) > 1} == expected
    for row in found.duplicates.to_pylist():
        (part,) = [p for p in expected if row["image_id"] in p]
        at = world.ids.index
        assert row["duplicate_of"] == min(part, key=lambda i: (-world.widths[at(i)], i))
    assert world.find(list(range(n))).duplicates.equals(found.duplicates) and found.compared == n


@given(st.integers(1, 25), st.integers(0, 10_000), st.data())
@settings(max_examples=100, deadline=None)
def test_what_was_compared_before_is_spared_and_the_outcome_is_the_same(n: int, seed: int, data: st.DataObject) -> None:
    """Images come, go, and change between two runs."""
    world, later = World(n, seed), World(n, seed)
    subsets = st.lists(st.sampled_from(range(n)), unique=True, min_size=1)
    first, second = data.draw(subsets), data.draw(subsets)
    before = world.find(first).duplicate_clusters
    for i in data.draw(st.lists(st.sampled_from(range(n)), max_size=2)):
        later.hashes[i] = flipped(later.hashes[i], 11)
        later.embedded[i] = not later.embedded[i]
    found = later.find(second, before=before)
    anew = later.find(second)
    assert found.duplicates.equals(anew.duplicates)
    assert found.duplicate_clusters.equals(anew.duplicate_clusters)
    assert later.find(second, before=found.duplicate_clusters).compared == 0
    assert later.find(
        second, CONFIG.model_copy(update={"hash_duplicate": 5}), found.duplicate_clusters
    ).compared == len(second)


def test_only_a_new_batch_is_compared() -> None:
    ids = [f"i{i:04d}" for i in range(400)]
    vectors = unit(np.random.default_rng(0).normal(size=(400, 32)))
    vectors[399] = vectors[0]
    images, quality = image_rows(ids), quality_rows(ids, phash=far_hashes(400))
    old = find_duplicates(images.slice(0, 380), quality.slice(0, 380), ids[:380], vectors[:380], CONFIG)
    new = find_duplicates(images, quality, ids, vectors, CONFIG, old.duplicate_clusters)
    assert (old.compared, new.compared) == (380, 20)
    assert new.duplicates.select(["image_id", "duplicate_of"]).to_pylist() == [
        {"image_id": "i0399", "duplicate_of": "i0000"}
    ]


def test_more_than_exact_up_to_are_compared_in_cells() -> None:
    ids = [f"i{i:04d}" for i in range(600)]
    draw = np.random.default_rng(0)
    base = draw.normal(size=(300, 16))
    vectors = unit(np.concatenate([base, base + 0.01 * draw.normal(size=base.shape)]))
    arguments = (image_rows(ids), quality_rows(ids, phash=far_hashes(600)), ids, vectors)
    exact = find_duplicates(*arguments, CONFIG)
    fast = find_duplicates(*arguments, CONFIG.model_copy(update={"exact_up_to": 10, "recall": 0.95}))
    assert exact.recall is None and fast.recall is not None and fast.recall.low > 0.9
    same = set(exact.duplicates.column("image_id").to_pylist()) & set(fast.duplicates.column("image_id").to_pylist())
    assert exact.duplicates.num_rows == 300 and len(same) >= 280


def test_folding_pairs_early_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(25, 3)
    whole = world.find(list(range(25))).duplicates
    monkeypatch.setattr("pipeline.duplicates.clusters._FOLD", 1)
    monkeypatch.setattr("pipeline.duplicates.vectors.ROWS", 7)
    assert world.find(list(range(25))).duplicates.equals(whole)
