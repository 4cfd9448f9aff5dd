"""CVAT for images 1.1: boxes, masks and tags in XML. https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/

A label's own data travel in text attributes: `annotation_id`, `score` and `status` for people to see, `cvp`
(JSON) for the way back. `verdict` is for the annotator: yes or no. A tag of the label `cvp_task` on every
image names what was sent with it, so that a box that was deleted is known to have been.
"""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import masks
from pipeline.errors import DataError
from pipeline.exchange.tasks import (
    Answer,
    Loss,
    Reading,
    Row,
    Seen,
    Task,
    carried,
    clean,
    mask_box,
    number,
    read_bytes,
    runs,
    speakable,
    write_lines,
)
from pipeline.formats.cvat import geometry
from pipeline.formats.voc import parse_xml

FILE = "annotations.xml"
_SENT = "cvp_task"
_IDS_PER_TAG = 150
_LONGEST = 4096  # characters of an attribute's value that CVAT stores
_MOST_UNPACKED = 2_000_000_000
_ATTRIBUTES = (
    ("annotation_id", "text", ""),
    ("score", "text", ""),
    ("status", "text", ""),
    ("verdict", "select", "\nyes\nno"),
    ("cvp", "text", ""),
)
_SHAPES = {"polyline", "points", "cuboid", "ellipse", "skeleton", "track"}


def write(tasks: Iterable[Task], classes: Sequence[str], folder: Path) -> list[Loss]:
    """Write annotations.xml, to be uploaded to a CVAT task of the pictures beside it."""
    losses: list[Loss] = []
    images = (ET.tostring(_image(i, t, losses), encoding="unicode") for i, t in enumerate(tasks))
    text = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "<version>1.1</version>", _meta(classes)]
    write_lines(folder / FILE, chain(text, images, ["</annotations>"]))
    for name in classes:
        if speakable(name) != name:
            losses.append(Loss(f"class {name!r}", "XML cannot hold some of its characters; CVAT shows it without"))
    return losses


def _meta(classes: Sequence[str]) -> str:
    meta = ET.Element("meta")
    labels = ET.SubElement(ET.SubElement(meta, "task"), "labels")
    for name in classes:
        _declare(labels, speakable(name), "any", _ATTRIBUTES)
    _declare(labels, _SENT, "tag", (("image_id", "text", ""), ("batch", "text", ""), ("shown", "text", "")))
    return ET.tostring(meta, encoding="unicode")


def _declare(labels: ET.Element, name: str, kind: str, attributes: Iterable[tuple[str, str, str]]) -> None:
    label = ET.SubElement(labels, "label")
    ET.SubElement(label, "name").text = name
    ET.SubElement(label, "type").text = kind
    held = ET.SubElement(label, "attributes")
    for key, how, values in attributes:
        attribute = ET.SubElement(held, "attribute")
        for tag, text in (("name", key), ("mutable", "False"), ("input_type", how), ("default_value", "")):
            ET.SubElement(attribute, tag).text = text
        ET.SubElement(attribute, "values").text = values


def _image(number_: int, task: Task, losses: list[Loss]) -> ET.Element:
    size = {"width": str(task.width), "height": str(task.height)}
    image = ET.Element("image", {"id": str(number_), "name": task.name, **size})
    ids = [row["annotation_id"] for row in task.labels]
    for first in range(0, max(len(ids), 1), _IDS_PER_TAG):
        some = " ".join(ids[first : first + _IDS_PER_TAG])
        _with(image, "tag", {"label": _SENT, "source": "auto"}, image_id=task.image_id, batch=task.batch, shown=some)
    for group, row in enumerate(task.labels, start=1):
        _label(image, row, group, task, losses)
    return image


def _label(image: ET.Element, row: Row, group: int, task: Task, losses: list[Loss]) -> None:
    sent = json.dumps(carried(row), separators=(",", ":"))
    if len(sent) > _LONGEST:
        what = f"CVAT cuts its data ({len(sent)} characters) at {_LONGEST}"
        losses.append(Loss(f"label {row['annotation_id']}", what))
    held = {"annotation_id": row["annotation_id"], "score": f"{row['score']:.4f}", "status": row["status"]}
    held |= {"verdict": "", "cvp": sent}
    base = {"label": speakable(row["class_name"]), "source": "auto"}
    shape = base | {"occluded": "0", "z_order": "0", "group_id": str(group)}
    if row["x1"] is not None:
        # The shortest text that stands for the same 32-bit number.
        keys = {"xtl": "x1", "ytl": "y1", "xbr": "x2", "ybr": "y2"}
        _with(image, "box", shape | {k: str(np.float32(row[key])) for k, key in keys.items()}, **held)
    if row["mask"] is not None:
        _with(image, "mask", shape | _mask_attributes(row["mask"], task), **held)
    if row["x1"] is None and row["mask"] is None:
        _with(image, "tag", base, **held)


def _with(image: ET.Element, tag: str, attributes: dict[str, str], **held: str) -> None:
    shape = ET.SubElement(image, tag, attributes)
    for key, value in held.items():
        ET.SubElement(shape, "attribute", {"name": key}).text = speakable(value)


def _mask_attributes(counts: str, task: Task) -> dict[str, str]:
    """The part of a mask inside its box, row by row, in runs of which the first is off."""
    x1, y1, x2, y2 = (int(v) for v in mask_box(counts, task.height, task.width))
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)  # an empty mask is one pixel that is off
    lengths, values = runs(masks.decode(counts, task.height, task.width)[y1:y2, x1:x2].ravel())
    first = [0] if values[0] else []
    place = {"left": x1, "top": y1, "width": x2 - x1, "height": y2 - y1}
    return {"rle": ", ".join(map(str, [*first, *lengths.tolist()]))} | {k: str(v) for k, v in place.items()}


# -- in --------------------------------------------------------------------------------------------


def read(path: Path) -> Reading:
    """The images of a CVAT export, an .xml or the .zip it comes in, as answers that are not complete.

    Raises:
        DataError: no CVAT file, or XML that is malformed or declares a document type.
    """
    root, lines = parse_xml(_content(path), path.name)
    if root.tag != "annotations":
        raise DataError(f"{path} is not a CVAT file", "export it in the format CVAT for images 1.1")
    reading = Reading()
    for track in root.findall("track"):
        reading.losses.append(Loss(f"line {lines[track]}", "a track of a video: only images are read"))
    for image in root.findall("image"):
        try:
            reading.answers.append(_answer(image, lines, reading.losses))
        except (KeyError, ValueError) as error:
            reading.losses.append(Loss(f"line {lines[image]}, image", f"not understood: {error}"))
    return reading


def _content(path: Path) -> bytes:
    data = read_bytes(path)
    if not data.startswith(b"PK"):
        return data
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inside = next(i for i in archive.infolist() if i.filename.rsplit("/", 1)[-1] == FILE)
            if inside.file_size > _MOST_UNPACKED:
                raise DataError(f"{path}: {FILE} is larger than 2 GB", "import it in parts")
            with archive.open(inside) as file:
                return file.read(_MOST_UNPACKED)
    except (StopIteration, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise DataError(f"{path} holds no readable {FILE}: {error}", "export it again") from error


def _answer(image: ET.Element, lines: dict[ET.Element, int], losses: list[Loss]) -> Answer:
    width, height = int(image.attrib["width"]), int(image.attrib["height"])
    if not (0 < width <= 1_000_000 and 0 < height <= 1_000_000):
        raise ValueError(f"its size is {width} x {height}")
    sent: list[dict[str, str]] = []
    found: dict[str, Seen] = {}
    drawn: list[Seen] = []
    for shape in image:
        where = f"line {lines[shape]}, {shape.tag}"
        held = {a.get("name", ""): a.text or "" for a in shape.findall("attribute")}
        if shape.get("label") == _SENT:
            sent.append(held)
            continue
        if shape.tag in _SHAPES:
            losses.append(Loss(where, "neither a box, nor a mask, polygon or tag"))
            continue
        try:
            seen = _seen(shape, held, width, height, where, losses)
        except (KeyError, ValueError) as error:
            losses.append(Loss(where, f"not understood: {error}"))
            continue
        except DataError as error:
            losses.append(Loss(where, f"not understood: {error.what}"))
            continue
        other = found.get(seen.annotation_id or "")
        if seen.annotation_id is None or (other is not None and (other.mask is None) == (seen.mask is None)):
            drawn.append(seen)  # also a copy that an annotator made of one of our shapes
        else:
            found[seen.annotation_id] = seen if other is None else _joined(other, seen)
    shown = frozenset(i for held in sent for i in held.get("shown", "").split()) if sent else None
    first = sent[0] if sent else {}
    return Answer(
        image_id=first.get("image_id", ""),
        name=image.attrib["name"],
        batch=first.get("batch"),
        seen=(*found.values(), *drawn),
        shown=shown,
    )


def _joined(one: Seen, other: Seen) -> Seen:
    """The box and the mask of one label."""
    box, mask = (one, other) if one.mask is None else (other, one)
    return Seen(box.annotation_id, box.class_name, box.box, mask.mask, box.carried, box.verdict or mask.verdict)


def _seen(shape: ET.Element, held: dict[str, str], width: int, height: int, where: str, losses: list[Loss]) -> Seen:
    if shape.tag == "box" and number(shape.get("rotation", "0")) % 360:
        losses.append(Loss(where, "turned: its box before turning is kept"))
    box, mask = geometry(shape, width, height, where)
    if shape.get("occluded") == "1":
        losses.append(Loss(where, "that it is occluded is not kept"))
    sent = clean(_json(held.get("cvp", "")))
    name = shape.attrib["label"]
    if sent and speakable(sent["class_name"]) == name:
        name = sent["class_name"]
    verdict = held.get("verdict", "").strip().lower()
    if verdict not in ("", "yes", "no"):
        raise ValueError(f"verdict {verdict!r:.20} is neither yes nor no")
    return Seen(held.get("annotation_id") or None, name, box, mask, sent, verdict)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
