"""LabelMe JSON, one file an image: rectangles, polygons, masks, circles, and flags. https://github.com/wkentaro/labelme"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections import defaultdict
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline import masks
from pipeline.errors import DataError
from pipeline.formats.coco import check_size, parsed_json
from pipeline.formats.records import Folder, Labels, Record, number
from pipeline.sources import SourceFile

_UNDRAWN = ("line", "linestrip", "point", "points")  # they enclose nothing
_CIRCLE = 64  # corners of the polygon that stands for a circle
_PIXELS = 200_000_000

Shape = dict[str, Any]


def find(folder: Folder) -> list[SourceFile]:
    """JSON files of the batch with shapes and the path of a picture."""
    return [f for f in folder.with_suffix(".json") if _looks_right(folder.data(f))]


def _looks_right(data: bytes) -> bool:
    plain = data.replace(b"\x00", b"")  # UTF-16
    return b'"shapes"' in plain and b'"imagePath"' in plain


def read(folder: Folder, files: list[SourceFile], labels: Labels) -> None:
    """Add the shapes in `files` to `labels`. Lines and points are left out.

    Parts of one object (equal `group_id` and label) are joined. A flag that is set and is a class of the project is a
    label of the whole image. `difficult`, `truncated` and `iscrowd` of a shape count, if a tool has written them.

    Raises:
        DataError: malformed; the message names file and shape.
    """
    for file in files:
        content = parsed_json(folder.text(file), file.name)
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            raise DataError(f"{file.name}: shapes must be a list", "save it again with LabelMe")
        found = folder.image(str(content.get("imagePath") or ""), file.name) or folder.image(file.name, file.name)
        if found is None or found not in folder.sizes:
            labels.unmatched[file.name] += 1
            continue
        check_size((content.get("imageWidth"), content.get("imageHeight")), folder.sizes[found], file.name, found)
        labels.annotate(found, file.name)
        labels.records += _flagged(folder, content.get("flags"), found, labels, file.name)
        for shapes, where in _objects(content["shapes"], file.name):
            name = folder.resolve(str(shapes[0].get("label", "")), labels, where)
            if name is not None:
                labels.records += _record(shapes, found, name, folder.sizes[found], where)


def _flagged(folder: Folder, flags: Any, image: str, labels: Labels, by: str) -> list[Record]:
    names = [str(name) for name, on in flags.items() if on is True] if isinstance(flags, dict) else []
    found = [folder.resolve(name, labels, f"{by}, flags") for name in names]
    return [Record(image, name, None) for name in found if name is not None]


def _objects(shapes: list[Any], by: str) -> list[tuple[list[Shape], str]]:
    """Shapes that make up one object, and where the first of them is."""
    objects: defaultdict[Any, list[Shape]] = defaultdict(list)
    places: dict[Any, str] = {}
    for i, shape in enumerate(shapes):
        where = f"{by}, shapes[{i}]"
        if not isinstance(shape, dict):
            raise DataError(f"{where} is no object", "save it again with LabelMe")
        kind = shape.get("shape_type") or "polygon"
        if kind in _UNDRAWN:
            continue
        group = shape.get("group_id")
        key = (group, str(shape.get("label"))) if group is not None and kind in ("polygon", "mask") else i
        objects[key].append(shape)
        places.setdefault(key, where)
    return [(parts, places[key]) for key, parts in objects.items()]


def _record(shapes: list[Shape], image: str, name: str, size: tuple[int, int], where: str) -> list[Record]:
    width, height = size
    flags: dict[str, Any] = {
        "is_crowd": bool(shapes[0].get("iscrowd")),
        "truncated": bool(shapes[0].get("truncated")),
        "ignore": bool(shapes[0].get("difficult")),
    }
    points = [_points(shape, where) for shape in shapes]
    if shapes[0].get("shape_type") == "rectangle":
        low, high = points[0].min(axis=0), points[0].max(axis=0)
        return [Record(image, name, (*low.tolist(), *high.tolist()), **flags)]
    outlines, parts = [], []
    for shape, corners in zip(shapes, points, strict=True):
        if shape.get("shape_type") == "mask":
            parts.append(_from_picture(shape.get("mask"), corners, size, where))
        else:
            outlines.append(_outline(shape, corners, where))
    parts += [masks.from_polygons(outlines, height, width)] if outlines else []
    mask = parts[0]
    if len(parts) > 1:
        mask = masks.encode(np.logical_or.reduce([masks.decode(m, height, width) for m in parts]))
    return [Record(image, name, tuple(masks.box(mask, height, width).tolist()), mask, **flags)]


def _points(shape: Shape, where: str) -> np.ndarray:
    points = shape.get("points")
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise DataError(f"{where}: points must be a list of [x, y]", "correct or remove that shape")
    least = {"rectangle": 2, "circle": 2, "mask": 2}.get(shape.get("shape_type") or "polygon", 3)
    if len(points) < least:
        raise DataError(f"{where}: {len(points)} points, expected {least} or more", "correct or remove that shape")
    return np.array([[number(v, where) for v in p] for p in points])


def _outline(shape: Shape, points: np.ndarray, where: str) -> list[float]:
    """A polygon or a circle as flat x, y."""
    kind = shape.get("shape_type") or "polygon"
    if kind == "circle":
        turn = np.linspace(0, 2 * math.pi, _CIRCLE, endpoint=False)
        points = points[0] + np.linalg.norm(points[1] - points[0]) * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    elif kind not in ("polygon", "oriented_rectangle"):
        raise DataError(f"{where}: unknown shape_type {kind!r:.40}", "correct or remove that shape")
    return [float(v) for v in points.ravel()]


def _from_picture(text: Any, points: np.ndarray, size: tuple[int, int], where: str) -> str:
    width, height = size
    try:
        with Image.open(io.BytesIO(base64.b64decode(str(text), validate=True)), formats=["PNG"]) as picture:
            if picture.width * picture.height > _PIXELS:
                raise ValueError("it is larger than any photo")
            inside = np.asarray(picture.convert("L")) > 0
    except (ValueError, OSError, SyntaxError, binascii.Error, UnidentifiedImageError) as error:
        raise DataError(f"{where}: its mask is no PNG: {error}", "correct or remove that shape") from error
    x, y = (math.floor(v) for v in points.min(axis=0).tolist())
    if not (0 <= x <= x + inside.shape[1] <= width and 0 <= y <= y + inside.shape[0] <= height):
        raise DataError(f"{where}: its mask reaches out of the image", "correct or remove that shape")
    whole = np.zeros((height, width), bool)
    whole[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return masks.encode(whole)
