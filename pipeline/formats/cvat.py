"""CVAT for images 1.1: boxes, polygons, masks and tags. https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipeline import masks
from pipeline.errors import DataError
from pipeline.formats.coco import check_size
from pipeline.formats.records import Folder, Labels, Record, number
from pipeline.formats.voc import parse_xml
from pipeline.sources import SourceFile

_ROOT = re.compile(rb"<annotations[\s>]")
_UNDRAWN = {"polyline", "points", "cuboid", "ellipse", "skeleton"}
_FIX = "correct or remove that shape"

Corners = tuple[float, float, float, float]


def find(folder: Folder) -> list[SourceFile]:
    """XML files of the batch that hold CVAT's <annotations>."""
    return [f for f in folder.with_suffix(".xml") if _ROOT.search(folder.data(f).replace(b"\x00", b""))]


def read(folder: Folder, files: list[SourceFile], labels: Labels) -> None:
    """Add the shapes in `files` to `labels`. A box and a mask of one group and label are one object.

    Raises:
        DataError: malformed, or tracks of a video; the message names file and line.
    """
    for file in files:
        root, lines = parse_xml(folder.data(file), file.name)
        track = root.find("track")
        if track is not None:
            raise DataError(f"{file.name}, line {lines[track]}: a track of a video", "export it as images")
        for image in root.findall("image"):
            where = f"{file.name}, line {lines[image]}"
            found = folder.image(image.get("name", ""), file.name)
            if found is None or found not in folder.sizes:
                labels.unmatched[file.name] += 1
                continue
            check_size((image.get("width"), image.get("height")), folder.sizes[found], where, found)
            labels.annotate(found, file.name)
            for shapes in _objects(image):
                place = f"{file.name}, line {lines[shapes[0]]}"
                name = folder.resolve(shapes[0].get("label", ""), labels, place)
                if name is not None:
                    labels.records.append(_record(shapes, found, name, folder.sizes[found], place))


def _objects(image: ET.Element) -> Iterable[list[ET.Element]]:
    """Shapes of one object. Tags that other programs use for themselves are none."""
    objects: dict[tuple[str, ...], list[ET.Element]] = {}
    for i, shape in enumerate(image):
        if shape.tag in _UNDRAWN or shape.get("label") == "cvp_task":
            continue
        group = shape.get("group_id", "0")
        alone = group == "0" or shape.tag == "tag"
        objects.setdefault((str(i),) if alone else (group, shape.get("label", "")), []).append(shape)
    return objects.values()


def _record(shapes: list[ET.Element], image: str, name: str, size: tuple[int, int], where: str) -> Record:
    width, height = size
    drawn = [geometry(shape, width, height, where) for shape in shapes]
    boxes = [box for box, mask in drawn if mask is None and box is not None]
    parts = [mask for _, mask in drawn if mask is not None]
    mask = parts[0] if parts else None
    if len(parts) > 1:
        mask = masks.encode(np.logical_or.reduce([masks.decode(m, height, width) for m in parts]))
    tight = None if mask is None else masks.box(mask, height, width).tolist()
    return Record(image, name, boxes[0] if boxes else tuple(tight) if tight else None, mask)


def geometry(shape: ET.Element, width: int, height: int, where: str) -> tuple[Corners | None, str | None]:
    """Box and mask of a shape; neither for a tag. A turned box is taken as it was before turning.

    Raises:
        DataError: malformed.
    """
    if shape.tag == "tag":
        return None, None
    if shape.tag == "box":
        x1, y1, x2, y2 = (number(shape.get(key), f"{where}, {key}") for key in ("xtl", "ytl", "xbr", "ybr"))
        return (x1, y1, x2, y2), None
    if shape.tag == "polygon":
        pairs = shape.get("points", "").split(";")
        points = [number(v, where) for pair in pairs for v in pair.split(",")]
        if len(points) < 6 or len(points) % 2:
            raise DataError(f"{where}: a polygon needs three corners", _FIX)
        mask = masks.from_polygons([points], height, width)
    elif shape.tag == "mask":
        x, y, w, h = (int(number(shape.get(key), f"{where}, {key}")) for key in ("left", "top", "width", "height"))
        if not (0 <= x <= x + w <= width and 0 <= y <= y + h <= height):
            raise DataError(f"{where}: the mask reaches out of its image", _FIX)
        lengths = [int(number(n, f"{where}, rle")) for n in shape.get("rle", "").split(",")]
        whole = np.zeros((height, width), bool)
        whole[y : y + h, x : x + w] = from_alternating(lengths, w * h, where).reshape(h, w)
        mask = masks.encode(whole)
    else:
        raise DataError(f"{where}: an unknown element {shape.tag!r:.40}", _FIX)
    x1, y1, x2, y2 = masks.box(mask, height, width).tolist()
    return (x1, y1, x2, y2), mask


def from_alternating(lengths: list[int], size: int, where: str) -> NDArray[np.bool_]:
    """(size,) flags out of runs that alternate, off first.

    Raises:
        DataError: they do not add up to `size`.
    """
    if any(n < 0 for n in lengths) or sum(lengths) != size:
        raise DataError(f"{where}: the mask's runs do not fill {size} pixels", _FIX)
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
