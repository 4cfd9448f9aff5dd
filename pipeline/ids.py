"""Identities: everything derived is named by the hash of what it was derived from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa


def image_id(data: bytes) -> str:
    """SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def tile_id(parent_id: str, window: tuple[int, int, int, int]) -> str:
    """Identity of a tile: its parent's id and its (x, y, width, height) window, in pixels."""
    return hashlib.sha256(f"{parent_id}:{window}".encode()).hexdigest()


def config_hash(*parts: Any) -> str:
    """Eight hex digits naming a configuration; equal for equal JSON, whatever the key order."""
    text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def producer(model: str, version: str, *config: Any) -> str:
    """`model@version#config-hash`: who made a row. Any change of configuration changes it."""
    return f"{model}@{version}#{config_hash(*config)}"


def producer_name(name: str) -> str:
    """The model's bare name: `crowns@1#ab12cd34` -> `crowns`."""
    return name.split("@", 1)[0]


def annotation_ids(
    image_ids: Sequence[str],
    producers: Sequence[str] | str,
    classes: Sequence[str],
    boxes: np.ndarray | None,
) -> list[str]:
    """Stable ids of annotations.

    Args:
        image_ids, classes: one per row; `producers` one per row or one for all.
        boxes: (n, 4) xyxy pixels, rounded here to a hundredth; None for image-level labels.

    Rows that agree in everything are told apart by their ordinal, so the ids are unique.
    """
    n = len(image_ids)
    owners = [producers] * n if isinstance(producers, str) else producers
    corners = [""] * n if boxes is None else [row.tobytes().hex() for row in _rounded(boxes)]
    seen: dict[str, int] = {}
    ids = []
    for image, owner, name, corner in zip(image_ids, owners, classes, corners, strict=True):
        key = f"{image}|{owner}|{name}|{corner}"
        ordinal = seen.get(key, 0)
        seen[key] = ordinal + 1
        ids.append(hashlib.sha256(f"{key}|{ordinal}".encode()).hexdigest()[:24])
    return ids


def _rounded(boxes: np.ndarray) -> np.ndarray:
    hundredths = np.nan_to_num(np.asarray(boxes, np.float64) * 100)
    return np.ascontiguousarray(np.round(hundredths).astype(np.int64))


def content_hash(table: pa.Table) -> str:
    """Hash of a table's schema and values, independent of its chunking and file layout."""
    digest = hashlib.sha256()
    for field, column in zip(table.schema, table.columns, strict=True):
        digest.update(f"{field.name}:{field.type};".encode())
        # What lies in memory under a null is anything at all, so presence and values are hashed apart.
        parts = [column.is_valid(), column.drop_null()] if column.null_count else [column]
        for part in parts:
            digest.update(_packed(part))
    return digest.hexdigest()[:16]


def _packed(column: pa.ChunkedArray) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    whole = pa.table({"": column}).combine_chunks()
    with pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole)
    return sink.getvalue()


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits over anything JSON can hold: the identity of a piece of work."""
    text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seed(*parts: Any) -> int:
    """A 32-bit random seed that depends only on `parts`, so that re-runs draw the same numbers."""
    return int(fingerprint(*parts)[:8], 16)


def joined(ids: Iterable[str]) -> str:
    """Hash of a set of ids, whatever their order."""
    return fingerprint(sorted(ids))
