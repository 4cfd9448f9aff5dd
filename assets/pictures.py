"""Pictures for the assets' pages: photos with what was found on them."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.metadata import picture
from assets.tables import Work
from pipeline import plots, schema
from pipeline.images import Reader

_SHOWN = 8
_COLOURS = {
    "human": "#0072b2",
    "accepted": "#009e73",
    "verified": "#56b4e9",
    "needs_review": "#e69f00",
    "rejected": "#999999",
}


def image_sheet(work: Work, images: pa.Table, image_ids: list[str]) -> object:
    """The first of `image_ids` as one inline picture."""
    return _sheet(work, images, image_ids[:_SHOWN], None)


def label_sheet(work: Work, images: pa.Table, annotations: pa.Table) -> object:
    """The images with the most boxes, the boxes drawn, labels coloured by status."""
    boxed = annotations.filter(pc.is_valid(annotations.column("x1")))
    counts = boxed.group_by("image_id").aggregate([("image_id", "count")])
    busiest = counts.sort_by([("image_id_count", "descending"), ("image_id", "ascending")])
    ids = busiest.column("image_id").to_pylist() or images.column("image_id").to_pylist()
    return _sheet(work, images, ids[:_SHOWN], boxed)


def _sheet(work: Work, images: pa.Table, ids: list[str], annotations: pa.Table | None) -> object:
    rows = schema.where_in(images, "image_id", ids)
    pixels = Reader(work.config.source.max_pixels).read_rows(rows)
    shown = [(p, i) for p, i in zip(pixels, rows.column("image_id").to_pylist(), strict=True) if p is not None]
    overlays = [None if annotations is None else _overlay(annotations, image) for _, image in shown]
    return picture(plots.contact_sheet([p for p, _ in shown], overlays), "contact sheet")


def _overlay(annotations: pa.Table, image: str) -> plots.Overlay:
    rows = annotations.filter(pc.equal(annotations.column("image_id"), image))
    # Labels have a status; raw detections fade with their score.
    if "status" in rows.column_names:
        colours = [_COLOURS[s] for s in rows.column("status").to_pylist()]
    else:
        best = np.argsort(-rows.column("score").to_numpy(), kind="stable")[:40]
        rows = rows.take(pa.array(best))
        colours = ["#d55e00"] * rows.num_rows
    return plots.Overlay(schema.box_array(rows), colours)
