"""YOLO as Ultralytics' v5 and v8 read it: data.yaml, images/SPLIT, labels/SPLIT.

https://docs.ultralytics.com/datasets/detect/ and https://docs.ultralytics.com/datasets/segment/
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import yaml

from pipeline import boxes, masks
from pipeline.exchange.dataset.losing import Losses
from pipeline.exchange.tasks import Loss, Row, Task, corners, write_lines


def picture(split: str, task: Task) -> str:
    """`images/SPLIT/BATCH/NAME.jpg`."""
    return f"images/{split}/{task.name}"


def write(split: str, tasks: Iterable[Task], classes: Sequence[str], folder: Path) -> list[Loss]:
    """One text file an image: a box, or of a label with a mask the outline of its largest part.

    Crowds and what is to be ignored are left out, since to YOLO they would be objects like any other.
    """
    losses = Losses("YOLO")
    numbers = {name: i for i, name in enumerate(classes)}
    for task in tasks:
        lines = [_line(row, numbers[row["class_name"]], task, losses) for row in task.labels]
        path = folder / "labels" / split / PurePosixPath(task.name).with_suffix(".txt")
        write_lines(path, [line for line in lines if line])
    return losses.all()


def _line(row: Row, number: int, task: Task, losses: Losses) -> str:
    if row["is_crowd"] or row["ignore"]:
        words = "crowds" if row["is_crowd"] else "regions to be ignored"
        losses.lose(row, f"YOLO has no {words}: left out")
        return ""
    box = corners(row)
    parts: list[list[float]] = []
    if row["mask"] is not None:
        parts = _parts(row, task, losses)
    if not parts and box is None:
        what = f"label of a whole image: {row['class_name']!r}" if row["mask"] is None else "empty mask"
        losses.lose(row, f"YOLO has no {what}; left out")
        return ""
    losses.flags(row)
    if parts:
        values = (np.array(parts[0]).reshape(-1, 2) / [task.width, task.height]).ravel()
    else:
        values = boxes.to_cxcywhn(box or [], task.width, task.height)[0]
    return " ".join([str(number), *(f"{v:.9g}" for v in values.tolist())])


def _parts(row: Row, task: Task, losses: Losses) -> list[list[float]]:
    """Outlines of the mask's parts, the largest first."""
    parts, holes = masks.outlines(row["mask"], task.height, task.width)
    if not parts:
        return []
    if holes:
        losses.lose(row, f"YOLO has no holes: {len(holes)} are filled")
    if len(parts) > 1:
        losses.lose(row, f"YOLO has one outline an object: the largest of {len(parts)} parts is kept")
    box = corners(row)
    if box is not None and not np.allclose(box, masks.box(row["mask"], task.height, task.width), atol=0.01):
        losses.lose(row, "YOLO has either a box or an outline: its box becomes the outline's")
    return sorted(parts, key=_area, reverse=True)


def _area(outline: list[float]) -> float:
    x, y = np.array(outline).reshape(-1, 2).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def finish(splits: Sequence[str], classes: Sequence[str], folder: Path) -> None:
    """data.yaml. Ultralytics asks for train and val: a split that is not there is given by the first that is."""
    first = next(iter(splits), "train")
    paths = {s: f"images/{s if s in splits else first}" for s in ("train", "val", *(s for s in splits if s == "test"))}
    content = {**paths, "names": dict(enumerate(classes))}
    write_lines(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True).splitlines())
