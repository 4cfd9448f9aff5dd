from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.slices.columns import columns_of

FACTS = pa.schema(
    [
        ("image_id", pa.string()),
        ("site", pa.string()),
        ("Odd name", pa.string()),
        ("wet", pa.bool_()),
        ("brightness", pa.float32()),
        ("entropy", pa.float64()),
        ("boxes", pa.int64()),
        ("width", pa.int32()),
        ("issues", pa.list_(pa.string())),
        ("attributes", pa.map_(pa.string(), pa.string())),
    ]
)
texts = st.sampled_from(["a", "b's", 'c"', "", "d"])
maybe = st.none
row = st.fixed_dictionaries(
    {
        "site": texts | maybe(),
        "Odd name": texts,
        "wet": st.booleans() | maybe(),
        "brightness": st.floats(0, 1, width=32) | st.sampled_from([0.1, 0.2]) | maybe(),
        "entropy": st.floats(allow_infinity=True, allow_nan=True) | st.integers(0, 9).map(float) | maybe(),
        "boxes": st.integers(0, 30),
        "width": st.sampled_from([100, 200]),
        "issues": st.lists(texts, max_size=3) | maybe(),
        "attributes": st.dictionaries(st.sampled_from(["k", "it's"]), texts, max_size=2).map(lambda d: list(d.items())),
    }
)


def facts_of(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist([r | {"image_id": f"i{k}"} for k, r in enumerate(rows)], schema=FACTS)


@given(st.lists(row, min_size=1, max_size=40), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_every_predicate_selects_the_images_of_its_code(rows: list[dict], least: int) -> None:
    facts = facts_of(rows)
    columns = columns_of(facts, least)
    with duckdb.connect() as db:
        db.register("facts", facts)
        for j, predicates in enumerate(columns.predicates):
            for value, where in enumerate(predicates):
                hits = db.sql(f"SELECT coalesce({where}, false) AS hit FROM facts").fetchnumpy()["hit"]
                np.testing.assert_array_equal(hits, columns.codes[:, j] == value, err_msg=where)
                np.testing.assert_array_equal(hits, columns.inside(((j, value),)))
                assert hits.sum() >= least


def test_names_ids_constants_and_copies_are_no_columns() -> None:
    rows = [
        {"image_id": f"i{k}", "site": "ab"[k % 2], "same": "xy"[k % 2], "one": "z", "phash": k, "split": "ab"[k // 5]}
        for k in range(10)
    ]
    columns = columns_of(pa.Table.from_pylist(rows), 1)
    assert columns.predicates == (("site = 'a'", "site = 'b'"),)


def test_numbers_are_cut_in_four_at_short_numbers() -> None:
    values = np.random.default_rng(0).normal(size=400).astype(np.float32)
    columns = columns_of(pa.table({"entropy": values}), 1)
    assert all(len(p) <= len("entropy >= -0.0123 AND entropy < -0.0123") for p in columns.predicates[0])
    assert np.bincount(columns.codes[:, 0]).min() >= 90


def test_a_conjunction_is_its_predicates_and_its_images() -> None:
    facts = pa.table({"site": ["a", "a", "b", "b"], "wet": [True, False, True, False]})
    columns = columns_of(facts, 1)
    chosen = ((0, 1), (1, 1))
    assert columns.sql(chosen) == "site = 'b' AND wet = true"
    assert columns.inside(chosen).tolist() == [False, False, True, False]
    assert columns_of(facts, 3).codes.shape == (4, 0)
