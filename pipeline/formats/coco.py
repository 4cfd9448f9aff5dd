"""COCO JSON: instances with boxes, polygons or RLE masks. https://cocodataset.org/#format-data"""

from __future__ import annotations

import json
from typing import Any

from pipeline import boxes, masks
from pipeline.errors import DataError
from pipeline.formats.records import Folder, Labels, Record, number
from pipeline.sources import SourceFile


def find(folder: Folder) -> list[SourceFile]:
    """JSON files of the batch that look like COCO's.

    Raises:
        DataError: a file is no JSON at all; passing it over would make labelled images look unlabelled.
    """
    found = []
    for file in folder.with_suffix(".json"):
        if _looks_right(folder.data(file)):
            found.append(file)
        else:
            parsed_json(folder.text(file), file.name)
    return found


def _looks_right(data: bytes) -> bool:
    plain = data.replace(b"\x00", b"")  # UTF-16
    return b'"images"' in plain and (b'"annotations"' in plain or b'"categories"' in plain)


def read(folder: Folder, files: list[SourceFile], labels: Labels) -> None:
    """Add the annotations in `files` to `labels`.

    An image that is listed is taken to be labelled completely, with or without annotations.

    Raises:
        DataError: malformed; the message names file and line or entry.
    """
    for file in files:
        _read_one(folder, file, labels)


def _read_one(folder: Folder, file: SourceFile, labels: Labels) -> None:
    content = _parsed(folder.text(file), file.name)
    categories = {
        _id(c.get("id"), f"{file.name}, categories"): str(c.get("name", ""))
        for c in _list(content, "categories", file.name)
    }
    images: dict[int | str, str | None] = {}
    for i, entry in enumerate(_list(content, "images", file.name)):
        where = f"{file.name}, images[{i}]"
        images[_id(entry.get("id"), where)] = _image(folder, entry, where, file.name, labels)
    for i, entry in enumerate(_list(content, "annotations", file.name)):
        where = f"{file.name}, annotations[{i}]"
        image, category = _id(entry.get("image_id"), where), _id(entry.get("category_id"), where)
        if image not in images:
            raise DataError(f"{where}: no image has the id {image!r}", "correct its image_id")
        if category not in categories:
            raise DataError(f"{where}: no category has the id {category!r}", "correct its category_id")
        target = images[image]
        name = folder.resolve(categories[category], labels, where)
        if target is not None and name is not None:
            labels.records.append(_record(entry, target, name, folder.sizes[target], where))


def _image(folder: Folder, entry: dict[str, Any], where: str, by: str, labels: Labels) -> str | None:
    reference = str(entry.get("file_name") or "")
    if not reference:
        raise DataError(f"{where} has no file_name", "add it, relative to the batch's folder")
    found = folder.image(reference, by)
    if found is None or found not in folder.sizes:
        labels.unmatched[by] += 1
        return None
    stated = (entry.get("width"), entry.get("height"))
    check_size(stated, folder.sizes[found], where, found)
    labels.annotate(found, by)
    return found


def check_size(stated: tuple[Any, Any], actual: tuple[int, int], where: str, image: str) -> None:
    """Refuse annotations drawn on another size of the picture. A size of 0 or none is not checked.

    Raises:
        DataError: the sizes differ.
    """
    if not all(stated):
        return
    width, height = (round(number(value, where)) for value in stated)
    if (width, height) == actual or not width or not height:
        return
    turned = (height, width) == actual
    raise DataError(
        f"{where}: {image} is {actual[0]} x {actual[1]} pixels, not {width} x {height}",
        "the labels were drawn without the photo's EXIF rotation: rotate its pixels first"
        if turned
        else "the labels belong to another size of this photo: use the photo they were drawn on",
    )


def _record(entry: dict[str, Any], image: str, name: str, size: tuple[int, int], where: str) -> Record:
    mask = mask_of(entry.get("segmentation"), size, where)
    crowd = bool(entry.get("iscrowd"))
    ignore = bool(entry.get("ignore"))
    box = entry.get("bbox")
    if box:
        if not isinstance(box, list) or len(box) != 4:
            raise DataError(f"{where}: bbox must be [x, y, width, height]", "correct or remove that entry")
        corners = boxes.from_xywh([number(v, where) for v in box])[0]
    elif mask is not None:
        corners = masks.box(mask, size[1], size[0])
    else:
        return Record(image, name, None, ignore=ignore)
    return Record(image, name, tuple(corners.tolist()), mask, crowd, ignore=ignore)


def mask_of(segmentation: Any, size: tuple[int, int], where: str) -> str | None:
    """Compressed RLE counts of polygons or of either kind of RLE; None where there is no area."""
    width, height = size
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        # Fewer than three corners enclose nothing (and pycocotools would take four numbers for a box).
        polygons = [[number(v, where) for v in p] for p in segmentation if isinstance(p, list) and len(p) >= 6]
        if any(len(p) % 2 for p in polygons):
            raise DataError(f"{where}: a polygon has an odd number of coordinates", "correct that entry")
        return masks.from_polygons(polygons, height, width) if polygons else None
    if not isinstance(segmentation, dict) or [height, width] != list(segmentation.get("size", [])):
        raise DataError(f"{where}: the mask's size is not [{height}, {width}]", "correct or remove that mask")
    return _checked_rle(segmentation.get("counts"), height, width, where)


def _checked_rle(counts: Any, height: int, width: int, where: str) -> str:
    from pycocotools import mask as coco

    runs = counts if isinstance(counts, list) else _runs(counts)
    # pycocotools reads past its buffers when runs do not add up, so they are checked first.
    valid = all(isinstance(n, int) and n >= 0 for n in runs) and sum(runs) == height * width
    if not valid:
        raise DataError(f"{where}: the mask's run lengths do not fill {width} x {height} pixels", "correct that mask")
    packed = coco.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return str(packed["counts"].decode("ascii"))


def _runs(counts: Any) -> list[int]:
    """Run lengths of COCO's compressed string: 5 bits a character, low ones first, differences after the second."""
    runs: list[int] = []
    value = shift = 0
    for character in str(counts).encode("utf-8"):
        code = character - 48
        if not 0 <= code < 64:
            return []
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if shift == 0 else []


def _parsed(text: str, name: str) -> dict[str, Any]:
    content = parsed_json(text, name)
    if not isinstance(content, dict):
        raise DataError(f"{name} is not a COCO file", "it must hold images, annotations and categories")
    return content


def parsed_json(text: str, name: str) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it is none; the message names file and line.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{name}, line {error.lineno}: {error.msg}", "export the annotations again") from error
    except RecursionError as error:
        raise DataError(f"{name}: nested too deeply", "export the annotations again") from error


def _list(content: dict[str, Any], key: str, name: str) -> list[dict[str, Any]]:
    entries = content.get(key, [] if key == "annotations" else None)
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise DataError(f"{name}: {key!r} must be a list of objects", "export the annotations again")
    return entries


def _id(value: Any, where: str) -> int | str:
    """Ids come as whole numbers, as floats (pandas) and as text."""
    if isinstance(value, str):
        return int(value) if value.strip().lstrip("-").isdecimal() else value
    whole = number(value, f"{where}: id")
    if whole != int(whole):
        raise DataError(f"{where}: id {value!r} is not a whole number", "export the annotations again")
    return int(whole)
