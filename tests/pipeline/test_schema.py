from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.errors import DataError
from tests.pipeline.curated_rows import image_rows, quality_rows


@pytest.mark.parametrize("table", schema.TABLES.values(), ids=lambda t: t.name)
def test_every_table_is_well_formed(table: schema.Table) -> None:
    names = [c.name for c in table.columns]
    assert len(set(names)) == len(names) and set(table.key) <= set(names)
    assert all(c.doc for c in table.columns) and table.doc
    younger = {"slice_traits": {"model"}, "descriptions": {"model"}}.get(table.name, set())  # than stores that hold it
    assert {c.name for c in table.columns if c.name in table.key and c.optional} == younger
    assert not table.batched or "batch" in names
    empty = table.empty()
    assert table.conform(empty).equals(empty) and table.duplicate_keys(empty) == 0
    assert table.from_rows([]).schema == table.schema


def test_conform_orders_casts_and_drops() -> None:
    rows = quality_rows(["a"])
    shuffled = rows.select(rows.column_names[::-1]).append_column("extra", pa.array([1]))
    wide = shuffled.set_column(
        shuffled.schema.get_field_index("brightness"), "brightness", pa.array([0.5], pa.float64())
    )
    assert schema.table("quality").conform(wide).equals(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns("phash"), "lacks the column 'phash'"),
        (lambda t: t.set_column(2, "brightness", pa.array([None], pa.float32())), "1 nulls in quality.brightness"),
        (lambda t: t.set_column(2, "brightness", pa.array(["x"])), "quality.brightness must be float"),
    ],
)
def test_what_does_not_conform_is_named(change, message: str) -> None:
    with pytest.raises(DataError, match=message):
        schema.table("quality").conform(change(quality_rows(["a"])))


def test_unknown_columns_and_tables_are_named() -> None:
    with pytest.raises(DataError, match="no column 'brightnes'"):
        schema.table("quality").from_columns({"brightnes": [1.0]})
    with pytest.raises(DataError, match="did you mean 'quality'"):
        schema.table("qualty")


def test_repeated_keys_are_counted() -> None:
    rows = pa.concat_tables([image_rows(["a", "b"]), image_rows(["a"]), image_rows(["a"], "other")])
    assert schema.table("images").duplicate_keys(rows) == 1


def test_annotations_fill_in_ids_and_flags_and_give_their_boxes_back() -> None:
    corners = np.array([[1, 2, 3, 4], [1, 2, 3, 4]], np.float32)
    rows = schema.annotations(
        "detections",
        image_ids=["a", "a"],
        batch="b",
        producer="m",
        classes=["c", "c"],
        boxes=corners,
        truncated=[True, False],
    )
    assert len(set(rows.column("annotation_id").to_pylist())) == 2
    np.testing.assert_array_equal(schema.box_array(rows), corners)
    assert rows.column("score").to_pylist() == [1, 1] and rows.column("truncated").to_pylist() == [True, False]


def test_image_level_labels_and_none_at_all() -> None:
    tags = schema.annotations(
        "tags",
        image_ids=["a"],
        batch=["b"],
        producer=["m"],
        classes=["c"],
        boxes=None,
        scores=[0.5],
        probability=[0.7],
        rank=[1],
    )
    assert np.isnan(schema.box_array(tags)).all() and tags.column("x1").null_count == 1
    none = schema.annotations("detections", image_ids=[], batch="b", producer="m", classes=[], boxes=np.zeros((0, 4)))
    assert none.num_rows == 0 and schema.box_array(none).shape == (0, 4)


def test_one_segmenter_draws_whichever_rows_are_asked_about() -> None:
    boxes = schema.annotations(
        "detections", image_ids=["a", "a"], batch="b", producer="m", classes=["c", "c"],
        boxes=np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32),
    )  # fmt: skip
    first, second = boxes["annotation_id"].to_pylist()
    drawn = [(first, "one@1", "1"), (second, "one@1", "2"), (second, "two@1", "3")]
    masks = pa.table(dict(zip(("annotation_id", "producer", "mask"), zip(*drawn, strict=True), strict=True)))
    assert schema.with_masks(boxes, masks)["mask"].to_pylist() == ["3"]
    assert schema.with_masks(boxes.slice(0, 1), masks).num_rows == 0, "not the other segmenter's"
    assert schema.with_masks(boxes, masks.slice(0, 0)).num_rows == 0


def test_where_in_keeps_the_order_of_rows() -> None:
    rows = image_rows(["c", "a", "b", "a"])
    assert schema.where_in(rows, "image_id", {"a", "c"}).column("image_id").to_pylist() == ["c", "a", "a"]
    assert schema.where_in(rows, "image_id", []).num_rows == 0
