"""The pictures that leave this machine: cropped, shrunk, and encoded anew, so that nothing else travels along."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from pipeline.images import Pixels
from pipeline.models.vlm.questions import View

# Part of a question's address: a picture drawn otherwise is another question.
VERSION = "1"
_LEAST = 96  # pixels of the photo that are shown at least: a thing of ten pixels is nothing without its surroundings
_QUALITY = 90


def draw(pixels: Sequence[Pixels], view: View) -> bytes:
    """A JPEG of the view: (height, width, 3) uint8 pixels of each of its images, in order.

    It is encoded from pixels alone: EXIF, GPS positions, comments and thumbnails of the file stay here.
    """
    if len(pixels) == 1:
        image = _crop(pixels[0], view) if view.box else _shrunk(Image.fromarray(pixels[0]), view.edge)
    else:
        image = _sheet(pixels, view.edge)
    made = io.BytesIO()
    image.save(made, "JPEG", quality=_QUALITY)
    return made.getvalue()


def window(box: Sequence[float], width: int, height: int, context: float) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is shown around a box, whole pixels inside the image."""
    edges = []
    for low, high, size in ((box[0], box[2], width), (box[1], box[3], height)):
        room = max((high - low) * context, (_LEAST - (high - low)) / 2, 0)
        first = min(max(0, math.floor(low - room)), size - 1)
        edges.append((first, max(min(size, math.ceil(high + room)), first + 1)))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def _crop(pixels: Pixels, view: View) -> Image.Image:
    assert view.box is not None
    height, width = pixels.shape[:2]
    left, top, right, bottom = window(view.box, width, height, view.context)
    whole = Image.fromarray(np.ascontiguousarray(pixels[top:bottom, left:right]))
    image = _shrunk(whole, view.edge)
    scale = image.width / whole.width
    x1, y1, x2, y2 = ((view.box[i] - (left, top)[i % 2]) * scale for i in range(4))
    pen = ImageDraw.Draw(image)
    line = max(1, round(max(image.size) / 200))
    # Around the box, not over it: the outermost pixels of a thing are part of the question.
    pen.rectangle((x1 - 2 * line, y1 - 2 * line, x2 + 2 * line, y2 + 2 * line), outline="white", width=line)
    pen.rectangle((x1 - line, y1 - line, x2 + line, y2 + line), outline="red", width=line)
    return image


def _shrunk(image: Image.Image, edge: int) -> Image.Image:
    scale = min(1.0, edge / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def _sheet(pixels: Sequence[Pixels], edge: int) -> Image.Image:
    columns = math.ceil(math.sqrt(len(pixels)))
    rows = math.ceil(len(pixels) / columns)
    cell = max(1, edge // columns)
    sheet = Image.new("RGB", (columns * cell, rows * cell), "white")
    for i, each in enumerate(pixels):
        small = _shrunk(Image.fromarray(each), cell)
        sheet.paste(small, ((i % columns) * cell, (i // columns) * cell))
    return sheet
