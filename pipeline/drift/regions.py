"""What drives a difference: the witness function of MMD, image by image and region by region."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.drift.permutations import EachShare, each_p_value
from pipeline.drift.sides import Blocks, Flags, Floats, Ints
from pipeline.ids import seed
from pipeline.intervals import holm

_SHOWN = 8
_LEAST = 5  # images that a region has on average


def regions_of(vectors: Floats, sample: Ints, wanted: int) -> Ints:
    """(n,) region of each image: K-means of the images `sample`, which does not know the sides."""
    from sklearn.cluster import KMeans

    learned = vectors[sample]
    count = min(wanted, len(learned) // _LEAST, len(np.unique(learned.round(6), axis=0)))
    if count < 2:
        return np.zeros(len(vectors), np.int64)
    model = KMeans(count, n_init=2, random_state=seed("drift regions", wanted) % 2**31).fit(learned)
    return np.asarray(model.predict(vectors), np.int64)


def drivers(
    batch: str,
    encoder: str,
    ids: list[str],
    vectors: Floats,
    sample: Ints,
    value: Floats,
    distance: Floats,
    blocks: Blocks,
    wanted: int,
    permutations: int,
    draw: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `drift_regions`, those that the batch has most in excess first, and of `drift_images`.

    Args:
        ids, vectors, value, distance, blocks: of n images: names; (n, d) means of vectors; the witness function;
            squared MMD to the nearest reference image, NaN where it was not looked for; locations.
        sample: those of them that regions are learned from.
        wanted: most regions.
    """
    side = blocks.in_batch[blocks.number]
    region = regions_of(vectors, sample, wanted)
    member = (region[:, None] == np.arange(region.max() + 1)[None]).astype(np.float64)
    m, n = int(side.sum()), int((~side).sum())
    part = value / np.where(side, m, -n)  # of the squared MMD
    share, reference = member[side].mean(axis=0), member[~side].mean(axis=0)
    each = EachShare(member, np.ones(len(member)))
    p_values = holm(each_p_value(each, blocks.number, blocks.in_batch, permutations, draw))
    total = float(part.sum())
    contribution = (part @ member) / total if total > 0 else np.zeros(member.shape[1])
    rows = []
    for number, k in enumerate(np.argsort(reference - share, kind="stable"), start=1):
        inside = region == k
        rows.append(
            {
                "batch": batch, "encoder": encoder, "region": number, "images": int((inside & side).sum()),
                "reference_images": int((inside & ~side).sum()), "share": float(share[k]),
                "reference_share": float(reference[k]), "contribution": float(contribution[k]),
                "p_value": float(p_values[k]),
                "examples": _first(ids, inside & side, -value),
                "reference_examples": _first(ids, inside & ~side, value),
            }
        )  # fmt: skip
    rank = np.empty(member.shape[1], np.int64)
    rank[np.argsort(reference - share, kind="stable")] = np.arange(1, member.shape[1] + 1)
    images = [
        {
            "batch": batch, "image_id": ids[i], "encoder": encoder, "witness": float(value[i]),
            "distance": float(distance[i]) if np.isfinite(distance[i]) else None, "region": int(rank[region[i]]),
        }
        for i in np.flatnonzero(side)[np.argsort(-value[side], kind="stable")]
    ]  # fmt: skip
    return rows, images


def _first(ids: list[str], chosen: Flags, value: Floats) -> list[str]:
    where = np.flatnonzero(chosen)
    return [ids[i] for i in where[np.argsort(value[where], kind="stable")][:_SHOWN]]
