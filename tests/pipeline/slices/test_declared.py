from __future__ import annotations

import pyarrow as pa
import pytest

from pipeline import slices
from pipeline.config import SliceConfig
from pipeline.errors import ConfigError

IDS = ["a", "b", "c", "d"]


def made(tables, *wheres: str) -> dict[str, list[str]]:
    truth = tables.truth(
        [(i, "cat", (0, 0, n, n)) for i, n in (("a", 10), ("a", 20), ("b", 40), ("a", 9))],
        ignore=[False, False, False, True],
    )
    facts = slices.per_image(
        tables.images(IDS, [{"site": "north"}, {"site": "south"}, {"site": "north"}, {}]),
        tables.quality(IDS, [0.1, 0.5, 0.3, 0.9], [["dark"], [], [], ["blurry"]]),
        pa.concat_tables([tables.splits(["a", "b", "c"]), tables.splits(["d"], "train", gold=False)]),
        slices.image_counts(truth, ["a", "b", "c"]),
    )
    found = slices.declared(facts, [SliceConfig(name=f"s{k}", where=w) for k, w in enumerate(wheres)])
    members: dict[str, list[str]] = {}
    for row in found.to_pylist():
        members.setdefault(row["slice"], []).append(row["image_id"])
    return members


def test_predicates_see_every_table(tables) -> None:
    members = made(
        tables,
        "attributes['site'] = 'north'",
        "brightness < 0.35",
        "split = 'test' AND boxes >= 1",
        "median_box_area < 300",
        "boxes = 0",
        "list_contains(issues, 'blurry')",
        "width = 7",
        "NOT gold OR false",
        "list_contains(classes, 'cat')",
    )
    assert members == {
        "all": IDS,
        "s0": ["a", "c"],
        "s1": ["a", "c"],
        "s2": ["a", "b"],
        "s3": ["a"],
        "s4": ["c"],
        "s5": ["d"],
        "s7": ["d"],
        "s8": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("where", "remedy"),
    [("brightnes < 1", "'brightness'"), ("boxes >", "columns:"), ("boxes); DROP TABLE x; --", "columns:")],
)
def test_a_wrong_predicate_names_the_slice_and_the_column(tables, where: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(tables, where)
    assert "'s0'" in error.value.what and remedy in error.value.remedy


def test_a_predicate_reads_no_files(tables, tmp_path) -> None:
    (tmp_path / "x.csv").write_text("a\n1\n")
    with pytest.raises(ConfigError):
        made(tables, f"EXISTS (SELECT * FROM read_csv('{tmp_path}/x.csv'))")


def test_image_counts_by_hand(tables) -> None:
    truth = tables.truth([("a", "cat", (0, 0, n, n)) for n in (1, 2, 3, 4)] + [("b", "cat", (0, 0, 5, 5))])
    tags = tables.truth([("c", "wet", None), ("a", "ant", None)])
    rows = slices.image_counts(pa.concat_tables([truth, tags]), ["a", "b", "c"]).to_pylist()
    assert [(r["boxes"], r["median_box_area"]) for r in rows] == [(4, 6.5), (1, 25.0), (0, None)]
    assert [r["classes"] for r in rows] == [["ant", "cat"], ["cat"], ["wet"]]
    assert slices.image_counts(tables.truth([]), []).num_rows == 0


def test_slices_that_need_no_labels_are_told_by_their_columns() -> None:
    wheres = ("brightness < 0.35", "boxes >= 30", "median_box_area < 9", "attributes['site'] = 'a'", "split = 'val'",
              "list_contains(classes, 'a')")  # fmt: skip
    specs = [SliceConfig(name=f"s{k}", where=w) for k, w in enumerate(wheres)]
    assert [s.name for s in slices.without_labels(specs)] == ["s0", "s3"]
