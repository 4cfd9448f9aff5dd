from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.predicates import matches
from tests.pipeline.curated_rows import image_rows

ROWS = image_rows(["a", "b", "c"], attributes=[[("site", "x")], [], [("site", "y"), ("n", "1")]], width=[1, 2, 3])


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("attributes['site'] = 'x'", [True, False, False]),
        ("attributes['site'] <> 'x'", [False, False, True]),  # NULL is no match
        ("width > 1 -- a comment", [False, True, True]),
        ("true", [True] * 3),
        ("width IS NULL", [False] * 3),
    ],
)
def test_predicates_see_columns_and_attributes(where: str, expected: list[bool]) -> None:
    assert matches(ROWS, where, "p").tolist() == expected


@given(st.lists(st.integers(0, 20), max_size=50), st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_order_of_rows_is_kept(widths: list[int], limit: int) -> None:
    rows = image_rows([f"i{i}" for i in range(len(widths))], width=widths)
    np.testing.assert_array_equal(matches(rows, f"width >= {limit}", "p"), np.array(widths, int) >= limit)


@pytest.mark.parametrize(
    ("where", "remedy"),
    [
        ("widht > 1", "'width'"),
        ("width >", "columns:"),
        ("width", "compare"),
        ("(SELECT count(*) FROM read_csv('/etc/passwd')) > 0", "columns:"),
    ],
)
def test_what_is_no_predicate_names_its_place_and_a_remedy(where: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        matches(ROWS, where, "curation.splits.assign[1].where")
    assert "curation.splits.assign[1].where" in caught.value.what and remedy in caught.value.remedy
