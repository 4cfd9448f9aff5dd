"""YOLO: one text file an image, `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 …`, as shares of its size.

Class numbers get their names from data.yaml (`names:`, a list or a mapping with gaps) or from
classes.txt, obj.names and the like. An image without a text file is unlabelled; one with an empty
text file is labelled, and has nothing on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import yaml

from pipeline import boxes, masks
from pipeline.errors import DataError
from pipeline.formats.records import Folder, Labels, Record, number
from pipeline.sources import SourceFile

_ROW = re.compile(r"\d+(\.0+)?([ \t]+[-+.\deE]+){4,}\s*")
_NAME_LISTS = ("classes.txt", "labels.txt", "names.txt")
_OUTSIDE = 0.5  # shares further outside [0, 1] than this are pixels, not shares


def find(folder: Folder) -> list[SourceFile]:
    """Text files of the batch that belong to an image and hold YOLO rows, or nothing."""
    return [f for f in _candidates(folder) if _looks_right(folder.text(f))] if _is_yolo(folder) else []


def _candidates(folder: Folder) -> list[SourceFile]:
    texts = folder.with_suffix(".txt")
    return [f for f in texts if not _is_name_list(f) and folder.image(f.name, f.name) is not None]


def _is_yolo(folder: Folder) -> bool:
    """One row is enough: empty text files alone, without names of classes, are no annotations."""
    texts = [folder.text(f) for f in _candidates(folder)]
    return any(text.strip() and _looks_right(text) for text in texts) or (bool(texts) and bool(_names(folder)))


def _looks_right(text: str) -> bool:
    first = next((line for line in text.splitlines() if line.strip()), None)
    return first is None or _ROW.fullmatch(first.strip()) is not None


def _is_name_list(file: SourceFile) -> bool:
    return PurePosixPath(file.name).name.lower() in _NAME_LISTS


def read(folder: Folder, files: list[SourceFile], labels: Labels) -> None:
    """Add the annotations in `files` to `labels`.

    Raises:
        DataError: malformed, or a class number without a name; the message names file and line.
    """
    names = _names(folder)
    for file in files:
        found = folder.image(file.name, file.name)
        if found is None or found not in folder.sizes:
            labels.unmatched[file.name] += 1
            continue
        labels.annotate(found, file.name)
        for line, text in enumerate(folder.text(file).splitlines(), start=1):
            if not text.strip():
                continue
            record = _record(folder, text.split(), found, names, labels, f"{file.name}, line {line}")
            if record is not None:
                labels.records.append(record)


def _record(
    folder: Folder, words: list[str], image: str, names: Mapping[int, str], labels: Labels, where: str
) -> Record | None:
    values = [number(word, where) for word in words]
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        hint = "; six look like a model's predictions with scores" if len(values) == 6 else ""
        raise DataError(f"{where}: {len(values)} numbers, expected class and box or polygon{hint}", "export it again")
    if values[0] not in names:
        raise DataError(f"{where}: class {words[0]} has no name", "list it in data.yaml (names:) or classes.txt")
    if min(values[1:]) < -_OUTSIDE or max(values[1:]) > 1 + _OUTSIDE:
        raise DataError(f"{where}: coordinates must be shares of the image's size", "export them normalised")
    name = folder.resolve(names[int(values[0])], labels, where)
    if name is None:
        return None
    width, height = folder.sizes[image]
    if len(values) == 5:
        return Record(image, name, tuple(boxes.from_cxcywhn(values[1:], width, height)[0].tolist()))
    points = np.array(values[1:]).reshape(-1, 2) * [width, height]
    mask = masks.from_polygons([points.ravel().tolist()], height, width)
    return Record(image, name, (*points.min(0).tolist(), *points.max(0).tolist()), mask)


def _names(folder: Folder) -> dict[int, str]:
    for file in folder.with_suffix(".yaml", ".yml"):
        try:
            content = yaml.safe_load(folder.text(file))
        except yaml.YAMLError as error:
            raise DataError(f"{file.name} is not YAML: {error}", "correct it, or remove it from the batch") from error
        if isinstance(content, dict) and "names" in content:
            return _numbered(content["names"], file.name)
    lists = [f for f in folder.sidecars if _is_name_list(f) or PurePosixPath(f.name).suffix == ".names"]
    if lists:
        return dict(enumerate(line.strip() for line in folder.text(lists[0]).strip().splitlines()))
    return {}


def _numbered(names: Any, where: str) -> dict[int, str]:
    pairs = names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else None
    if pairs is None:
        raise DataError(f"{where}: names must be a list or a mapping", "write names: {0: first, 1: second}")
    return {int(number(key, f"{where}, names")): str(name) for key, name in pairs}
