"""The worker of the work that is disturbed. Its module imports little: two processes are started for every try."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image


class Measures:
    """Brightness and contrast of photos. It notes what it has measured, and dies natively of one photo."""

    def __init__(self, notes: str, poison: str = "") -> None:
        self.notes, self.poison = Path(notes), poison

    def __call__(self, rows: pa.Table) -> pa.Table:
        images = rows.column("image_id").to_pylist()
        (self.notes / f"{os.getpid()}.pid").touch()
        if self.poison in images:
            os.kill(os.getpid(), signal.SIGSEGV)
        grey = [np.asarray(Image.open(uri).convert("L"), np.float32) / 255 for uri in rows.column("uri").to_pylist()]
        columns = {"brightness": [g.mean() for g in grey], "contrast": [g.std() for g in grey]}
        (self.notes / f"{uuid.uuid4().hex}.done").write_text("\n".join(images))
        return pa.table({"image_id": images, "batch": rows.column("batch"), **columns})
