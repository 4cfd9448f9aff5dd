"""Label Studio JSON: rectangles, brush masks and choices as predictions; people's annotations back.

https://labelstud.io/guide/predictions and https://labelstud.io/guide/export (the format called JSON).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from pipeline import masks
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
    mask_box,
    number,
    read_json,
    runs,
    write_lines,
)
from pipeline.formats.label_studio import MASK_SUFFIX, decode_rle, upright
from pipeline.journal import Corners

FILE = "tasks.json"
MODEL = "cv-pipeline"
_FROM = {"rectanglelabels": "box", "brushlabels": "mask", "polygonlabels": "outline", "choices": "class"}
# Bits of a run's length, as Label Studio's own editor writes them.
_SIZES = (3, 4, 8, 16)


def labeling_config(classes: Sequence[str]) -> str:
    """The XML of a labelling interface in which all that we send can be shown and changed."""
    names = [f"    <Label value={quoteattr(name)}/>" for name in classes]
    choices = [f"    <Choice value={quoteattr(name)}/>" for name in classes]
    return "\n".join(
        [
            "<View>",
            '  <Image name="image" value="$image" zoom="true" zoomControl="true" maxWidth="100%"/>',
            '  <RectangleLabels name="box" toName="image" showInline="true">', *names, "  </RectangleLabels>",
            '  <BrushLabels name="mask" toName="image" visibleWhen="region-selected">', *names, "  </BrushLabels>",
            '  <PolygonLabels name="outline" toName="image" visibleWhen="region-selected">', *names,
            "  </PolygonLabels>",
            '  <Choices name="class" toName="image" choice="single" showInline="true">', *choices, "  </Choices>",
            "</View>",
        ]
    )  # fmt: skip


def write(tasks: Iterable[Task], classes: Sequence[str], folder: Path) -> list[Loss]:
    """Write tasks.json and label_config.xml. Every label keeps everything; nothing is lost.

    The pictures' addresses are those of Label Studio's local file serving, relative to its document root.
    """
    made = (json.dumps(task_json(t, f"/data/local-files/?d=images/{t.name}"), ensure_ascii=False) for t in tasks)
    write_lines(folder / FILE, between("[", made, "]"))
    write_lines(folder / "label_config.xml", [labeling_config(classes)])
    return []


def task_json(task: Task, picture: str) -> dict[str, Any]:
    """One task. `picture` is what Label Studio shows: a URL or a data: URI."""
    result = [part for row in task.labels for part in _result(row, task)]
    scores = [row["score"] for row in task.labels]
    data = {
        "image": picture,
        "image_id": task.image_id,
        "batch": task.batch,
        "name": task.name,
        "width": task.width,
        "height": task.height,
        "shown": [row["annotation_id"] for row in task.labels],
    }
    prediction = {"model_version": MODEL, "score": min(scores) if scores else None, "result": result}
    return {"data": data, "predictions": [prediction] if result else []}


def _result(row: Row, task: Task) -> list[dict[str, Any]]:
    shared = {
        "to_name": "image",
        "original_width": task.width,
        "original_height": task.height,
        "image_rotation": 0,
        "score": row["score"],
    }
    meta = {"cvp": carried(row)}
    parts: list[dict[str, Any]] = []
    if row["x1"] is not None:
        place = {
            "x": row["x1"] / task.width * 100,
            "y": row["y1"] / task.height * 100,
            "width": (row["x2"] - row["x1"]) / task.width * 100,
            "height": (row["y2"] - row["y1"]) / task.height * 100,
            "rotation": 0,
        }
        parts.append(_region(row["annotation_id"], "rectanglelabels", row["class_name"], place, meta, shared))
    if row["mask"] is not None:
        brush = {"format": "rle", "rle": encode_rle(masks.decode(row["mask"], task.height, task.width))}
        parts.append(_region(row["annotation_id"] + MASK_SUFFIX, "brushlabels", row["class_name"], brush, meta, shared))
    if not parts:
        parts.append(_region(row["annotation_id"], "choices", row["class_name"], {}, meta, shared))
    return parts


def _region(
    name: str, kind: str, class_name: str, value: dict[str, Any], meta: dict[str, Any], shared: dict[str, Any]
) -> dict[str, Any]:
    return {"id": name, "type": kind, "from_name": _FROM[kind], "value": value | {kind: [class_name]}, "meta": meta} | (
        shared
    )


# -- in --------------------------------------------------------------------------------------------


def read(path: Path) -> Reading:
    """The answers in a file of Label Studio's export format JSON, or in a tasks.json that we wrote.

    Raises:
        DataError: it is no JSON, or no list of tasks.
    """
    return read_tasks(read_json(path), str(path))


def read_tasks(content: Any, where: str) -> Reading:
    """Answers of a list of tasks. A task or region that cannot be used is a loss, and the others are read.

    Submitted annotations are answers, skipped ones are not. A task that nobody has handed in gives its
    predictions, as an answer that is not complete.
    """
    if not isinstance(content, list):
        raise DataError(f"{where} is not a list of tasks", "export it again, in the format JSON (not JSON-MIN)")
    reading = Reading()
    for number_, task in enumerate(content):
        name = f"task {task.get('id', number_ + 1)}" if isinstance(task, dict) else f"entry {number_ + 1}"
        try:
            reading.answers += _answers(task, name, reading.losses)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reading.losses.append(Loss(name, f"not understood: {type(error).__name__} {error}"))
    return reading


def _answers(task: dict[str, Any], name: str, losses: list[Loss]) -> list[Answer]:
    data = task["data"]
    handed_in = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
    pictures = [p for p in task.get("predictions") or [] if isinstance(p, dict) and p.get("model_version") == MODEL]
    shown = data.get("shown")
    found = []
    for entry in handed_in or pictures[-1:] or [{"result": []}]:
        seen = _seen(entry.get("result") or [], data, name, losses)
        found.append(
            Answer(
                image_id=str(data.get("image_id", "")),
                name=str(data.get("name") or data.get("image", ""))[:400],
                batch=data.get("batch") if isinstance(data.get("batch"), str) else None,
                seen=tuple(seen),
                shown=frozenset(map(str, shown)) if isinstance(shown, list) else None,
                reviewer=_person(entry.get("completed_by")),
                at=_time(entry.get("updated_at") or entry.get("created_at")),
                complete=bool(handed_in),
            )
        )
    return found


def _person(completed_by: Any) -> str:
    if isinstance(completed_by, dict):
        return str(completed_by.get("email") or completed_by.get("username") or f"user {completed_by.get('id')}")
    if completed_by is None:
        return ""
    return f"user {completed_by}" if isinstance(completed_by, int) else str(completed_by)


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) and text else None


def _seen(result: list[dict[str, Any]], data: dict[str, Any], name: str, losses: list[Loss]) -> list[Seen]:
    """Labels of one annotation; a brush stroke that belongs to a rectangle is its mask."""
    found: dict[str, Seen] = {}
    for position, region in enumerate(result):
        key = str(region.get("id", position)).split("#")[0]
        where = f"{name}, region {key}"
        try:
            label = _label(region, key, data, where, losses)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            losses.append(Loss(where, f"not understood: {type(error).__name__} {error}"))
            continue
        if label is None:
            continue
        owner = key.removesuffix(MASK_SUFFIX)
        other = found.get(owner)
        found[owner] = label if other is None else _joined(other, label)
    return list(found.values())


def _joined(one: Seen, other: Seen) -> Seen:
    """The rectangle and the brush stroke of one label."""
    box, stroke = (one, other) if one.mask is None else (other, one)
    return Seen(box.annotation_id, box.class_name, box.box, stroke.mask, box.carried, "", box.region)


def _label(region: dict[str, Any], key: str, data: dict[str, Any], where: str, losses: list[Loss]) -> Seen | None:
    kind, value = region.get("type"), region.get("value", {})
    if kind not in _FROM:
        losses.append(Loss(where, f"a {kind!r:.40} is neither a box, nor a mask, nor a class"))
        return None
    names = value.get(kind) or []
    if not names:
        losses.append(Loss(where, "it has no class"))
        return None
    if len(names) > 1:
        losses.append(Loss(where, f"of several classes the first is kept: {', '.join(map(str, names))[:100]}"))
    meta = region.get("meta")
    sent = clean(meta.get("cvp")) if isinstance(meta, dict) else {}
    owner = key.removesuffix(MASK_SUFFIX)
    known = bool(sent) or owner in (data.get("shown") or [])
    width, height = (int(region.get(f"original_{side}") or data[side]) for side in ("width", "height"))
    box, mask = _geometry(kind, value, width, height, where, losses)
    return Seen(owner if known else None, str(names[0]), box, mask, sent, "", owner)


def _geometry(
    kind: str, value: dict[str, Any], width: int, height: int, where: str, losses: list[Loss]
) -> tuple[Corners | None, str | None]:
    if kind == "choices":
        return None, None
    if kind == "rectanglelabels":
        x, y, w, h = (number(value[k]) for k in ("x", "y", "width", "height"))
        turn = number(value.get("rotation", 0))
        if turn % 360:
            losses.append(Loss(where, f"turned by {turn:g} degrees: the upright box around it is kept"))
        return upright(x / 100 * width, y / 100 * height, w / 100 * width, h / 100 * height, turn), None
    if kind == "brushlabels":
        mask = masks.encode(decode_rle(value["rle"], height, width))
    else:
        points = [number(v) / 100 * size for p in value["points"] for v, size in zip(p, (width, height), strict=True)]
        mask = masks.from_polygons([points], height, width)
    return mask_box(mask, height, width), mask


# -- masks -----------------------------------------------------------------------------------------


def encode_rle(mask: NDArray[np.bool_]) -> list[int]:
    """A (height, width) mask in Label Studio's run lengths: bytes of a bit stream over RGBA values.

    The header holds the number of values (32 bits), bits of a value - 1 (5), and four sizes of run
    lengths - 1 (4 each). A run is 1, which size (2), its length - 1, and the value (8).
    """
    lengths, values = runs(mask.ravel())
    bits = [f"{mask.size * 4:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for count, value in zip((lengths * 4).tolist(), values.tolist(), strict=True):
        tail = "11111111" if value else "00000000"
        while count:
            some = min(count, 1 << _SIZES[-1])
            kind = next(i for i, size in enumerate(_SIZES) if some <= 1 << size)
            bits.append(f"1{kind:02b}{some - 1:0{_SIZES[kind]}b}{tail}")
            count -= some
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return list(int(stream, 2).to_bytes(len(stream) // 8, "big"))
