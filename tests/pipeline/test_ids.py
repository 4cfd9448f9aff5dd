from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import ids

TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=4)), min_size=1, max_size=12)


def test_images_are_named_by_their_bytes_and_tiles_by_their_window() -> None:
    assert ids.image_id(b"abc") == hashlib.sha256(b"abc").hexdigest()
    tiles = {ids.tile_id("p", w) for w in ((0, 0, 4, 4), (0, 4, 4, 4), (4, 0, 4, 4))} | {ids.tile_id("q", (0, 0, 4, 4))}
    assert len(tiles) == 4


def test_the_config_hash_ignores_the_order_of_keys_only() -> None:
    assert ids.config_hash({"a": 1, "b": [1, 2]}) == ids.config_hash({"b": [1, 2], "a": 1})
    assert ids.config_hash({"a": 1, "b": [1, 2]}) != ids.config_hash({"a": 1, "b": [2, 1]})
    name = ids.producer("crowns", "1", {"threshold": 0.5})
    assert name != ids.producer("crowns", "1", {"threshold": 0.6}) and ids.producer_name(name) == "crowns"


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 2)), max_size=30))
@settings(deadline=None)
def test_annotation_ids_are_unique_even_for_equal_rows(rows: list[tuple[str, str, int]]) -> None:
    images, classes = [r[0] for r in rows], [r[1] for r in rows]
    boxes = np.array([[r[2]] * 4 for r in rows], np.float32).reshape(-1, 4)
    found = ids.annotation_ids(images, "m", classes, boxes)
    assert len(set(found)) == len(rows)
    assert found == ids.annotation_ids(images, ["m"] * len(rows), classes, boxes + 1e-4)
    assert not set(found) & set(ids.annotation_ids(images, "n", classes, boxes))


@given(TEXTS, st.lists(st.integers(0, 12), max_size=4))
@settings(deadline=None)
def test_the_content_hash_does_not_depend_on_chunks_or_slices(texts: list[str | None], cuts: list[int]) -> None:
    lists = [None if t is None else list(t) for t in texts]
    maps = [[(t or "", "v")] * (i % 3) for i, t in enumerate(texts)]
    table = pa.table(
        {
            "t": pa.array(texts, pa.string()),
            "n": pa.array(range(len(texts))),
            "l": pa.array(lists, pa.list_(pa.string())),
            "m": pa.array(maps, pa.map_(pa.string(), pa.string())),
            "b": pa.array([i % 2 == 0 for i in range(len(texts))]),
        }
    )
    parts = [table.slice(a, b - a) for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), 12], strict=True)]
    assert ids.content_hash(pa.concat_tables(parts)) == ids.content_hash(table)
    padded = pa.concat_tables([table, table]).combine_chunks().slice(len(texts))
    assert ids.content_hash(padded) == ids.content_hash(table)


def test_the_content_hash_does_not_see_what_lies_under_nulls() -> None:
    clean = pa.array([1.0, None, 3.0])
    dirty = pa.array(np.array([1.0, 7.0, 3.0]), mask=np.array([False, True, False]))
    assert ids.content_hash(pa.table({"v": dirty})) == ids.content_hash(pa.table({"v": clean}))
    assert ids.content_hash(pa.table({"v": clean.fill_null(0)})) != ids.content_hash(pa.table({"v": clean}))
    lists = pa.array([["a"], None, []], pa.list_(pa.string()))
    other = pa.array([["a"], [], []], pa.list_(pa.string()))
    assert ids.content_hash(pa.table({"v": lists})) != ids.content_hash(pa.table({"v": other}))


def test_the_content_hash_sees_values_order_names_and_types() -> None:
    tables = [
        pa.table({"v": pa.array(v, t)})
        for v, t in (
            ([1, 2], pa.int32()),
            ([2, 1], pa.int32()),
            ([1, 2], pa.int64()),
            ([1, None], pa.int32()),
            ([], pa.int32()),
        )
    ]
    tables.append(pa.table({"w": pa.array([1, 2], pa.int32())}))
    assert len({ids.content_hash(t) for t in tables}) == len(tables)


def test_seeds_and_sets() -> None:
    assert ids.seed("a", 1) == ids.seed("a", 1) != ids.seed("a", 2)
    assert 0 <= ids.seed("x") < 2**32
    assert ids.joined(["b", "a"]) == ids.joined(["a", "b"]) != ids.joined(["a"])
