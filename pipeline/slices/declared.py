"""Slices that the user declared, and the row of facts about each image that they are declared over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.boxes import area
from pipeline.config import SliceConfig
from pipeline.errors import ConfigError, suggest

MEMBERS = pa.schema([pa.field("slice", pa.string(), False), pa.field("image_id", pa.string(), False)])


def image_counts(ground_truth: pa.Table, annotated: Iterable[str]) -> pa.Table:
    """What people said of each annotated image: `boxes`, `median_box_area` in square pixels, `classes`.

    Ignore regions are left out; the median is null for an image without boxes.
    """
    ids = sorted(set(annotated))
    ignored = pc.or_(ground_truth.column("ignore"), ground_truth.column("is_crowd"))
    said = schema.where_in(ground_truth.filter(pc.invert(ignored)), "image_id", ids)
    rows = said.filter(pc.is_valid(said.column("x1")))
    image = pc.index_in(rows.column("image_id"), pa.array(ids, pa.string())).to_numpy().astype(np.int64)
    size = area(schema.box_array(rows))
    order = np.lexsort((size, image))
    image, size = image[order], size[order]
    counts = np.bincount(image, minlength=len(ids))
    start = np.cumsum(counts) - counts
    some = counts > 0
    median = np.full(len(ids), np.nan)
    low, high = start + np.maximum(counts - 1, 0) // 2, start + counts // 2
    median[some] = (size[low[some]] + size[high[some]]) / 2
    classes = said.group_by(["image_id", "class_name"]).aggregate([]).sort_by("class_name")
    named: dict[str, list[str]] = {i: [] for i in ids}
    for i, name in zip(classes.column("image_id").to_pylist(), classes.column("class_name").to_pylist(), strict=True):
        named[i].append(name)
    return pa.table(
        {
            "image_id": pa.array(ids, pa.string()),
            "boxes": pa.array(counts, pa.int64()),
            "median_box_area": pa.array(median, pa.float64(), from_pandas=True),
            "classes": pa.array([named[i] for i in ids], pa.list_(pa.string())),
        }
    )


def per_image(images: pa.Table, quality: pa.Table, splits: pa.Table, counts: pa.Table) -> pa.Table:
    """One row for each row of `images`, with the columns of all four tables.

    Its `attributes` are by name: attributes['site'].
    """
    import duckdb

    with duckdb.connect(":memory:", config={"enable_external_access": "false"}) as db:
        for name, rows in (("images", images), ("quality", quality), ("splits", splits), ("counts", counts)):
            db.register(f"_{name}", rows)
        return db.sql(
            """SELECT i.*, q.* EXCLUDE (image_id, batch), s.* EXCLUDE (image_id, batch, location),
                      c.* EXCLUDE (image_id)
               FROM _images i
               LEFT JOIN _quality q ON q.image_id = i.image_id AND q.batch = i.batch
               LEFT JOIN _splits s ON s.image_id = i.image_id
               LEFT JOIN _counts c ON c.image_id = i.image_id
               ORDER BY i.image_id, i.batch"""
        ).to_arrow_table()


def declared(facts: pa.Table, slices: Sequence[SliceConfig]) -> pa.Table:
    """The images of each slice declared by a predicate: rows of (slice, image_id), those of 'all' first.

    Args:
        facts: as `per_image` gives it; predicates are over its columns.

    Raises:
        ConfigError: a predicate is not SQL or names a column that is not there.
    """
    import duckdb

    parts = [_named("all", facts.column("image_id").unique())]
    with duckdb.connect(":memory:", config={"enable_external_access": "false"}) as db:
        db.register("per_image", facts)
        for spec in (s for s in slices if s.where):
            query = f"SELECT DISTINCT image_id FROM per_image WHERE ({spec.where}) ORDER BY image_id"
            try:
                found = db.sql(query).to_arrow_table().column("image_id").combine_chunks()
            except duckdb.Error as error:
                raise _bad_predicate(spec, str(error), facts.column_names) from error
            parts.append(_named(spec.name, found))
    return pa.concat_tables(parts)


def without_labels(slices: Sequence[SliceConfig]) -> list[SliceConfig]:
    """The slices by predicates that tell where an image belongs before anybody has labelled it."""
    needed = re.compile(r"\b(boxes|median_box_area|classes|split|gold|moved_from|moved_by)\b")
    return [s for s in slices if s.where and not needed.search(s.where)]


def _named(name: str, ids: pa.Array) -> pa.Table:
    return pa.table({"slice": pa.repeat(pa.scalar(name), len(ids)), "image_id": ids}).cast(MEMBERS)


def members(slices: Mapping[str, Sequence[str]]) -> pa.Table:
    """Rows of (slice, image_id)."""
    names = [name for name, ids in slices.items() for _ in ids]
    return pa.table({"slice": names, "image_id": [i for ids in slices.values() for i in ids]}, schema=MEMBERS)


def _bad_predicate(spec: SliceConfig, error: str, columns: list[str]) -> ConfigError:
    missing = re.search(r'column "([^"]+)"', error)
    hint = suggest(missing[1], columns) if missing else f"columns: {', '.join(columns)}"
    first = error.strip().splitlines()[0]
    return ConfigError(f"slice {spec.name!r}: cannot select WHERE {spec.where}: {first}", hint)
