"""What labellers' answers say about images that nobody has labelled."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def uncertainty(said: pa.Table, pool: list[str]) -> NDArray[np.float64]:
    """(n,) 0 to 1 for each image of `pool`, averaged over labellers.

    Args:
        said: `tags`: one minus the margin between the two most probable classes (Scheffer et al. 2001); or
            `detections`: the mean over boxes of their score's binary entropy, in bits (Brust et al. 2019).
            Boxes without a score, and images without an answer, count 0.
    """
    if "probability" in said.column_names:
        first, second = (_of_rank(said, rank) for rank in (1, 2))
        both = first.join(second, ["image_id", "producer"], right_suffix="_second")
        margin = pc.subtract(both.column("probability"), pc.fill_null(both.column("probability_second"), 0.0))
        rows = pa.table({"image_id": both.column("image_id"), "value": pc.subtract(1.0, margin)})
    else:
        boxes = said.filter(pc.is_valid(said.column("score")))
        p = np.clip(boxes.column("score").to_numpy().astype(np.float64), 1e-9, 1 - 1e-9)
        bits = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
        rows = pa.table({"image_id": boxes.column("image_id"), "value": bits})
    means = rows.group_by("image_id").aggregate([("value", "mean")])
    return _aligned(means.column("image_id"), means.column("value_mean").to_numpy(), pool)


def _of_rank(tags: pa.Table, rank: int) -> pa.Table:
    chosen = tags.filter(pc.equal(tags.column("rank"), rank))
    return chosen.select(["image_id", "producer", "probability"])


def rarity(said: pa.Table, pool: list[str], images: int) -> NDArray[np.float64]:
    """(n,) 0 to 1 for each image of `pool`: how rare the rarest class is that it surely shows.

    A class that is expected in m of N images has the rarity 1 - log(1 + m) / log(1 + N). An image has the largest
    product of a class's rarity and its highest score there.

    Args:
        said: `tags` or `detections` of all `images`. Boxes without a score count as sure.
    """
    score = said.column("probability" if "probability" in said.column_names else "score")
    rows = pa.table(
        {
            "image_id": said.column("image_id"),
            "class_name": said.column("class_name"),
            "score": pc.fill_null(score.cast(pa.float64()), 1.0),
        }
    )
    shown = rows.group_by(["image_id", "class_name"]).aggregate([("score", "max")])
    expected = shown.group_by("class_name").aggregate([("score_max", "sum")])
    names, counts = expected.column("class_name").to_pylist(), expected.column("score_max_sum").to_numpy()
    rare = dict(zip(names, np.clip(1 - np.log1p(counts) / np.log1p(max(images, 1)), 0, 1).tolist(), strict=True))
    values = shown.column("score_max").to_numpy() * np.array([rare[c] for c in shown.column("class_name").to_pylist()])
    best = pa.table({"image_id": shown.column("image_id"), "value": values})
    best = best.group_by("image_id").aggregate([("value", "max")])
    return _aligned(best.column("image_id"), best.column("value_max").to_numpy(), pool)


def _aligned(ids: pa.ChunkedArray, values: NDArray[np.float64], pool: list[str]) -> NDArray[np.float64]:
    """The value of each image of `pool`; 0 where it has none."""
    place = pc.index_in(pa.array(pool, pa.string()), value_set=ids.combine_chunks()).to_numpy(zero_copy_only=False)
    known = ~np.isnan(place.astype(np.float64))
    found = np.zeros(len(pool))
    found[known] = values[place[known].astype(np.int64)]
    return found
