"""Label Studio: SPLIT/tasks.json and SPLIT/label_config.xml beside SPLIT/images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.exchange.label_studio import FILE, labeling_config, task_json
from pipeline.exchange.tasks import Loss, Task, between, write_lines


def picture(split: str, task: Task) -> str:
    """`SPLIT/images/BATCH/NAME.jpg`."""
    return f"{split}/images/{task.name}"


def write(split: str, tasks: Iterable[Task], classes: Sequence[str], folder: Path) -> list[Loss]:
    """Every label keeps everything that it is. They are annotations, as if a person had handed them in."""
    address = f"/data/local-files/?d={split}/images/"
    made = (json.dumps(_done(task_json(t, address + t.name)), ensure_ascii=False) for t in tasks)
    write_lines(folder / split / FILE, between("[", made, "]"))
    write_lines(folder / split / "label_config.xml", [labeling_config(classes)])
    return []


def _done(task: dict[str, Any]) -> dict[str, Any]:
    result = [part for made in task["predictions"] for part in made["result"]]
    return {"data": task["data"], "annotations": [{"result": result, "was_cancelled": False}]}


def finish(splits: Sequence[str], classes: Sequence[str], folder: Path) -> None:
    """There is nothing about all splits."""
