"""CSV, one box a row, one file a split: image_path,xmin,ymin,xmax,ymax,label,score,annotation_id.

An image without labels has a row without corners, so that it is known to be empty.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.exchange.dataset.losing import Losses
from pipeline.exchange.tasks import Loss, Task, corners, mask_box, write_lines

_HEAD = ("image_path", "xmin", "ymin", "xmax", "ymax", "label", "score", "annotation_id")


def picture(split: str, task: Task) -> str:
    """`images/BATCH/NAME.jpg`."""
    return f"images/{task.name}"


def write(split: str, tasks: Iterable[Task], classes: Sequence[str], folder: Path) -> list[Loss]:
    """Write SPLIT.csv."""
    losses = Losses("CSV", frozenset({"score", "annotation_id"}))
    write_lines(folder / f"{split}.csv", (_line(row) for row in _rows(tasks, losses)))
    return losses.all()


def _rows(tasks: Iterable[Task], losses: Losses) -> Iterator[Sequence[str]]:
    yield _HEAD
    for task in tasks:
        written = 0
        for row in task.labels:
            if row["x1"] is None and row["mask"] is None:
                losses.lose(row, f"CSV of boxes has no labels of whole images: {row['class_name']!r} is left out")
                continue
            if row["is_crowd"] or row["ignore"]:
                losses.lose(row, "CSV has neither crowds nor regions to be ignored: left out")
                continue
            if row["mask"] is not None:
                losses.lose(row, "CSV has no masks: its box is kept")
            losses.flags(row)
            written += 1
            box = corners(row) or mask_box(row["mask"], task.height, task.width)
            values = [str(np.float32(v)) for v in box]
            yield (
                f"images/{task.name}",
                *values,
                row["class_name"],
                str(np.float32(row["score"])),
                row["annotation_id"],
            )
        if not written:
            yield (f"images/{task.name}", *[""] * 7)


def _line(row: Sequence[str]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow(row)
    return stream.getvalue()


def finish(splits: Sequence[str], classes: Sequence[str], folder: Path) -> None:
    """There is nothing about all splits."""
