"""What all formats share: tasks that go out, and answers that come in.

A task is one image with the labels that people are shown. A label travels with everything that its row in
`labels` holds, under its own id, so that it can be told apart from what people draw.
"""

from __future__ import annotations

import filecmp
import json
import math
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import masks, schema
from pipeline.errors import DataError, StoreError
from pipeline.ids import fingerprint
from pipeline.journal import Corners

_PLACED = ("annotation_id", "image_id", "batch", "class_name", "mask", *schema.CORNERS)
# Of a label's row, what is neither its identity, nor its class, nor its place.
CARRIED = tuple(c.name for c in schema.table("labels").columns if c.name not in _PLACED)
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_UNSPEAKABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MOST_BYTES = 2_000_000_000
_IMAGES_AT_ONCE = 5_000

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One image and its labels.

    Attributes:
        name: where its picture lies under the export's folder of pictures, '/' separated.
        labels: rows of `labels`, as dictionaries.
    """

    image_id: str
    batch: str
    name: str
    width: int
    height: int
    labels: tuple[Row, ...]


@dataclass(frozen=True)
class Loss:
    """One thing that could not be taken along, and why."""

    item: str
    what: str


@dataclass(frozen=True)
class Seen:
    """One label as a file has it.

    Attributes:
        annotation_id: of the label that was sent; None for what a person drew.
        box: xyxy pixels; None for a label of the whole image.
        carried: `carried` of the label as it was sent, or {} where the tool lost it.
        verdict: what a person said in so many words: yes, no, or nothing.
        region: the tool's own id of it, if it has one.
    """

    annotation_id: str | None
    class_name: str
    box: Corners | None
    mask: str | None = None
    carried: Mapping[str, Any] = field(default_factory=dict)
    verdict: str = ""
    region: str = ""


@dataclass(frozen=True)
class Answer:
    """One image as one person left it.

    Attributes:
        image_id: the whole id or its first 16 digits; or '' where only `name` is known.
        shown: ids of the labels that were sent with it; None where the file does not say.
        reviewer: who; '' where the file does not say.
        complete: the person handed it in, so a label that was left alone was confirmed.
    """

    image_id: str
    name: str
    batch: str | None
    seen: tuple[Seen, ...]
    shown: frozenset[str] | None = None
    reviewer: str = ""
    at: datetime | None = None
    complete: bool = False


@dataclass
class Reading:
    """What a file holds, and what in it could not be used."""

    answers: list[Answer] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)


# -- out -------------------------------------------------------------------------------------------


def tasks(images: pa.Table, labels: pa.Table) -> Iterator[Task]:
    """Tasks of all rows of `images`, each with its labels, in order of batch and file.

    Args:
        labels: rows of `labels`; those of other images are passed over.
    """
    keys = ["image_id", "batch", "file_name", "width", "height", "tile_x", "tile_y", "orientation"]
    order = [(key, "ascending") for key in ("batch", "file_name", "tile_y", "tile_x", "image_id")]
    frames = images.select(keys).sort_by(order)
    owners = pairs(labels)
    for start in range(0, frames.num_rows, _IMAGES_AT_ONCE):
        some = frames.slice(start, _IMAGES_AT_ONCE)
        mine: dict[tuple[str, str], list[Row]] = {}
        for row in labels.filter(pc.is_in(owners, pairs(some))).sort_by("annotation_id").to_pylist():
            mine.setdefault((row["image_id"], row["batch"]), []).append(row)
        for row in some.to_pylist():
            found = mine.get((row["image_id"], row["batch"]), [])
            yield Task(row["image_id"], row["batch"], picture_name(row), row["width"], row["height"], tuple(found))


def pairs(rows: pa.Table) -> pa.Array:
    """(n,) texts that name each row's image and batch: an image may be in two batches."""
    if not rows.num_rows:
        return pa.array([], pa.string())
    joined = pc.binary_join_element_wise(rows.column("image_id"), rows.column("batch"), "/")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def picture_name(row: Mapping[str, Any]) -> str:
    """`batch/stem-0123456789abcdef.jpg`: safe on every file system and in every URL, and it names the image."""
    stem = _safe(PurePosixPath(row["file_name"]).stem)[:60]
    batch = _safe(row["batch"])
    if batch != row["batch"]:
        batch = f"{batch}-{fingerprint(row['batch'])[:6]}"
    return f"{batch}/{stem}-{row['image_id'][:16]}.jpg"


def _safe(text: str) -> str:
    return _UNSAFE.sub("_", text).strip(".") or "_"


def carried(row: Row) -> dict[str, Any]:
    """What travels with a label besides class, box and mask; and these as they were sent."""
    return {key: row[key] for key in CARRIED} | {"class_name": row["class_name"], "box": corners(row)}


def corners(row: Mapping[str, Any]) -> list[float] | None:
    """The box of a label's row."""
    return None if row["x1"] is None else [float(row[key]) for key in schema.CORNERS]


def speakable(text: str) -> str:
    """`text` with what XML 1.0 cannot hold replaced."""
    return _UNSPEAKABLE.sub("\ufffd", text)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a file whole, line by line as they come, unless it says so already.

    Raises:
        StoreError: it cannot be written.
    """
    target = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("w", encoding="utf-8", newline="\n") as file:
                for line in lines:
                    file.write(line + "\n")
            if not path.is_file() or not filecmp.cmp(target, path, shallow=False):
                target.replace(path)
        finally:
            target.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}", "choose another place") from error


def between(first: str, entries: Iterable[str], last: str) -> Iterator[str]:
    """Lines of a JSON list: `first`, the entries with commas between, `last`."""
    yield first
    before = None
    for entry in entries:
        if before is not None:
            yield before + ","
        before = entry
    if before is not None:
        yield before
    yield last


# -- in --------------------------------------------------------------------------------------------


def rows(reading: Reading) -> pa.Table:
    """Rows of `labels` out of a file that we wrote; what people drew is left out."""
    found = [label_row(answer, seen) for answer in reading.answers for seen in answer.seen if seen.annotation_id]
    return schema.table("labels").from_rows(found)


def label_row(answer: Answer, seen: Seen) -> Row:
    """One label as a row of `labels`."""
    row = {key: seen.carried.get(key) for key in CARRIED}
    row |= {"annotation_id": seen.annotation_id, "image_id": answer.image_id, "batch": answer.batch}
    row |= {"class_name": seen.class_name, "mask": seen.mask}
    return row | dict(zip(schema.CORNERS, seen.box or (None,) * 4, strict=True))


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it is not there, or no JSON.
    """
    try:
        return json.loads(read_bytes(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text", "export it again") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: {error.msg}", "export it again") from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply", "export it again") from error


def read_bytes(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        DataError: it is not there, not a file, or larger than 2 GB.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} is larger than 2 GB", "import it in parts")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}", "check the path") from error


def number(value: Any) -> float:
    """A finite number. ValueError: it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r:.60} is not a number")
    found = float(value)
    if not math.isfinite(found):
        raise ValueError(f"{value!r:.60} is not a finite number")
    return found


def clean(meta: Any) -> dict[str, Any]:
    """`carried` as a file has it, made sure of: a tool or a person may have changed it. {} if it is not whole.

    Types are those of the columns of `labels`; what does not fit is not believed.
    """
    if not isinstance(meta, dict):
        return {}
    kinds = {column.name: column for column in schema.table("labels").columns}
    kept: dict[str, Any] = {}
    for key in (*CARRIED, "class_name"):
        value, column = meta.get(key), kinds[key]
        try:
            if value is None and not column.optional and key != "parts":
                return {}
            kept[key] = pa.scalar(value, column.type).as_py()
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            return {}
    try:
        box = meta.get("box")
        x1, y1, x2, y2 = (number(v) for v in box) if box is not None else (0.0,) * 4
        kept["box"] = (x1, y1, x2, y2) if box is not None else None
    except (TypeError, ValueError):
        return {}
    return kept


def mask_box(counts: str, height: int, width: int) -> Corners:
    """The tight box of a mask."""
    x1, y1, x2, y2 = masks.box(counts, height, width).tolist()
    return x1, y1, x2, y2


def runs(values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Lengths and values of the runs of equal entries of a one-dimensional array."""
    if not len(values):
        return np.zeros(0, np.int64), values
    starts = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])
    return np.diff(np.concatenate([starts, [len(values)]])), values[starts]
