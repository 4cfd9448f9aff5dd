"""Label Studio JSON: what people handed in. https://labelstud.io/guide/export (the format called JSON)"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from pipeline import masks
from pipeline.errors import DataError
from pipeline.formats.coco import check_size, parsed_json
from pipeline.formats.records import Folder, Labels, Record, number
from pipeline.sources import SourceFile

MASK_SUFFIX = ".mask"  # of the id of a stroke that is the mask of a rectangle
_KINDS = ("rectanglelabels", "brushlabels", "polygonlabels", "choices")
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of a file
_FIX = "correct or remove that region"

Corners = tuple[float, float, float, float]


def find(folder: Folder) -> list[SourceFile]:
    """JSON files of the batch that are lists of tasks with annotations."""
    return [f for f in folder.with_suffix(".json") if _looks_right(folder.data(f))]


def _looks_right(data: bytes) -> bool:
    plain = data.replace(b"\x00", b"")  # UTF-16
    return b'"data"' in plain and b'"annotations"' in plain and plain.lstrip(b"\xef\xbb\xbf\xff\xfe \r\n\t")[:1] == b"["


def read(folder: Folder, files: list[SourceFile], labels: Labels) -> None:
    """Add people's last annotation of each task to `labels`. Predictions, and what was skipped, are no labels.

    Raises:
        DataError: malformed; the message names file, task and region.
    """
    for file in files:
        content = parsed_json(folder.text(file), file.name)
        if not isinstance(content, list):
            raise DataError(f"{file.name} is not a list of tasks", "export it in the format JSON")
        for i, task in enumerate(content):
            where = f"{file.name}, task {task.get('id', i + 1) if isinstance(task, dict) else i + 1}"
            if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
                raise DataError(f"{where} has no data", "export it in the format JSON (not JSON-MIN)")
            handed_in = [a for a in task.get("annotations") or [] if isinstance(a, dict) and not a.get("was_cancelled")]
            if handed_in:
                _read_task(folder, task["data"], handed_in[-1].get("result") or [], labels, file.name, where)


def _read_task(folder: Folder, data: dict[str, Any], result: list[Any], labels: Labels, by: str, where: str) -> None:
    found = _image(folder, data, by)
    if found is None or found not in folder.sizes:
        labels.unmatched[by] += 1
        return
    labels.annotate(found, by)
    size = folder.sizes[found]
    objects: dict[str, Record] = {}
    for i, region in enumerate(result):
        place = f"{where}, region {i + 1}"
        if not isinstance(region, dict) or region.get("type") not in _KINDS:
            continue
        check_size((region.get("original_width"), region.get("original_height")), size, place, found)
        value = region.get("value")
        if not isinstance(value, dict):
            raise DataError(f"{place} has no value", _FIX)
        for name in value.get(region["type"]) or []:
            resolved = folder.resolve(str(name), labels, place)
            if resolved is None:
                continue
            box, mask = geometry(region["type"], value, size[0], size[1], place)
            key = f"{str(region.get('id', i)).removesuffix(MASK_SUFFIX)}/{name}"
            other = objects.get(key)
            if other is not None and (other.mask is None) != (mask is None):
                drawn = other.box if mask is not None else box
                objects[key] = Record(found, resolved, drawn, mask if mask is not None else other.mask)
            else:
                objects[key if other is None else f"{key}/{i}"] = Record(found, resolved, box, mask)
    labels.records += objects.values()


def _image(folder: Folder, data: dict[str, Any], by: str) -> str | None:
    """The image of a task: by the path it was sent under, or by its address, with what uploading adds taken off."""
    address = urlsplit(str(data.get("image") or ""))
    path = parse_qs(address.query).get("d", [unquote(address.path)])[0]
    plain = PurePosixPath(path)
    bare = str(plain.with_name(_UPLOADED.sub("", plain.name))) if plain.name else ""
    for reference in (str(data.get("name") or ""), path, bare):
        found = folder.image(reference, by) if reference else None
        if found is not None:
            return found
    return None


def geometry(
    kind: str, value: dict[str, Any], width: int, height: int, where: str
) -> tuple[Corners | None, str | None]:
    """Box and mask of a region. Of a turned rectangle, the upright box around it is taken.

    Raises:
        DataError: malformed.
    """
    if kind == "choices":
        return None, None
    if kind == "rectanglelabels":
        x, y, w, h = (number(value.get(k), f"{where}, {k}") / 100 for k in ("x", "y", "width", "height"))
        turn = number(value.get("rotation") or 0, f"{where}, rotation")
        return upright(x * width, y * height, w * width, h * height, turn), None
    try:
        if kind == "brushlabels":
            mask = masks.encode(decode_rle(value["rle"], height, width))
        else:
            points = [
                number(v, where) / 100 * s for p in value["points"] for v, s in zip(p, (width, height), strict=True)
            ]
            mask = masks.from_polygons([points], height, width)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{where}: not understood: {type(error).__name__} {error}", _FIX) from error
    x1, y1, x2, y2 = masks.box(mask, height, width).tolist()
    return (x1, y1, x2, y2), mask


def upright(x: float, y: float, w: float, h: float, degrees: float) -> Corners:
    """The box around a rectangle turned clockwise about its top left corner."""
    if not degrees % 360:
        return x, y, x + w, y + h
    turn = np.deg2rad(degrees)
    across, down = w * np.array([np.cos(turn), np.sin(turn)]), h * np.array([-np.sin(turn), np.cos(turn)])
    points = np.array([x, y]) + np.array([[0.0, 0.0], across, down, across + down])
    low, high = points.min(axis=0), points.max(axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def decode_rle(data: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """A (height, width) mask out of Label Studio's run lengths: where the stroke is at least half opaque.

    ValueError: it is cut short, or of another size.
    """
    bits = np.unpackbits(np.frombuffer(bytes(data), np.uint8))
    stream = (bits + ord("0")).tobytes()
    place = 0

    def take(count: int) -> int:
        nonlocal place
        if place + count > len(stream):
            raise ValueError("the mask is cut short")
        place += count
        return int(stream[place - count : place], 2) if count else 0

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    if total != height * width * 4 or word != 8:
        raise ValueError(f"the mask is not one of {width} x {height} pixels")
    out = np.zeros(total, np.uint8)
    i = 0
    while i < total:
        same = take(1)
        end = min(i + 1 + take(sizes[take(2)]), total)
        if same:
            out[i:end] = take(8)
        else:
            need = 8 * (end - i)
            if place + need > len(bits):
                raise ValueError("the mask is cut short")
            out[i:end] = np.packbits(bits[place : place + need])
            place += need
        i = end
    return out.reshape(height, width, 4)[..., 3] >= 128
