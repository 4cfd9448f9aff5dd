"""COCO JSON with RLE masks, scores, and our own data in each annotation's `attributes`.

https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline import boxes, masks
from pipeline.errors import DataError
from pipeline.exchange.tasks import (
    Answer,
    Loss,
    Reading,
    Row,
    Seen,
    Task,
    between,
    carried,
    clean,
    corners,
    mask_box,
    number,
    read_json,
    write_lines,
)
from pipeline.formats.coco import mask_of
from pipeline.journal import Corners

FILE = "annotations/instances_default.json"
_DIGITS = 12  # of an id's hex digits: whole numbers that every JSON reader holds exactly


def write(tasks: Iterable[Task], classes: Sequence[str], folder: Path) -> list[Loss]:
    """Write annotations/instances_default.json.

    Ids are numbers made of the label's own id, so they stay the same from one export to the next.
    """
    losses: list[Loss] = []
    images: list[str] = []
    named = [json.dumps({"id": i, "name": name, "supercategory": ""}) for i, name in enumerate(classes, start=1)]
    annotations = _annotations(tasks, {name: i for i, name in enumerate(classes, start=1)}, images, losses)
    # Images come last: they are known when all annotations have been written.
    parts = chain(
        ["{", '"info": {"description": "cv-pipeline"},', '"licenses": [],'],
        between('"annotations": [', annotations, "],"),
        between('"categories": [', named, "],"),
        between('"images": [', images, "]"),
        ["}"],
    )
    write_lines(folder / FILE, parts)
    return losses


def _annotations(
    tasks: Iterable[Task], numbers: dict[str, int], images: list[str], losses: list[Loss]
) -> Iterator[str]:
    """Annotations as JSON; the images that they lie on are added to `images`."""
    taken: set[int] = set()
    for place, task in enumerate(tasks, start=1):
        shown = [row["annotation_id"] for row in task.labels]
        entry = {"id": place, "file_name": task.name, "width": task.width, "height": task.height}
        images.append(json.dumps(entry | {"image_id": task.image_id, "batch": task.batch, "shown": shown}))
        for row in task.labels:
            name = row["annotation_id"]
            if row["class_name"] not in numbers:
                losses.append(Loss(f"label {name}", f"{row['class_name']!r} is no class of the project: left out"))
                continue
            if row["x1"] is None and row["mask"] is None:
                losses.append(Loss(f"label {name}", "COCO has no labels of whole images: other tools see a box"))
            unique = int(name[:_DIGITS], 16) if _is_hex(name[:_DIGITS]) else 1
            while unique in taken:
                unique += 1
            taken.add(unique)
            yield json.dumps(_annotation(row, unique, place, numbers[row["class_name"]], task))


def _is_hex(text: str) -> bool:
    return bool(text) and all(c in "0123456789abcdef" for c in text)


def _annotation(row: Row, number_: int, image: int, category: int, task: Task) -> dict[str, Any]:
    whole, box = row["x1"] is None, corners(row)
    if box is None and row["mask"] is not None:
        box = list(mask_box(row["mask"], task.height, task.width))
    box = box or [0.0, 0.0, float(task.width), float(task.height)]
    x, y, w, h = boxes.to_xywh([box])[0].tolist()
    mask = row["mask"]
    return {
        "id": number_,
        "image_id": image,
        "category_id": category,
        "bbox": [x, y, w, h],
        "area": w * h if mask is None else masks.area(mask),
        "iscrowd": int(row["is_crowd"]),
        "segmentation": [] if mask is None else {"size": [task.height, task.width], "counts": mask},
        "score": row["score"],
        "attributes": {
            "annotation_id": row["annotation_id"],
            "status": row["status"],
            "image_level": whole,
            "cvp": json.dumps(carried(row)),
        },
    }


# -- in --------------------------------------------------------------------------------------------


def read(path: Path) -> Reading:
    """The images of a COCO file as answers that are not complete. An entry that cannot be used is a loss.

    Raises:
        DataError: it is no COCO file.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise DataError(f"{path} is not a COCO file", "it must hold images, annotations and categories")
    reading = Reading()
    names = {c.get("id"): str(c.get("name")) for c in content.get("categories") or [] if isinstance(c, dict)}
    images: dict[Any, dict[str, Any]] = {}
    seen: dict[Any, list[Seen]] = {}
    for i, entry in enumerate(content["images"]):
        try:
            images[entry["id"]] = {**entry, "width": int(entry["width"]), "height": int(entry["height"])}
            seen[entry["id"]] = []
        except (KeyError, TypeError, ValueError) as error:
            reading.losses.append(Loss(f"images[{i}]", f"not understood: {error}"))
    for i, entry in enumerate(content["annotations"]):
        where = f"annotations[{i}]"
        try:
            seen[entry["image_id"]].append(_seen(entry, images[entry["image_id"]], names, where))
        except (KeyError, TypeError, ValueError, AttributeError, DataError) as error:
            words = error.what if isinstance(error, DataError) else f"{type(error).__name__} {error}"
            reading.losses.append(Loss(where, f"not understood: {words}"))
    for key, entry in images.items():
        shown = entry.get("shown")
        reading.answers.append(
            Answer(
                image_id=str(entry.get("image_id", "")),
                name=str(entry.get("file_name", "")),
                batch=entry.get("batch") if isinstance(entry.get("batch"), str) else None,
                seen=tuple(seen[key]),
                shown=frozenset(map(str, shown)) if isinstance(shown, list) else None,
            )
        )
    return reading


def _seen(entry: dict[str, Any], image: dict[str, Any], names: dict[Any, str], where: str) -> Seen:
    attributes = entry.get("attributes") or {}
    sent = clean(json.loads(attributes["cvp"])) if isinstance(attributes.get("cvp"), str) else {}
    mask = mask_of(entry.get("segmentation"), (image["width"], image["height"]), where)
    name = attributes.get("annotation_id")
    box = None if attributes.get("image_level") is True else _box(entry, mask, image)
    return Seen(str(name) if name else None, names[entry["category_id"]], box, mask, sent, "", str(entry.get("id", "")))


def _box(entry: dict[str, Any], mask: str | None, image: dict[str, Any]) -> Corners | None:
    if entry.get("bbox"):
        x, y, w, h = (number(v) for v in entry["bbox"])
        return x, y, x + w, y + h
    return None if mask is None else mask_box(mask, image["height"], image["width"])
