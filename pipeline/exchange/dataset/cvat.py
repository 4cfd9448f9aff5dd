"""CVAT for images 1.1: SPLIT/annotations.xml beside SPLIT/images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.exchange import cvat
from pipeline.exchange.tasks import Loss, Task


def picture(split: str, task: Task) -> str:
    """`SPLIT/images/BATCH/NAME.jpg`."""
    return f"{split}/images/{task.name}"


def write(split: str, tasks: Iterable[Task], classes: Sequence[str], folder: Path) -> list[Loss]:
    """As for review: every label keeps everything that it is."""
    return cvat.write(tasks, classes, folder / split)


def finish(splits: Sequence[str], classes: Sequence[str], folder: Path) -> None:
    """There is nothing about all splits."""
