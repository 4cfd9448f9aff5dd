"""Vectors of texts, kept on disk: prompts are few and come again, and a model is slow to load."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import home
from pipeline.ids import fingerprint

_TEMPERATURE = b"temperature"


class TextVectors:
    """What one encoder made of texts, in `CVP_HOME/cache/texts`.

    Args:
        producer: of the encoder: another model, checkpoint or setting has a file of its own.
        dimensions: of its vectors.
    """

    def __init__(self, producer: str, dimensions: int) -> None:
        self._path = home() / "cache" / "texts" / f"{fingerprint(producer, dimensions)}.arrow"
        self._dimensions = dimensions
        self._known: dict[str, NDArray[np.float32]] = {}
        self.temperature: float | None = None
        self._load()

    def of(self, texts: Sequence[str], encode: Callable[[list[str]], tuple[NDArray[np.float32], float]]) -> NDArray:
        """(n, d) float32 vectors of n texts; `encode` gives vectors and temperature of those not yet known."""
        missing = list(dict.fromkeys(text for text in texts if text not in self._known))
        if missing:
            vectors, self.temperature = encode(missing)
            self._load()  # another process may have added some meanwhile
            self._known |= dict(zip(missing, vectors, strict=True))
            self._save()
        if not texts:
            return np.zeros((0, self._dimensions), np.float32)
        return np.stack([self._known[text] for text in texts])

    def _load(self) -> None:
        with contextlib.suppress(OSError, pa.ArrowInvalid, KeyError, ValueError), pa.OSFile(str(self._path)) as file:
            table = pa.ipc.open_file(file).read_all()
            flat = table.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
            rows = flat.reshape(-1, self._dimensions).astype(np.float32)
            self.temperature = float(table.schema.metadata[_TEMPERATURE])
            self._known |= dict(zip(table.column("text").to_pylist(), rows, strict=True))

    def _save(self) -> None:
        flat = np.stack(list(self._known.values())).ravel()
        columns = {
            "text": pa.array(self._known, pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat), self._dimensions),
        }
        table = pa.table(columns).replace_schema_metadata({_TEMPERATURE: repr(self.temperature)})
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        with contextlib.suppress(OSError):  # a read-only home costs the next process the encoding again
            _write(table, temporary)
            temporary.replace(self._path)


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    except OSError:
        path.unlink(missing_ok=True)
        raise
