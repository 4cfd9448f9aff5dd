"""A picture of the labels of people that models doubt most, to be judged by eye (docs/data-core.md).

Run: python benchmarks/suspects.py PROJECT KIND PICTURE.jpg, after `cvp run PROJECT`; KIND as in `label_errors.error`

What the model suggests is red, people's labels are white.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline import masks, schema
from pipeline.config import find_project
from pipeline.images import Pixels, Reader
from pipeline.plots import Overlay, contact_sheet
from pipeline.store import Store

SHOWN, COLUMNS, CELL = 12, 6, 240
PEOPLE, MODEL = "#ffffff", "#ef4444"
CONTEXT = 0.6  # of a box's longer side, around it

Row = dict[str, Any]


def window(box: np.ndarray, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a square around a box, inside its image."""
    edge = int(min(max((box[2:] - box[:2]).max() * (1 + 2 * CONTEXT), 72), height, width))
    x, y = np.clip((box[:2] + box[2:] - edge) / 2, 0, [width - edge, height - edge]).astype(int)
    return slice(y, y + edge), slice(x, x + edge)


def outlined(pixels: Pixels, counts: str, colour: str) -> None:
    """Draw the outline of a mask into a photo."""
    pixels[masks.rim(masks.decode(counts, *pixels.shape[:2]))] = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]


def shot(row: Row, pixels: Pixels, drawn: list[Row]) -> tuple[Pixels, Overlay | None]:
    """A photo, cut to what is suggested, and the boxes on it."""
    if row["x1"] is None:
        return pixels, None
    pixels, box = pixels.copy(), np.array([row[c] for c in schema.CORNERS])
    if row["mask"] is not None:
        (mine,) = (d["mask"] for d in drawn if d["annotation_id"] == row["annotation_id"])
        outlined(pixels, mine, PEOPLE)
        outlined(pixels, row["mask"], MODEL)
    part = window(box, *pixels.shape[:2])
    people = [] if row["mask"] is not None else [[d[c] for c in schema.CORNERS] for d in drawn]
    suggested = [] if row["mask"] is not None else [box]
    boxes = np.array([*people, *suggested]).reshape(-1, 4) - np.tile([part[1].start, part[0].start], 2)
    return pixels[part], Overlay(boxes, [PEOPLE] * len(people) + [MODEL] * len(suggested))


def caption(place: int, row: Row) -> str:
    said = (
        row["class_name"] if row["class_name"] == row["suggested"] else f"{row['class_name']}, not {row['suggested']}?"
    )
    return f"{place} {said} {row['suspicion']:.2f}"


def main(name: str, kind: str, path: str) -> None:
    project, reader = find_project(name), Reader()
    store = Store(project.store_uri)
    errors = store.read("label_errors")
    errors = errors.filter(pc.equal(errors["error"], kind)).sort_by(
        [("suspicion", "descending"), ("annotation_id", "ascending")]
    )
    print(f"{errors.num_rows} listed; the {SHOWN} most suspicious are drawn")
    rows = errors.slice(0, SHOWN).to_pylist()
    images = {
        r["image_id"]: r
        for r in schema.where_in(store.read("images"), "image_id", [r["image_id"] for r in rows]).to_pylist()
    }
    truth = store.read("ground_truth")
    shots = [
        shot(
            row, reader.read(images[row["image_id"]]), schema.where_in(truth, "image_id", [row["image_id"]]).to_pylist()
        )
        for row in rows
    ]
    captions = [caption(place, row) for place, row in enumerate(rows, 1)]
    sheet = contact_sheet(*zip(*shots, strict=True), captions, columns=COLUMNS, cell=CELL, form="JPEG")
    Path(path).write_bytes(sheet)


if __name__ == "__main__":
    main(*sys.argv[1:])
