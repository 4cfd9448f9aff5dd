"""CSV with one box a row: image, four corners in pixels, class. With a header (DeepForest, TensorFlow,
AutoML and others' spellings) or without (`path,x1,y1,x2,y2,class`). A row without corners says that
its image is labelled and empty."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping

from pipeline.errors import DataError
from pipeline.formats.records import Folder, Labels, Record, number
from pipeline.sources import SourceFile

_SPELLINGS = {
    "image": ("image_path", "filename", "file_name", "image", "image_name", "image_id", "path", "file"),
    "x1": ("xmin", "x1", "x_min", "left"),
    "y1": ("ymin", "y1", "y_min", "top"),
    "x2": ("xmax", "x2", "x_max", "right"),
    "y2": ("ymax", "y2", "y_max", "bottom"),
    "class": ("label", "class", "class_name", "category", "name"),
}
_BARE = {"image": 0, "x1": 1, "y1": 2, "x2": 3, "y2": 4, "class": 5}
_CORNERS = ("x1", "y1", "x2", "y2")


def find(folder: Folder) -> list[SourceFile]:
    """CSV files of the batch that have the columns of boxes."""
    return [f for f in folder.with_suffix(".csv") if _layout(folder.text(f))[0] is not None]


def read(folder: Folder, files: list[SourceFile], labels: Labels) -> None:
    """Add the boxes in `files` to `labels`. Corners are 0-based pixels, right and bottom exclusive.

    Raises:
        DataError: malformed; the message names file and line.
    """
    for file in files:
        text = folder.text(file)
        columns, header = _layout(text)
        if columns is None:
            raise DataError(f"{file.name} has no columns for image, corners and class", "name them in its first line")
        for line, row in _rows(text, file.name):
            if not (header and line == 1) and any(cell.strip() for cell in row):
                _read_row(folder, row, columns, labels, file.name, f"{file.name}, line {line}")


def _read_row(folder: Folder, row: list[str], columns: Mapping[str, int], labels: Labels, by: str, where: str) -> None:
    if len(row) <= max(columns.values()):
        raise DataError(f"{where}: {len(row)} columns, expected {max(columns.values()) + 1}", "correct that line")
    found = folder.image(row[columns["image"]], by)
    if found is None or found not in folder.sizes:
        labels.unmatched[by] += 1
        return
    labels.annotate(found, by)
    corners = [row[columns[key]].strip() for key in _CORNERS]
    if not any(corners):
        return
    name = folder.resolve(row[columns["class"]], labels, where)
    if name is not None:
        x1, y1, x2, y2 = (number(value, where) for value in corners)
        labels.records.append(Record(found, name, (x1, y1, x2, y2)))


def _rows(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise DataError(f"{name}, line {rows.line_num}: {error}", "save the table as CSV again") from error


def _delimiter(text: str) -> str:
    first = text.partition("\n")[0]
    return max(",;\t", key=first.count)


def _layout(text: str) -> tuple[dict[str, int] | None, bool]:
    """Where each column is, and whether the first line is a header; None when these are no boxes."""
    if not text.strip() or "\x00" in text:
        return None, False
    first = next(csv.reader(io.StringIO(text.partition("\n")[0]), delimiter=_delimiter(text)), [])
    words = [word.strip().lower() for word in first]
    found = {
        key: words.index(spelling)
        for key, spellings in _SPELLINGS.items()
        for spelling in reversed(spellings)
        if spelling in words
    }
    if len(found) == len(_SPELLINGS):
        return found, True
    bare = len(words) == len(_BARE) and all(_is_number(word) for word in words[1:5])
    return (_BARE, False) if bare else (None, False)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return not word
    return True
