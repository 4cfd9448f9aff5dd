"""Crops, whole photos and thumbnails for the page: rendered once, kept on disk.

Files are named by what they show, so none is ever out of date.
"""

from __future__ import annotations

import hashlib
import io
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import masks
from pipeline.files import writing
from pipeline.images import Pixels, Reader
from pipeline.reviewing.items import Item

VIEWS = ("near", "whole", "thumb")
_LONGEST = {"near": 1100, "whole": 1600, "thumb": 132}  # pixels
_ROOM = {"near": 0.9, "thumb": 0.25}  # of the box's longer side, on each side
_LEAST = {"near": 96, "thumb": 32}  # pixels of the photo
_SHAPE = {"near": 4 / 3, "thumb": 1}  # width to height
_QUALITY = 88
_TINT = (79, 209, 192, 110)  # of masks: RGBA
_RIM = (255, 99, 71, 255)  # of the outline of another mask
_CACHE_BYTES = 1_000_000_000

Window = tuple[int, int, int, int]  # x, y, width, height


def window(item: Item, view: str) -> Window:
    """The part of an item's image that a view shows: all of it, or its box with room around."""
    width, height = item.image["width"], item.image["height"]
    box = item.box
    if box is None or view == "whole":
        return 0, 0, width, height
    longer = max(box[2] - box[0], box[3] - box[1])
    side = max(longer * (1 + 2 * _ROOM[view]), _LEAST[view])
    wide, high = min(round(side * _SHAPE[view]), width), min(round(side), height)
    x = min(max(round((box[0] + box[2] - wide) / 2), 0), width - wide)
    y = min(max(round((box[1] + box[3] - high) / 2), 0), height - high)
    return x, y, max(wide, 1), max(high, 1)


class Pictures:
    """Renders views of items. Safe to use from several threads.

    Args:
        folder: where they are kept; at most 1 GB, the oldest go first.
    """

    def __init__(self, reader: Reader, folder: Path) -> None:
        self._reader = reader
        self._folder = folder
        self._lock = threading.Lock()  # the reader holds decoded photos, and is not made for threads
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._prune()

    def photo(self, item: Item, view: str) -> bytes:
        """A view as a JPEG.

        Raises:
            UnusableImage: the file has gone, changed or is damaged.
        """
        return self._kept(item, view, "jpg")

    def mask(self, item: Item, view: str) -> bytes:
        """The item's mask in a view, and another's outline, as a PNG to be laid over it."""
        return self._kept(item, view, "png")

    def _kept(self, item: Item, view: str, kind: str) -> bytes:
        part = window(item, view)
        shown = (item.label["mask"], item.other_mask) if kind == "png" else ""
        name = hashlib.sha256(f"{item.image['image_id']} {part} {_LONGEST[view]} {shown}".encode()).hexdigest()[:32]
        path = self._folder / name[:2] / f"{name}.{kind}"
        with suppress(OSError):
            return path.read_bytes()
        data = self._rendered(item, part, view) if kind == "jpg" else _tinted(item, part, _LONGEST[view])
        with suppress(OSError):  # a full disk costs time, not pictures
            path.parent.mkdir(exist_ok=True)
            target = path.with_name(f".{name}.{uuid.uuid4().hex[:8]}")
            target.write_bytes(data)
            target.replace(path)
        return data

    def _rendered(self, item: Item, part: Window, view: str) -> bytes:
        x, y, width, height = part
        with self._lock:
            pixels: Pixels = self._reader.read(item.image)[y : y + height, x : x + width].copy()
        image = Image.fromarray(pixels)
        image.thumbnail((_LONGEST[view], _LONGEST[view]), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=_QUALITY, subsampling=0)
        return stream.getvalue()

    def _prune(self) -> None:
        found = []
        for path in self._folder.glob("*/*"):
            with suppress(OSError):
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        excess = sum(size for _, size, _ in found) - _CACHE_BYTES
        for _, size, path in sorted(found, key=lambda entry: entry[0]):
            if excess <= 0:
                return
            with suppress(OSError):
                path.unlink()
                excess -= size


def _tinted(item: Item, part: Window, longest: int) -> bytes:
    inside = _seen(item, item.label["mask"], part, longest)
    colours: NDArray[Any] = np.where(inside[..., None], np.array(_TINT, np.uint8), np.zeros(4, np.uint8))
    if item.other_mask is not None:
        colours[masks.rim(_seen(item, item.other_mask, part, longest))] = _RIM
    stream = io.BytesIO()
    Image.fromarray(colours.astype(np.uint8)).save(stream, "PNG", compress_level=3)
    return stream.getvalue()


def _seen(item: Item, counts: str, part: Window, longest: int) -> NDArray[np.bool_]:
    """A mask of an item's image in a window, as large as it is shown."""
    x, y, width, height = part
    whole = masks.decode(counts, item.image["height"], item.image["width"])
    image = Image.fromarray(whole[y : y + height, x : x + width].astype(np.uint8))
    image.thumbnail((longest, longest), Image.Resampling.NEAREST)
    return np.asarray(image) > 0
