"""LabelMe: one JSON beside each picture. https://github.com/wkentaro/labelme

Masks without holes are polygons, parts of one object share a `group_id`; masks with holes are shapes of the type
`mask`, a PNG of what is in their box. Labels of whole images are flags. Score, id and the flags of a label are
further keys of its shape, which LabelMe keeps and does not show.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from pipeline import masks
from pipeline.exchange.dataset.losing import Losses
from pipeline.exchange.tasks import Loss, Row, Task, corners, mask_box, write_lines

_HOLDS = frozenset({"score", "annotation_id", "is_crowd", "ignore", "truncated"})


def picture(split: str, task: Task) -> str:
    """`SPLIT/BATCH/NAME.jpg`."""
    return f"{split}/{task.name}"


def write(split: str, tasks: Iterable[Task], classes: Sequence[str], folder: Path) -> list[Loss]:
    """Write the JSON files of a split."""
    losses = Losses("LabelMe", _HOLDS)
    for task in tasks:
        place = PurePosixPath(split, task.name)
        whole = [row for row in task.labels if row["x1"] is None and row["mask"] is None]
        drawn = [row for row in task.labels if row["x1"] is not None or row["mask"] is not None]
        for row in whole:
            losses.lose(row, "of labels of the whole image, LabelMe holds each class once and nothing else")
        content = {
            "version": "5.5.0",
            "flags": {row["class_name"]: True for row in whole},
            "shapes": [s for group, row in enumerate(drawn, start=1) for s in _shapes(row, group, task, losses)],
            "imagePath": place.name,
            "imageData": None,
            "imageHeight": task.height,
            "imageWidth": task.width,
        }
        write_lines(folder / place.with_suffix(".json"), [json.dumps(content, ensure_ascii=False, indent=1)])
    return losses.all()


def _shapes(row: Row, group: int, task: Task, losses: Losses) -> list[dict[str, Any]]:
    losses.flags(row)
    more = {"id": row["annotation_id"], "score": row["score"], "difficult": bool(row["ignore"])}
    more |= {"truncated": bool(row["truncated"]), "iscrowd": bool(row["is_crowd"])}
    base = {"label": row["class_name"], "group_id": None, "description": "", "flags": {}} | more
    if row["mask"] is None:
        x1, y1, x2, y2 = corners(row) or []
        return [base | {"shape_type": "rectangle", "points": [[x1, y1], [x2, y2]]}]
    parts, holes = masks.outlines(row["mask"], task.height, task.width)
    if not parts:
        losses.lose(row, "LabelMe has no empty masks: left out")
        return []
    tight = mask_box(row["mask"], task.height, task.width)
    box = corners(row)
    if box is not None and not np.allclose(box, tight, atol=0.01):
        losses.lose(row, "LabelMe has either a box or an outline: its box becomes the outline's")
    if holes:
        return [base | {"shape_type": "mask"} | _picture(row["mask"], tight, task)]
    shared = base | {"shape_type": "polygon", "group_id": group if len(parts) > 1 else None}
    return [shared | {"points": np.array(part).reshape(-1, 2).tolist()} for part in parts]


def _picture(counts: str, tight: tuple[float, ...], task: Task) -> dict[str, Any]:
    """What is in the mask's box as a PNG; LabelMe's second corner is the last pixel inside."""
    x1, y1, x2, y2 = (int(v) for v in tight)
    stream = io.BytesIO()
    Image.fromarray(masks.decode(counts, task.height, task.width)[y1:y2, x1:x2]).save(stream, "PNG")
    points = [[x1, y1], [x2 - 1, y2 - 1]]
    return {"points": points, "mask": base64.b64encode(stream.getvalue()).decode("ascii")}


def finish(splits: Sequence[str], classes: Sequence[str], folder: Path) -> None:
    """The list of classes that LabelMe's --labels reads."""
    write_lines(folder / "labels.txt", classes)
