"""COCO: annotations/instances_SPLIT.json beside images/. https://cocodataset.org/#format-data"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline import boxes, masks
from pipeline.exchange.dataset.losing import Losses
from pipeline.exchange.tasks import Loss, Row, Task, between, corners, mask_box, write_lines

_HOLDS = frozenset({"score", "annotation_id", "is_crowd", "ignore"})


def picture(split: str, task: Task) -> str:
    """`images/BATCH/NAME.jpg`."""
    return f"images/{task.name}"


def write(split: str, tasks: Iterable[Task], classes: Sequence[str], folder: Path) -> list[Loss]:
    """Masks are compressed RLE. Score, id and `ignore` are further keys, which other tools pass over."""
    losses = Losses("COCO", _HOLDS)
    numbers = {name: i for i, name in enumerate(classes, start=1)}
    images: list[str] = []
    categories = (json.dumps({"id": i, "name": name, "supercategory": ""}) for name, i in numbers.items())
    parts = chain(
        ["{", '"info": {"description": "cv-pipeline"},', '"licenses": [],'],
        between('"annotations": [', _annotations(tasks, numbers, images, losses), "],"),
        between('"categories": [', categories, "],"),
        between('"images": [', images, "]"),
        ["}"],
    )
    write_lines(folder / "annotations" / f"instances_{split}.json", parts)
    return losses.all()


def _annotations(tasks: Iterable[Task], numbers: dict[str, int], images: list[str], losses: Losses) -> Iterator[str]:
    count = 0
    for place, task in enumerate(tasks, start=1):
        entry = {"id": place, "file_name": task.name, "width": task.width, "height": task.height}
        images.append(json.dumps(entry))
        for row in task.labels:
            if row["x1"] is None and row["mask"] is None:
                losses.lose(row, f"COCO has no labels of whole images: {row['class_name']!r} is left out")
                continue
            losses.flags(row)
            count += 1
            yield json.dumps(_annotation(row, count, place, numbers[row["class_name"]], task))


def _annotation(row: Row, number: int, image: int, category: int, task: Task) -> dict[str, Any]:
    mask = row["mask"]
    box = corners(row) or list(mask_box(mask, task.height, task.width))
    x, y, w, h = boxes.to_xywh([box])[0].tolist()
    entry = {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [x, y, w, h],
        "area": w * h if mask is None else masks.area(mask),
        "iscrowd": int(row["is_crowd"]),
        "segmentation": [] if mask is None else {"size": [task.height, task.width], "counts": mask},
        "annotation_id": row["annotation_id"],
    }
    if row["ignore"]:
        entry["ignore"] = 1
    return entry | ({"score": row["score"]} if row["score"] != 1 else {})


def finish(splits: Sequence[str], classes: Sequence[str], folder: Path) -> None:
    """There is nothing about all splits."""
