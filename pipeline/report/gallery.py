"""Photos of the report: small JPEGs with boxes, as data URIs."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import plots
from pipeline.images import Pixels, Reader

HUMAN, MODEL = "#f8fafc", "#2dd4bf"  # colours of boxes
_CELL = 288  # pixels: sharp at half that width on a dense screen
_CONTEXT = 1.2  # a cropped box is shown with this many of its own sides around it
_LEAST_CROP = 72  # pixels


@dataclass(frozen=True)
class Picture:
    """A picture ready for the page; `uri` is empty when the file is gone."""

    uri: str
    caption: str
    detail: str = ""


@dataclass(frozen=True)
class Shot:
    """What to show: an image, boxes on it, and whether to crop to the first box.

    Attributes:
        marks: rows with x1, y1, x2, y2 and a colour each.
    """

    image_id: str
    caption: str
    detail: str = ""
    marks: tuple[tuple[tuple[float, float, float, float], str], ...] = ()
    crop: bool = False


class Gallery:
    """Pictures of the images of one project.

    Args:
        images: gives the rows of `images` about some of them.
    """

    def __init__(self, images: Callable[[Iterable[str]], pa.Table], reader: Reader) -> None:
        self._images = images
        self._reader = reader

    def pictures(self, shots: Sequence[Shot]) -> list[Picture]:
        """One picture a shot, in order."""
        pixels = self._pixels({s.image_id for s in shots})
        return [self._picture(shot, pixels.get(shot.image_id)) for shot in shots]

    def _pixels(self, wanted: set[str]) -> dict[str, Pixels | None]:
        # Sorted by file, so that the tiles of one photo decode it once.
        rows = self._images(wanted).sort_by([("uri", "ascending")])
        return dict(zip(rows.column("image_id").to_pylist(), self._reader.read_rows(rows), strict=True))

    def _picture(self, shot: Shot, pixels: Pixels | None) -> Picture:
        if pixels is None:
            return Picture("", shot.caption, "the file is gone or has changed")
        boxes = np.asarray([box for box, _ in shot.marks], np.float64).reshape(-1, 4)
        if shot.crop and len(boxes):
            x1, y1, x2, y2 = _window(boxes[0], pixels.shape[:2])
            pixels, boxes = pixels[y1:y2, x1:x2], boxes - np.array([x1, y1, x1, y1])
        overlay = plots.Overlay(boxes, [colour for _, colour in shot.marks])
        data = plots.contact_sheet([pixels], [overlay], columns=1, cell=_CELL, form="JPEG")
        return Picture(f"data:image/jpeg;base64,{base64.b64encode(data).decode()}", shot.caption, shot.detail)


def _window(box: Any, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A square around a box, with context, inside an image of `shape`."""
    height, width = shape
    side = max((box[2] - box[0]) * (1 + 2 * _CONTEXT), (box[3] - box[1]) * (1 + 2 * _CONTEXT), _LEAST_CROP)
    edge = int(min(side, height, width))
    x = int(np.clip((box[0] + box[2]) / 2 - edge / 2, 0, width - edge))
    y = int(np.clip((box[1] + box[3]) / 2 - edge / 2, 0, height - edge))
    return x, y, x + edge, y + edge


def marks(rows: pa.Table, colour: str) -> tuple[tuple[tuple[float, float, float, float], str], ...]:
    """Boxes of annotation rows in one colour; image-level labels give none."""
    found = []
    for row in rows.select(["x1", "y1", "x2", "y2"]).to_pylist():
        if row["x1"] is not None:
            found.append(((row["x1"], row["y1"], row["x2"], row["y2"]), colour))
    return tuple(found)


def chart(svg: bytes) -> str:
    """An SVG as a data URI; as an image it cannot run or fetch anything."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
