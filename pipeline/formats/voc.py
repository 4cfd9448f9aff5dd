"""Pascal VOC XML, one file an image. http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any
from xml.parsers import expat

from pipeline import boxes
from pipeline.errors import DataError
from pipeline.formats.coco import check_size
from pipeline.formats.records import Folder, Labels, Record, number
from pipeline.sources import SourceFile

_ROOT = re.compile(rb"<annotation[\s>]")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def find(folder: Folder) -> list[SourceFile]:
    """XML files of the batch that hold an <annotation>.

    Raises:
        DataError: a file is no XML at all; passing it over would make a labelled image look unlabelled.
    """
    found = []
    for file in folder.with_suffix(".xml"):
        if _ROOT.search(folder.data(file).replace(b"\x00", b"")):
            found.append(file)
        else:
            parse_xml(folder.data(file), file.name)
    return found


def read(folder: Folder, files: list[SourceFile], labels: Labels) -> None:
    """Add the annotations in `files` to `labels`. `difficult` objects become ignore regions.

    Raises:
        DataError: malformed; the message names file and line.
    """
    for file in files:
        root, lines = parse_xml(folder.data(file), file.name)
        reference = root.findtext("filename", "").strip()
        found = folder.image(reference, file.name) if reference else None
        found = found or folder.image(file.name, file.name)  # renamed photos keep their annotation's name
        if found is None or found not in folder.sizes:
            labels.unmatched[file.name] += 1
            continue
        stated = (root.findtext("size/width"), root.findtext("size/height"))
        check_size(stated, folder.sizes[found], f"{file.name}, size", found)
        labels.annotate(found, file.name)
        for item in root.findall("object"):
            record = _record(folder, item, found, labels, f"{file.name}, line {lines[item]}")
            if record is not None:
                labels.records.append(record)


def _record(folder: Folder, item: ET.Element, image: str, labels: Labels, where: str) -> Record | None:
    name = folder.resolve(item.findtext("name", ""), labels, where)
    box = item.find("bndbox")
    if box is None:
        raise DataError(f"{where}: an object without bndbox", "correct or remove that object")
    if name is None:
        return None
    corners = boxes.from_voc([number(box.findtext(key), f"{where}, {key}") for key in _CORNERS])[0]
    truncated, difficult = (
        item.findtext(key, "").strip().lower() in ("1", "true") for key in ("truncated", "difficult")
    )
    return Record(image, name, tuple(corners.tolist()), truncated=truncated, ignore=difficult)


def parse_xml(data: bytes, name: str) -> tuple[ET.Element, dict[ET.Element, int]]:
    """The root of an XML file, and the line of each element.

    A document type is refused before anything of it is read: entities can expand without bound.

    Raises:
        DataError: malformed, or it declares a document type.
    """
    builder, lines, parser = ET.TreeBuilder(), {}, expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

    def refuse(*_: Any) -> None:
        raise DataError(f"{name}, line {parser.CurrentLineNumber}: declares a document type", "remove its DOCTYPE")

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError) as error:
        line = getattr(error, "lineno", parser.CurrentLineNumber)
        raise DataError(f"{name}, line {line}: not well-formed XML: {error}", "export that file again") from error
    return builder.close(), lines
