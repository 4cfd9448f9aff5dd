"""The pinned snapshot that models are trained on: people's labels, and the machine's that were accepted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.ids import content_hash, fingerprint

TRUSTED = ("accepted", "verified", "human")
UNSURE = "needs_review"


def snapshot(labels: pa.Table, splits: pa.Table, images: pa.Table) -> pa.Table:
    """Rows of `training_set`, ordered by image and annotation, all with one snapshot hash.

    People's labels of train and val images come in as people have corrected them since. Machine labels come in
    from images that people have not labelled, are in neither val nor test, and have at least one trusted label.
    What is still unsure on either becomes an ignored region: it may be an object, so it must not be learnt as ground.
    Gold images without any box have no rows here and are still trained on; the hash covers them.

    Args:
        labels: rows of `labels`, people's own among them.
        images: only annotations of these rows are taken.
    """
    known = _members(splits, images)
    in_gold = schema.where_in(known.filter(known.column("gold")), "split", ("train", "val"))
    held_out = schema.where_in(known, "split", ("val", "test"))
    # A gold image may have come in another batch, too, where only machines labelled it.
    people = _members(labels.filter(pc.equal(labels["producer"], "human")), in_gold)
    machine = _without(_members(labels, known), pa.concat_tables([in_gold, held_out]))
    parts = [*_trusted_rows(people, "gold"), *_trusted_rows(machine, None)]
    rows = pa.concat_tables(parts)
    split = dict(zip(in_gold["image_id"].to_pylist(), in_gold["split"].to_pylist(), strict=True))
    place = pc.index_in(rows["image_id"], in_gold["image_id"].combine_chunks())
    rows = rows.append_column("split", pc.fill_null(in_gold["split"].combine_chunks().take(place), "train"))
    rows = rows.sort_by([("image_id", "ascending"), ("annotation_id", "ascending")])
    name = fingerprint(content_hash(rows), sorted(split.items()))
    rows = rows.append_column("snapshot", pa.repeat(pa.scalar(name), rows.num_rows))
    return schema.table("training_set").conform(rows)


def _trusted_rows(labels: pa.Table, origin: str | None) -> list[pa.Table]:
    """Trusted labels, then the unsure ones of the same images as ignored regions."""
    trusted = schema.where_in(labels, "status", TRUSTED)
    unsure = _members(schema.where_in(labels, "status", (UNSURE,)), trusted)
    # An image-level label cannot be a region.
    unsure = unsure.filter(pc.is_valid(unsure["x1"]))
    unsure = unsure.set_column(
        unsure.schema.get_field_index("ignore"), "ignore", pa.array(np.ones(unsure.num_rows, bool))
    )
    return [_rows(trusted, origin), _rows(unsure, None)]


def _rows(annotations: pa.Table, origin: str | None) -> pa.Table:
    """The shared annotation columns and `origin`: the given one, or each label's status."""
    shared = annotations.select([c.name for c in schema.ANNOTATION])
    origins = annotations["status"] if origin is None else pa.array([origin] * shared.num_rows, pa.string())
    table = shared.append_column("origin", origins)
    fields = {c.name: c.type for c in schema.table("training_set").columns}
    return table.cast(pa.schema([pa.field(name, fields[name]) for name in table.column_names]))


def _members(rows: pa.Table, of: pa.Table) -> pa.Table:
    return rows.filter(_is_member(rows, of))


def _without(rows: pa.Table, of: pa.Table) -> pa.Table:
    return rows.filter(pc.invert(_is_member(rows, of)))


def _is_member(rows: pa.Table, of: pa.Table) -> pa.ChunkedArray:
    return pc.is_in(rows["image_id"], of["image_id"].combine_chunks())
