"""Evidence about images: how they look, and the training images most like them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.failures.rows import Ints

UNLIKE = 0.95  # quantile of distances among training images beyond which an image is unlike them
NEAREST = 5  # training images that are named
_SAMPLE = 2000  # training images whose distances among each other are measured
_ROWS, _COLUMNS = 512, 32_768  # of a block of similarities


def facts_of(
    images: pa.Table,
    quality: pa.Table,
    splits: pa.Table,
    ids: Sequence[str],
    vectors: NDArray[np.floating],
    held: list[str],
) -> pa.Table:
    """A row for each held-out image: its size, brightness and sharpness, and the training images most like it."""
    place = {
        name: pc.index_in(pa.array(held, pa.string()), t["image_id"].combine_chunks())
        for name, t in (("images", images), ("quality", quality))
    }
    measured = quality.take(place["quality"])
    issues = [found or [] for found in measured.column("issues").to_pylist()]
    sizes = images.take(place["images"])
    return pa.table(
        {
            "image_id": pa.array(held, pa.string()),
            "width": sizes.column("width"),
            "height": sizes.column("height"),
            "brightness": measured.column("brightness"),
            "sharpness": measured.column("sharpness"),
            "dark": pa.array(["dark" in found for found in issues], pa.bool_()),
            "blurry": pa.array(["blurry" in found for found in issues], pa.bool_()),
            **_training_like(splits, ids, vectors, held),
        }
    )


def _training_like(
    splits: pa.Table, ids: Sequence[str], vectors: NDArray[np.floating], held: list[str]
) -> dict[str, pa.Array]:
    """The nearest training images of each held-out one, the cosine distance of the first, and whether that is unusual.

    Unusual: farther than 95 % of the training images (a sample of them) are from their own nearest.
    """
    train = set(splits.filter(pc.equal(splits.column("split"), "train")).column("image_id").to_pylist())
    known = [i for i, name in enumerate(ids) if name in train]
    place = {name: i for i, name in enumerate(ids)}
    asked = [k for k, name in enumerate(held) if name in place]
    nearest: list[list[str] | None] = [None] * len(held)
    distance, unlike = np.full(len(held), np.nan), np.zeros(len(held), bool)
    if len(known) >= 2 and asked:
        points = np.asarray(vectors, np.float32)
        reference = points[known]
        which, similarity = most_similar(points[[place[held[k]] for k in asked]], reference, NEAREST)
        sample = np.linspace(0, len(known) - 1, min(len(known), _SAMPLE)).astype(np.int64)
        _, among = most_similar(reference[sample], reference, 2)  # the first is itself
        distance[asked] = 1 - similarity[:, 0]
        unlike[asked] = distance[asked] > np.quantile(1 - among[:, 1], UNLIKE)
        for k, row in zip(asked, which, strict=True):
            nearest[k] = [ids[known[r]] for r in row]
    return {
        "distance": pa.array(distance, from_pandas=True),
        "unlike_training": pa.array(unlike),
        "nearest": pa.array(nearest, pa.list_(pa.string())),
    }


def most_similar(
    points: NDArray[np.float32], reference: NDArray[np.float32], count: int
) -> tuple[Ints, NDArray[np.float32]]:
    """(n, count) rows of `reference` most similar to each of (n, d) unit vectors, best first, and the cosines."""
    count = min(count, len(reference))
    rows, cosines = [], []
    for low in range(0, len(points), _ROWS):
        block = points[low : low + _ROWS]
        best, which = np.full((len(block), 0), 0, np.float32), np.zeros((len(block), 0), np.int64)
        for start in range(0, len(reference), _COLUMNS):
            found = block @ reference[start : start + _COLUMNS].T
            numbers = np.broadcast_to(np.arange(start, start + found.shape[1]), found.shape)
            found, numbers = np.concatenate([best, found], axis=1), np.concatenate([which, numbers], axis=1)
            if count < found.shape[1]:
                top = np.argpartition(-found, count - 1, axis=1)[:, :count]
                found, numbers = np.take_along_axis(found, top, 1), np.take_along_axis(numbers, top, 1)
            order = np.argsort(-found, axis=1, kind="stable")
            best, which = np.take_along_axis(found, order, 1), np.take_along_axis(numbers, order, 1)
        rows.append(which)
        cosines.append(best)
    return np.concatenate(rows), np.concatenate(cosines)
