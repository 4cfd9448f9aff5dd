"""The pictures of tasks, written beside the file that names them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from pipeline.errors import ComputeError, StoreError
from pipeline.exchange.tasks import Loss, Task
from pipeline.images import Pixels, Reader, UnusableImage

_QUALITY = 92


def jpeg(pixels: Pixels, quality: int = _QUALITY) -> bytes:
    """(height, width, 3) pixels as a JPEG without subsampled colour."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


class Pictures:
    """Reads the images of tasks, upright and cut to their tile."""

    def __init__(self, images: pa.Table, reader: Reader) -> None:
        self._rows: dict[tuple[str, str], Mapping[str, Any]] = {
            (row["image_id"], row["batch"]): row for row in images.to_pylist()
        }
        self._reader = reader

    def encoded(self, task: Task) -> bytes:
        """The task's image as a JPEG.

        Raises:
            UnusableImage: its file has gone, changed or is damaged, or its batch is not on this machine.
        """
        try:
            return jpeg(self._reader.read(dict(self._rows[task.image_id, task.batch])))
        except ComputeError as error:  # a removed batch has labels all the same
            raise UnusableImage("not_here", error.what, error.remedy) from error

    def write(self, task: Task, folder: Path) -> list[Loss]:
        """Write a task's picture if it is not there yet. One that cannot be read is a loss, not a failure.

        Raises:
            StoreError: the folder cannot be written.
        """
        path = folder / task.name
        if path.is_file():
            return []
        try:
            data = self.encoded(task)
        except UnusableImage as error:
            return [Loss(f"picture {task.name}", f"{error.reason}: {error.what}")]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            target = path.with_name(f".{path.name}.tmp")
            target.write_bytes(data)
            target.replace(path)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error}", "choose another place") from error
        return []
