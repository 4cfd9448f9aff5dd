"""Collection: a batch's files become rows of `images`, people's labels rows of `ground_truth`.

Files are decoded one at a time and only their sizes are kept; those that cannot be used are listed
with the reason and never stop a batch.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import boxes, masks, schema
from pipeline.compute import Progress
from pipeline.config import SourceConfig, TileConfig
from pipeline.formats import Folder, Labels, Record, read_labels
from pipeline.ids import image_id, tile_id
from pipeline.images import Photo, UnusableImage, decode
from pipeline.ontology import Ontology
from pipeline.sources import Source, SourceFile

Window = tuple[int, int, int, int]

_log = logging.getLogger(__name__)
_ROWS_PER_CHUNK = 4096
_BYTES_PER_PIXEL = 8  # no format needs more; a larger file is not read into memory
_SHORTEST = 0.5  # pixels; a box with a shorter side is empty


def tile_windows(width: int, height: int, size: int, overlap: int) -> list[Window]:
    """Windows (x, y, width, height) that together cover a photo, row by row.

    Neighbours share `overlap` pixels; the last of a row or column is aligned to the photo's edge and
    shares more, so that all are `size` pixels wide and high where the photo is. Size 0: the photo.
    """
    if not size:
        return [(0, 0, width, height)]
    columns, rows = _starts(width, size, overlap), _starts(height, size, overlap)
    return [(x, y, min(size, width), min(size, height)) for y in rows for x in columns]


def _starts(length: int, size: int, overlap: int) -> list[int]:
    if length <= size:
        return [0]
    return [*range(0, length - size, size - overlap), length - size]


# -- images ---------------------------------------------------------------------------------------


def collect_images(
    source: Source, batch: str, config: SourceConfig, progress: Progress | None = None
) -> tuple[pa.Table, pa.Table]:
    """The tables `images` and `rejected_files` of one batch. Annotation files are in neither.

    Args:
        progress: called with the number of files done and in all.

    Raises:
        DataError: the batch is not there.
    """
    files = [f for f in source.files(batch) if not f.is_sidecar]
    used, rejected = _Rows("images"), _Rows("rejected_files")
    first_of: dict[str, str] = {}
    for done, file in enumerate(files, start=1):
        try:
            parent, photo = _load(source, file, config, first_of)
        except UnusableImage as error:
            rejected.add(_rejected(file, batch, error))
        else:
            first_of[parent] = file.name
            for row in _image_rows(file, batch, parent, photo, config):
                used.add(row)
        if progress:
            progress(done, len(files))
    return used.table(), rejected.table()


class _Rows:
    """Rows that are packed into Arrow as they come: a million as dictionaries would fill the memory."""

    def __init__(self, name: str) -> None:
        self._spec = schema.table(name)
        self._waiting: list[dict[str, Any]] = []
        self._packed: list[pa.Table] = []

    def add(self, row: dict[str, Any]) -> None:
        self._waiting.append(row)
        if len(self._waiting) == _ROWS_PER_CHUNK:
            self._pack()

    def table(self) -> pa.Table:
        self._pack()
        return pa.concat_tables(self._packed)

    def _pack(self) -> None:
        self._packed.append(self._spec.from_rows(self._waiting))
        self._waiting = []


def _load(source: Source, file: SourceFile, config: SourceConfig, first_of: dict[str, str]) -> tuple[str, Photo]:
    if file.bytes > config.max_pixels * _BYTES_PER_PIXEL:
        raise UnusableImage(
            "too_large", f"{file.bytes:,} bytes", "raise source.max_pixels in project.yaml if the photo is real"
        )
    data = source.read(file)
    parent = image_id(data)
    if parent in first_of:
        raise UnusableImage("duplicate_file", f"the same bytes as {first_of[parent]}", "nothing need be done")
    return parent, decode(data, config.max_pixels)


def _rejected(file: SourceFile, batch: str, error: UnusableImage) -> dict[str, Any]:
    return {
        "batch": batch,
        "uri": file.uri,
        "file_name": file.name,
        "bytes": file.bytes,
        "reason": error.reason,
        "detail": f"{error.what}; {error.remedy}",
    }


def _image_rows(
    file: SourceFile, batch: str, parent: str, photo: Photo, config: SourceConfig
) -> Iterable[dict[str, Any]]:
    path = f"{batch}/{file.name}"
    height, width = photo.pixels.shape[:2]
    shared = {
        "batch": batch,
        "uri": file.uri,
        "file_name": file.name,
        "parent_id": parent,
        "photo_width": width,
        "photo_height": height,
        "format": photo.format,
        "mode": photo.mode,
        "orientation": photo.orientation,
        "captured_at": photo.captured_at,
        "bytes": file.bytes,
        "location": _location(path, config.location),
        "attributes": _attributes(path, config.attributes),
    }
    for window in tile_windows(width, height, config.tile.size, config.tile.overlap):
        whole = window == (0, 0, width, height)
        place = dict(zip(("tile_x", "tile_y", "width", "height"), window, strict=True))
        yield {"image_id": parent if whole else tile_id(parent, window), **shared, **place}


def _location(path: str, pattern: str) -> str:
    found = re.search(pattern, path) if pattern else None
    return found.group(0) if found else path


def _attributes(path: str, pattern: str) -> list[tuple[str, str]]:
    found = re.search(pattern, path) if pattern else None
    return [(key, value) for key, value in found.groupdict().items() if value is not None] if found else []


# -- labels ---------------------------------------------------------------------------------------


def collect_ground_truth(
    source: Source, batch: str, images: pa.Table, ontology: Ontology, config: SourceConfig
) -> tuple[pa.Table, pa.Table]:
    """The tables `ground_truth` and `annotated_images` of one batch.

    Boxes are cut to the photo, then to each tile that they reach into. A piece that the tile's edge
    cuts is `truncated`; with less than `tile.min_visible` of the box left it is also `ignore`.

    Args:
        images: the batch's rows of `images`.

    Raises:
        DataError: annotations are malformed or fit neither images nor classes; see `read_labels`.
    """
    photos: dict[str, list[dict[str, Any]]] = {}
    wanted = ["image_id", "file_name", "tile_x", "tile_y", "width", "height", "photo_width", "photo_height"]
    for row in images.select(wanted).to_pylist():
        photos.setdefault(row["file_name"], []).append(row)
    if not photos:
        return schema.table("ground_truth").empty(), schema.table("annotated_images").empty()
    sizes = {name: (rows[0]["photo_width"], rows[0]["photo_height"]) for name, rows in photos.items()}
    folder = Folder(source.files(batch), source.read, sizes, ontology, config.ignored_classes)
    labels = read_labels(folder, config.annotations)
    marked = [
        {"image_id": tile["image_id"], "batch": batch, "source": labels.annotated[name]}
        for name, tiles in photos.items()
        if name in labels.annotated
        for tile in tiles
    ]
    found = _ground_truth(labels, photos, batch, config.tile)
    _report(labels, batch)
    return found, schema.table("annotated_images").from_rows(marked)


def _ground_truth(labels: Labels, photos: dict[str, list[dict[str, Any]]], batch: str, config: TileConfig) -> pa.Table:
    by_file: dict[str, list[Record]] = {}
    for record in labels.records:
        by_file.setdefault(record.file_name, []).append(record)
    whole: list[tuple[str, str]] = []
    pieces: list[dict[str, Any]] = []
    empty = 0
    for name, tiles in photos.items():
        records = by_file.get(name, [])
        whole += [(tile["image_id"], r.class_name) for r in records if r.box is None for tile in tiles]
        drawn = [(r, r.box) for r in records if r.box is not None]
        corners = boxes.clip([box for _, box in drawn], tiles[0]["photo_width"], tiles[0]["photo_height"])
        real = _has_extent(corners)
        empty += int((~real).sum())
        kept = [r for (r, _), keep in zip(drawn, real, strict=True) if keep]
        pieces += _pieces(kept, corners[real], tiles, config.min_visible)
    if empty:
        _log.warning("%s: left out %d empty boxes, or boxes outside their image", batch, empty)
    return pa.concat_tables([_image_level(whole, batch), _boxed(pieces, batch)])


def _has_extent(corners: boxes.Boxes) -> np.ndarray:
    return ((corners[:, 2] - corners[:, 0]) >= _SHORTEST) & ((corners[:, 3] - corners[:, 1]) >= _SHORTEST)


def _pieces(
    records: list[Record], corners: boxes.Boxes, tiles: list[dict[str, Any]], min_visible: float
) -> list[dict[str, Any]]:
    """What each tile of a photo shows of the photo's boxes."""
    found = []
    size = (tiles[0]["photo_height"], tiles[0]["photo_width"])
    decoded: dict[int, np.ndarray] = {}
    for tile in tiles:
        window = (tile["tile_x"], tile["tile_y"], tile["width"], tile["height"])
        inside, share = boxes.in_window(corners, window)
        for i in np.flatnonzero(_has_extent(inside)).tolist():
            record = records[i]
            mask = record.mask
            if mask is not None and len(tiles) > 1:
                if i not in decoded:
                    decoded[i] = masks.decode(mask, *size)
                x, y, width, height = window
                part = decoded[i][y : y + height, x : x + width]
                if not part.any():
                    continue  # only a corner of its box reaches in, and nothing of itself
                mask = masks.encode(part)
            found.append(
                {
                    "image_id": tile["image_id"],
                    "class_name": record.class_name,
                    "box": inside[i],
                    "mask": mask,
                    "truncated": record.truncated or share[i] < 1,
                    "ignore": record.ignore or share[i] < min_visible,
                    "is_crowd": record.is_crowd,
                }
            )
    return found


def _image_level(rows: list[tuple[str, str]], batch: str) -> pa.Table:
    return schema.annotations(
        "ground_truth",
        image_ids=[image for image, _ in rows],
        batch=batch,
        producer="human",
        classes=[name for _, name in rows],
        boxes=None,
    )


def _boxed(rows: list[dict[str, Any]], batch: str) -> pa.Table:
    return schema.annotations(
        "ground_truth",
        image_ids=[row["image_id"] for row in rows],
        batch=batch,
        producer="human",
        classes=[row["class_name"] for row in rows],
        boxes=boxes.as_boxes([row["box"] for row in rows]),
        **{key: [row[key] for row in rows] for key in ("mask", "truncated", "ignore", "is_crowd")},
    )


def _report(labels: Labels, batch: str) -> None:
    for name, count in sorted(labels.unasked.items()):
        _log.warning("%s: left out %d annotations of %r, which the project does not ask for", batch, count, name)
    for name, count in sorted(labels.unmatched.items()):
        _log.warning("%s: %s names %d images that are missing or cannot be used", batch, name, count)
