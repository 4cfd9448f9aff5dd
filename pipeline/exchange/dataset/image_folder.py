"""Hugging Face ImageFolder: SPLIT/metadata.jsonl with a line an image. https://huggingface.co/docs/datasets/image_dataset

`objects` holds lists of equal length, as in the guide for object detection: bbox (x, y, width, height in pixels)
and categories, and beside these everything else that a label is: masks as RLE, scores, ids and flags. Labels of
whole images are in `labels`, with what is known of each in `label_scores` and `label_ids`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline import boxes
from pipeline.exchange.dataset.losing import Losses
from pipeline.exchange.tasks import Loss, Row, Task, corners, write_lines


def picture(split: str, task: Task) -> str:
    """`SPLIT/BATCH/NAME.jpg`."""
    return f"{split}/{task.name}"


def write(split: str, tasks: Iterable[Task], classes: Sequence[str], folder: Path) -> list[Loss]:
    """Write metadata.jsonl. Only flags of labels of whole images are lost."""
    losses = Losses("ImageFolder, of a whole image,", frozenset({"score", "annotation_id"}))
    write_lines(folder / split / "metadata.jsonl", (json.dumps(_entry(t, losses), ensure_ascii=False) for t in tasks))
    return losses.all()


def _entry(task: Task, losses: Losses) -> dict[str, Any]:
    whole = [row for row in task.labels if row["x1"] is None and row["mask"] is None]
    drawn = [row for row in task.labels if row["x1"] is not None or row["mask"] is not None]
    for row in whole:
        losses.flags(row)
    objects: dict[str, list[Any]] = {
        "bbox": [_box(row) for row in drawn],
        "categories": [row["class_name"] for row in drawn],
        "masks": [row["mask"] for row in drawn],
        "scores": [row["score"] for row in drawn],
        "ids": [row["annotation_id"] for row in drawn],
        **{key: [row[key] for row in drawn] for key in ("is_crowd", "ignore", "truncated")},
    }
    return {
        "file_name": task.name,
        "width": task.width,
        "height": task.height,
        "objects": objects,
        "labels": [row["class_name"] for row in whole],
        "label_scores": [row["score"] for row in whole],
        "label_ids": [row["annotation_id"] for row in whole],
    }


def _box(row: Row) -> list[float] | None:
    box = corners(row)
    return None if box is None else [float(v) for v in boxes.to_xywh([box])[0]]


def finish(splits: Sequence[str], classes: Sequence[str], folder: Path) -> None:
    """There is nothing about all splits."""
