"""A FiftyOne dataset folder: metadata.json, samples.json and data/, as `fo.types.FiftyOneDataset` reads it.

https://docs.voxel51.com/user_guide/dataset_creation/datasets.html#fiftyonedataset
Detections hold relative boxes, masks inside these, and our own data as further attributes; tag a detection
`yes` or `no` to decide on it.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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
    corners,
    number,
    read_json,
    write_lines,
)
from pipeline.formats.coco import mask_of
from pipeline.journal import Corners

FILE = "samples.json"
PICTURES = "data"
_MOST_BYTES = 1_000_000_000


def write(tasks: Iterable[Task], classes: Sequence[str], folder: Path) -> list[Loss]:
    """Write metadata.json and samples.json. The pictures belong under data/."""
    losses: list[Loss] = []
    samples = (json.dumps(_sample(task, losses), ensure_ascii=False) for task in tasks)
    metadata = {"name": "cv-pipeline", "media_type": "image", "info": {"classes": {"labels": list(classes)}}}
    write_lines(folder / "metadata.json", [json.dumps(metadata, ensure_ascii=False, indent=1)])
    write_lines(folder / FILE, between('{"samples": [', samples, "]}"))
    return losses


def _sample(task: Task, losses: list[Loss]) -> dict[str, Any]:
    boxed = [_detection(row, task, losses) for row in task.labels if row["x1"] is not None or row["mask"] is not None]
    whole = [_classification(row) for row in task.labels if row["x1"] is None and row["mask"] is None]
    return {
        "filepath": f"{PICTURES}/{task.name}",
        "tags": [],
        "metadata": {"_cls": "ImageMetadata", "width": task.width, "height": task.height},
        "image_id": task.image_id,
        "batch": task.batch,
        "shown": [row["annotation_id"] for row in task.labels],
        "labels": {"_cls": "Detections", "detections": boxed},
        "classes": {"_cls": "Classifications", "classifications": whole},
    }


def _shared(row: Row) -> dict[str, Any]:
    held = {"annotation_id": row["annotation_id"], "status": row["status"], "cvp": json.dumps(carried(row))}
    return {"tags": [], "label": row["class_name"], "confidence": row["score"], **held}


def _detection(row: Row, task: Task, losses: list[Loss]) -> dict[str, Any]:
    made = {"_cls": "Detection", **_shared(row), "boxed": row["x1"] is not None, "rle": row["mask"]}
    box = corners(row) or masks.box(row["mask"], task.height, task.width).tolist()
    x1, y1, x2, y2 = box
    size = np.array([task.width, task.height, task.width, task.height], np.float64)
    made["bounding_box"] = (np.array([x1, y1, x2 - x1, y2 - y1]) / size).tolist()
    if row["mask"] is not None:
        pixels = masks.decode(row["mask"], task.height, task.width)
        part = _inside(pixels, box)
        if part.sum() < pixels.sum():
            what = "FiftyOne shows of its mask what lies in its box; the whole is kept beside"
            losses.append(Loss(f"label {row['annotation_id']}", what))
        made["mask"] = {"$binary": {"base64": _packed(part), "subType": "00"}}
    return made


def _classification(row: Row) -> dict[str, Any]:
    return {"_cls": "Classification", **_shared(row)}


def _inside(pixels: NDArray[np.bool_], box: Sequence[float]) -> NDArray[np.bool_]:
    """The pixels under a box; at least one."""
    height, width = pixels.shape
    x1, y1 = min(max(round(box[0]), 0), width - 1), min(max(round(box[1]), 0), height - 1)
    return pixels[y1 : max(round(box[3]), y1 + 1), x1 : max(round(box[2]), x1 + 1)]


def _packed(mask: NDArray[np.bool_]) -> str:
    stream = io.BytesIO()
    np.save(stream, mask, allow_pickle=False)
    # A level that is named gives the same bytes wherever it runs.
    return base64.b64encode(zlib.compress(stream.getvalue(), 6)).decode("ascii")


# -- in --------------------------------------------------------------------------------------------


def read(path: Path) -> Reading:
    """The samples of a FiftyOne dataset folder (or of its samples.json) as answers that are not complete.

    Detections and classifications are found in whatever field they are.

    Raises:
        DataError: it holds no samples.
    """
    file = path / FILE if path.is_dir() else path
    content = read_json(file)
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, list):
        raise DataError(f"{file} holds no samples", "export it as fo.types.FiftyOneDataset")
    reading = Reading()
    for i, sample in enumerate(samples):
        try:
            reading.answers.append(_answer(sample, f"samples[{i}]", reading.losses))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reading.losses.append(Loss(f"samples[{i}]", f"not understood: {type(error).__name__} {error}"))
    return reading


def _answer(sample: dict[str, Any], where: str, losses: list[Loss]) -> Answer:
    meta = sample["metadata"]
    width, height = int(meta["width"]), int(meta["height"])
    if not (0 < width <= 1_000_000 and 0 < height <= 1_000_000):
        raise ValueError(f"its size is {width} x {height}")
    seen = []
    for key, value in sorted(sample.items()):
        for i, label in enumerate(_labels(value)):
            place = f"{where}.{key}[{i}]"
            try:
                seen.append(_seen(label, width, height))
            except (KeyError, TypeError, ValueError, AttributeError, EOFError, zlib.error) as error:
                losses.append(Loss(place, f"not understood: {type(error).__name__} {error}"))
    shown = sample.get("shown")
    return Answer(
        image_id=str(sample.get("image_id", "")),
        name=str(sample["filepath"]).replace("\\", "/"),
        batch=sample.get("batch") if isinstance(sample.get("batch"), str) else None,
        seen=tuple(seen),
        shown=frozenset(map(str, shown)) if isinstance(shown, list) else None,
    )


def _labels(field: Any) -> list[dict[str, Any]]:
    """Labels in one field of a sample, which may hold one or a list."""
    if not isinstance(field, dict):
        return []
    kind = field.get("_cls")
    if kind in ("Detection", "Classification"):
        return [field]
    inside = {"Detections": "detections", "Classifications": "classifications"}.get(str(kind))
    return list(field.get(inside) or []) if inside else []


def _seen(label: dict[str, Any], width: int, height: int) -> Seen:
    sent = clean(json.loads(label["cvp"])) if isinstance(label.get("cvp"), str) else {}
    said = {str(tag).lower() for tag in label.get("tags") or []} & {"yes", "no"}
    if len(said) == 2:
        raise ValueError("tagged yes and no")
    name = label.get("annotation_id")
    box: Corners | None = None
    mask = None
    if label["_cls"] == "Detection":
        x, y, w, h = (number(v) for v in label["bounding_box"])
        placed = (x * width, y * height, (x + w) * width, (y + h) * height)
        box = placed if label.get("boxed", True) else None
        mask = _mask(label, placed, width, height)
    region = label.get("_id")
    region = region.get("$oid", "") if isinstance(region, dict) else ""
    return Seen(str(name) if name else None, str(label["label"]), box, mask, sent, "".join(said), str(region))


def _mask(label: dict[str, Any], box: Corners, width: int, height: int) -> str | None:
    """The mask that was sent, if it is still what the detection shows; else what it shows."""
    shown = _unpacked(label.get("mask"))
    rle = label.get("rle")
    if isinstance(rle, str):
        whole = _decoded(rle, width, height)
        part = _inside(whole, box)
        if shown is None or (part.shape == shown.shape and bool((part == shown).all())):
            return rle
    if shown is None:
        return None
    pixels = np.zeros((height, width), bool)
    target = _inside(pixels, box)
    rows, columns = (np.arange(n) * m // max(n, 1) for n, m in zip(target.shape, shown.shape, strict=True))
    target[:] = shown[np.ix_(rows, columns)]
    return masks.encode(pixels)


def _decoded(counts: str, width: int, height: int) -> NDArray[np.bool_]:
    try:
        checked = mask_of({"size": [height, width], "counts": counts}, (width, height), "rle")
    except DataError as error:
        raise ValueError(error.what) from error
    return masks.decode(checked or "", height, width)


def _unpacked(stored: Any) -> NDArray[np.bool_] | None:
    """A mask as FiftyOne stores it: base64 of zlib of NumPy's format."""
    if isinstance(stored, dict):
        stored = stored.get("$binary")
        stored = stored.get("base64") if isinstance(stored, dict) else stored
    if stored is None:
        return None
    try:
        engine = zlib.decompressobj()
        data = engine.decompress(base64.b64decode(stored, validate=True), _MOST_BYTES)
    except (binascii.Error, TypeError) as error:
        raise ValueError(f"the mask is not base64: {error}") from error
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.ndim != 2 or not array.size:
        raise ValueError("the mask is not a picture")
    return np.asarray(array, bool)
