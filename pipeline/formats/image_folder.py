"""Hugging Face ImageFolder: metadata.jsonl or metadata.csv, a line an image. https://huggingface.co/docs/datasets/image_dataset

Read are `file_name` (relative to the metadata's folder), `label` or `labels` of the whole image, and `objects` with
lists of `bbox` (x, y, width, height in pixels) and `categories` (or `category`, `label`, `labels`), optionally also of
`masks` (COCO's RLE counts), `is_crowd`, `ignore` and `truncated`. Classes are names: numbers have a meaning only in the
code that loads such a dataset.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from pipeline import boxes, masks
from pipeline.errors import DataError
from pipeline.formats.coco import check_size, mask_of
from pipeline.formats.records import Folder, Labels, Record, number
from pipeline.sources import SourceFile

_NAMES = ("metadata.jsonl", "metadata.csv")
_CLASSES = ("categories", "category", "labels", "label")
_FLAGS = ("is_crowd", "ignore", "truncated")


def find(folder: Folder) -> list[SourceFile]:
    """Files called metadata.jsonl or metadata.csv that name files and say something of them."""
    files = [f for f in folder.with_suffix(".jsonl", ".csv") if PurePosixPath(f.name).name in _NAMES]
    return [f for f in files if _looks_right(folder.text(f).lstrip().partition("\n")[0])]


def _looks_right(first: str) -> bool:
    return "file_name" in first and any(key in first for key in ("label", "objects", "categor"))


def read(folder: Folder, files: list[SourceFile], labels: Labels) -> None:
    """Add what is in `files` to `labels`. Every image with a line is labelled, if only as empty.

    Raises:
        DataError: malformed, a path that leaves the folder, or classes that are numbers; with file and line.
    """
    for file in files:
        for where, entry in _entries(folder.text(file), file.name):
            reference = str(entry.get("file_name") or "")
            path = PurePosixPath(reference.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or ":" in reference:
                raise DataError(f"{where}: file_name {reference!r:.80} leaves the folder", "write it relative to it")
            found = folder.image(str(PurePosixPath(file.name).parent / path), file.name) if reference else None
            if found is None or found not in folder.sizes:
                labels.unmatched[file.name] += 1
                continue
            check_size((entry.get("width"), entry.get("height")), folder.sizes[found], where, found)
            labels.annotate(found, file.name)
            for name in _whole(entry, where):
                resolved = folder.resolve(name, labels, where)
                if resolved is not None:
                    labels.records.append(Record(found, resolved, None))
            labels.records += _objects(folder, entry.get("objects"), found, labels, where)


def _entries(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if name.endswith(".csv"):
        for line, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=2):
            yield f"{name}, line {line}", dict(row)
        return
    for line, part in enumerate(text.splitlines(), start=1):
        if not part.strip():
            continue
        where = f"{name}, line {line}"
        try:
            entry = json.loads(part)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{where}: not JSON: {error}", "write one JSON object a line") from error
        if not isinstance(entry, dict):
            raise DataError(f"{where}: not a JSON object", "write one JSON object a line")
        yield where, entry


def _whole(entry: dict[str, Any], where: str) -> list[str]:
    given = entry.get("labels") if entry.get("labels") is not None else entry.get("label")
    if given is None or given == "":
        return []
    return [_class(name, where) for name in (given if isinstance(given, list) else [given])]


def _class(name: Any, where: str) -> str:
    if not isinstance(name, str):
        raise DataError(f"{where}: class {name!r:.40} is not a name", "write the names of classes, not their numbers")
    return name


def _objects(folder: Folder, objects: Any, image: str, labels: Labels, where: str) -> Iterator[Record]:
    if objects is None:
        return
    key = next((k for k in _CLASSES if isinstance(objects, dict) and isinstance(objects.get(k), list)), "")
    boxes_, names = (objects.get("bbox"), objects[key]) if key else (None, [])
    if not isinstance(boxes_, list) or len(boxes_) != len(names):
        raise DataError(f"{where}: objects needs lists bbox and categories of equal length", "correct that line")
    columns = {k: objects.get(k) or [None] * len(names) for k in ("masks", *_FLAGS)}
    if any(not isinstance(c, list) or len(c) != len(names) for c in columns.values()):
        raise DataError(f"{where}: the lists in objects differ in length", "correct that line")
    for i, (box, name) in enumerate(zip(boxes_, names, strict=True)):
        resolved = folder.resolve(_class(name, where), labels, where)
        if resolved is None:
            continue
        width, height = folder.sizes[image]
        counts = columns["masks"][i]
        mask = mask_of({"size": [height, width], "counts": counts}, (width, height), where) if counts else None
        flags = {k: bool(columns[k][i]) for k in _FLAGS}
        yield Record(image, resolved, _corners(box, mask, (width, height), where), mask, **flags)


def _corners(box: Any, mask: str | None, size: tuple[int, int], where: str) -> tuple[float, float, float, float]:
    if box is None and mask is not None:
        x1, y1, x2, y2 = masks.box(mask, size[1], size[0]).tolist()
        return x1, y1, x2, y2
    if not isinstance(box, list) or len(box) != 4:
        raise DataError(f"{where}: a bbox must be [x, y, width, height]", "correct that line")
    x1, y1, x2, y2 = boxes.from_xywh([number(v, where) for v in box])[0].tolist()
    return x1, y1, x2, y2
