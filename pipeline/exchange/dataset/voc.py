"""Pascal VOC: JPEGImages, Annotations, ImageSets/Main. http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline import boxes
from pipeline.exchange.dataset.losing import Losses
from pipeline.exchange.tasks import Loss, Row, Task, corners, mask_box, speakable, write_lines

_HOLDS = frozenset({"ignore", "truncated"})
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def picture(split: str, task: Task) -> str:
    """`JPEGImages/BATCH/NAME.jpg`."""
    return f"JPEGImages/{task.name}"


def write(split: str, tasks: Iterable[Task], classes: Sequence[str], folder: Path) -> list[Loss]:
    """One XML file an image, and the split's list of images. What is to be ignored is `difficult`."""
    losses = Losses("Pascal VOC", _HOLDS)
    listed = []
    for task in tasks:
        place = PurePosixPath(task.name).with_suffix("")
        listed.append(str(place))
        text = ET.tostring(_document(task, losses), encoding="unicode")
        write_lines(folder / "Annotations" / f"{place}.xml", [text])
    write_lines(folder / "ImageSets" / "Main" / f"{split}.txt", listed)
    return losses.all()


def _document(task: Task, losses: Losses) -> ET.Element:
    root = ET.Element("annotation")
    place = PurePosixPath(task.name)
    _texts(root, folder=f"JPEGImages/{place.parent}", filename=place.name)
    _texts(ET.SubElement(root, "size"), width=str(task.width), height=str(task.height), depth="3")
    _texts(root, segmented="0")
    for row in task.labels:
        if row["x1"] is None and row["mask"] is None:
            losses.lose(row, f"VOC's XML has no labels of whole images: {row['class_name']!r} is left out")
            continue
        _object(ET.SubElement(root, "object"), row, task, losses)
    return root


def _object(item: ET.Element, row: Row, task: Task, losses: Losses) -> None:
    if row["mask"] is not None:
        losses.lose(row, "VOC's XML has no masks: its box is kept")
    losses.flags(row)
    name = row["class_name"]
    if speakable(name) != name or name.strip() != name:
        losses.lose(row, f"XML changes the class name {name!r}")
    flags = {"truncated": str(int(row["truncated"])), "difficult": str(int(row["ignore"]))}
    _texts(item, name=speakable(name), pose="Unspecified", **flags)
    box = corners(row) or mask_box(row["mask"], task.height, task.width)
    values = np.asarray(boxes.to_voc([box])[0], np.float32)
    shortest = (np.format_float_positional(v, trim="-") for v in values)
    _texts(ET.SubElement(item, "bndbox"), **dict(zip(_CORNERS, shortest, strict=True)))


def _texts(parent: ET.Element, **children: str) -> None:
    for tag, text in children.items():
        ET.SubElement(parent, tag).text = text


def finish(splits: Sequence[str], classes: Sequence[str], folder: Path) -> None:
    """There is nothing about all splits."""
