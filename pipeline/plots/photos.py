"""Photos with their boxes, as one sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.images import Pixels
from pipeline.plots.style import INK, PAPER, SOFT

PictureFormat = Literal["PNG", "JPEG"]

STATUS_COLOURS = {
    "human": "#f8fafc",
    "accepted": "#22c55e",
    "verified": "#38bdf8",
    "needs_review": "#facc15",
    "rejected": "#f87171",
}
ERROR_COLOURS = {
    "missed": "#facc15",
    "background": "#f87171",
    "localisation": "#fb923c",
    "classification": "#e879f9",
    "both": "#a78bfa",
    "duplicate": "#38bdf8",
    "outline": "#4ade80",
}


@dataclass(frozen=True)
class Overlay:
    """Boxes on one photo.

    Attributes:
        boxes: (n, 4) xyxy pixels of the photo.
        colours: n CSS hex colours.
        labels: n short words drawn at the boxes, or none at all.
    """

    boxes: NDArray[np.floating]
    colours: Sequence[str]
    labels: Sequence[str] = ()


def contact_sheet(
    images: Sequence[Pixels],
    overlays: Sequence[Overlay | None] = (),
    captions: Sequence[str] = (),
    *,
    columns: int = 4,
    cell: int = 240,
    form: PictureFormat = "PNG",
) -> bytes:
    """Photos in a grid, each fitted whole into a square of `cell` pixels.

    Args:
        images: (height, width, 3) uint8 each; none gives a sheet that says so.
        overlays, captions: one per image, or none at all.

    Returns:
        PNG or JPEG bytes.
    """
    if not images:
        return _saved(_notice("no pictures", cell), form)
    columns = max(1, min(columns, len(images)))
    gap, line = max(4, cell // 40), max(11, cell // 16)
    foot = line + gap if any(captions) else 0
    rows = -(-len(images) // columns)
    size = columns * (cell + gap) - gap, rows * (cell + foot + gap) - gap
    sheet = Image.new("RGB", size, PAPER)
    for i, pixels in enumerate(images):
        x, y = i % columns * (cell + gap), i // columns * (cell + foot + gap)
        overlay = overlays[i] if overlays else None
        sheet.paste(_thumbnail(pixels, overlay, cell), (x, y))
        if captions and captions[i]:
            _write(sheet, captions[i], (x, y + cell + 2), cell, line)
    return _saved(sheet, form)


def _thumbnail(pixels: Pixels, overlay: Overlay | None, cell: int) -> Image.Image:
    """One photo in a square, enlarged at most fourfold, with its boxes."""
    height, width = pixels.shape[:2]
    scale = min(cell / max(width, height, 1), 4.0)
    shown = max(1, round(width * scale)), max(1, round(height * scale))
    ground = Image.new("RGB", (cell, cell), "#eef1f4")
    left, top = (cell - shown[0]) // 2, (cell - shown[1]) // 2
    ground.paste(Image.fromarray(pixels).resize(shown, Image.Resampling.LANCZOS), (left, top))
    if overlay is not None and len(overlay.boxes):
        drawn = np.asarray(overlay.boxes, np.float64) * scale + np.array([left, top, left, top])
        _draw_boxes(ground, drawn, overlay, max(1, round(cell / 100)))
    return ground


def _draw_boxes(image: Image.Image, boxes: NDArray[np.float64], overlay: Overlay, width: int) -> None:
    pen = ImageDraw.Draw(image)
    font = _font(max(9, image.width // 24))
    for i, (box, colour) in enumerate(zip(boxes, overlay.colours, strict=True)):
        if not np.isfinite(box).all():
            continue
        x1, y1 = np.minimum(box[:2], box[2:])
        x2, y2 = np.maximum(box[:2], box[2:])
        # A dark line around keeps any colour visible on any photo.
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=INK)
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=width)
        if overlay.labels and overlay.labels[i]:
            _tag(pen, overlay.labels[i], (x1, y1), colour, font)


def _tag(pen: ImageDraw.ImageDraw, text: str, at: tuple[float, float], colour: str, font: Any) -> None:
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    x, y = at[0], max(0.0, at[1] - (bottom - top) - 4)
    pen.rectangle((x, y, x + right - left + 4, y + bottom - top + 4), fill=colour)
    pen.text((x + 2 - left, y + 2 - top), text, fill="#111827", font=font)


def _write(sheet: Image.Image, text: str, at: tuple[int, int], width: int, size: int) -> None:
    pen, font = ImageDraw.Draw(sheet), _font(size)
    while len(text) > 1 and pen.textlength(text, font=font) > width:
        text = text[:-2] + "…"
    pen.text(at, text, fill=SOFT, font=font)


def _notice(text: str, cell: int) -> Image.Image:
    sheet = Image.new("RGB", (cell * 2, cell // 2), "#eef1f4")
    _write(sheet, text, (cell // 12, cell // 5), cell * 2, max(12, cell // 14))
    return sheet


def _font(size: int) -> Any:
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _saved(image: Image.Image, form: PictureFormat) -> bytes:
    sink = io.BytesIO()
    if form == "JPEG":
        image.save(sink, "JPEG", quality=82, optimize=True, progressive=True)
    else:
        image.save(sink, "PNG", optimize=True)
    return sink.getvalue()
