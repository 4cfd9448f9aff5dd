"""What duplicates are judged by: one position for each image_id, whatever batches it arrived in."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config import CurationConfig
from pipeline.duplicates.hashes import Pairs
from pipeline.duplicates.vectors import Vectors
from pipeline.ids import fingerprint, seed

_AT_ONCE = 4096
_CODE = 1  # raise when images have to be compared anew


class Known:
    """Images, sorted by id, with their windows, hashes and vectors.

    Attributes:
        ids: (n,) image_ids.
        vectors, vector_at: (m, d) unit vectors, and the position of each one's image (-1: none).
        hash, hashed: (n,) perceptual hashes, and whether they may be compared: not those of flat images, whose
            hash is the rounding of their noise.
        rank: (n,) the order in which images are kept: the largest, then the sharpest, then the smallest id.
        repeated: (n,) whether it arrived more than once.
    """

    def __init__(self, images: pa.Table, quality: pa.Table, ids: list[str], vectors: Vectors) -> None:
        names = images.column("image_id").combine_chunks()
        order = pc.sort_indices(names).to_numpy()
        ordered = names.take(order).to_numpy(zero_copy_only=False)
        first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(ordered) else np.zeros(0, np.int64)
        rows = images.take(pa.array(order[first]))
        self.ids: pa.Array = rows.column("image_id").combine_chunks()
        self.repeated = np.diff(np.append(first, len(ordered))) > 1
        columns = (rows.column(c).to_numpy().astype(np.int64) for c in ("tile_x", "tile_y", "width", "height"))
        self.window = np.stack(list(columns), axis=1)
        self.parent = rows.column("parent_id").combine_chunks().dictionary_encode().indices.to_numpy()
        self.vectors = vectors
        self.vector_at = self._positions(pa.array(ids, pa.string()))
        self.vector_of = np.full(len(self.ids), -1)
        self.vector_of[self.vector_at[self.vector_at >= 0]] = np.flatnonzero(self.vector_at >= 0)
        self._read_quality(quality)
        best = np.lexsort((np.arange(len(self.ids)), -self.sharpness, -(self.window[:, 2] * self.window[:, 3])))
        self.rank = np.empty(len(self.ids), np.int64)
        self.rank[best] = np.arange(len(self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    def _positions(self, names: pa.Array) -> NDArray[np.int64]:
        return np.asarray(pc.fill_null(pc.index_in(names, self.ids), -1).to_numpy(), np.int64)

    def _read_quality(self, quality: pa.Table) -> None:
        places = self._positions(quality.column("image_id").combine_chunks())
        there = places >= 0
        self.sharpness = np.zeros(len(self))
        self.sharpness[places[there]] = quality.column("sharpness").to_numpy()[there]
        self.hash = np.zeros(len(self), np.uint64)
        self.hash[places[there]] = quality.column("phash").to_numpy().astype(np.int64).view(np.uint64)[there]
        issues = quality.column("issues").combine_chunks()
        flat = np.zeros(quality.num_rows, bool)
        flat[pc.list_parent_indices(issues).to_numpy()[issues.flatten().to_numpy(False) == "low_information"]] = True
        self.hashed = np.zeros(len(self), bool)
        self.hashed[places[there]] = ~flat[there]

    def overlap(self, pairs: Pairs) -> NDArray[np.bool_]:
        """(m,) whether both are windows of one photo that share pixels."""
        same = self.parent[pairs[:, 0]] == self.parent[pairs[:, 1]]
        a, b = self.window[pairs[same, 0]], self.window[pairs[same, 1]]
        low = np.maximum(a[:, :2], b[:, :2])
        high = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
        same[same] = (high > low).all(axis=1)
        return np.asarray(same, bool)

    def marks(self, config: CurationConfig) -> NDArray[np.int64]:
        """(n,) a number for each image that changes with anything that it is compared by, limits included."""
        start = seed(_CODE, config.hash_duplicate, config.embedding_duplicate)
        generator = np.random.default_rng(start)
        mark = np.where(self.hashed, self.hash, np.uint64(0)) * np.uint64(generator.integers(1 << 62) * 2 + 1)
        mark += self.hashed.astype(np.uint64) + np.uint64(generator.integers(1 << 62))
        factors = generator.integers(1 << 62, size=self.vectors.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        for top in range(0, len(self.vectors), _AT_ONCE):
            at = self.vector_at[top : top + _AT_ONCE]
            bits = np.ascontiguousarray(self.vectors[top : top + _AT_ONCE][at >= 0], np.float32).view(np.uint32)
            mark[at[at >= 0]] += (bits * factors).sum(axis=1, dtype=np.uint64)
        return mark.view(np.int64)

    def row(self, image: int, kept: int, cluster: str, config: CurationConfig) -> dict[str, object]:
        """The row of `duplicates` for an image that is not the kept one of its cluster."""
        bits = int(np.bitwise_count(self.hash[image] ^ self.hash[kept]))
        hashed = bool(self.hashed[image] and self.hashed[kept])
        own, other = self.vector_of[image], self.vector_of[kept]
        near = hashed and bits <= config.hash_duplicate
        by_vector = own >= 0 and other >= 0 and not near
        distance = max(0.0, 1.0 - float(self.vectors[own] @ self.vectors[other])) if by_vector else float(bits)
        kind = "embedding" if by_vector else "perceptual"
        row = {"image_id": self.ids[image].as_py(), "duplicate_of": self.ids[kept].as_py()}
        return row | {"kind": kind, "distance": distance, "cluster": cluster}

    def exact(self, image: int, cluster: str) -> dict[str, object]:
        """The row of an image that arrived more than once and is kept."""
        name = self.ids[image].as_py()
        return {"image_id": name, "duplicate_of": name, "kind": "exact", "distance": 0.0, "cluster": cluster}


def cluster_name(known: Known, members: NDArray[np.int64]) -> str:
    """A cluster is named after the smallest id in it."""
    return fingerprint(known.ids[int(members.min())].as_py())
