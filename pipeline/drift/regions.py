"""What drives a difference: the witness function of MMD, image by image and region by region."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.drift.kernel import ImageKernel
from pipeline.drift.permutations import EachShare, each_p_value
from pipeline.drift.sides import Blocks, Flags, Floats, Ints
from pipeline.ids import seed
from pipeline.intervals import holm

_SHOWN = 8
_LEAST = 5  # images that a region has on average


def witness(kernel: Floats, in_batch: Flags) -> Floats:
    """(n,) mean kernel to the batch's images less that to the reference's (Gretton et al. 2012, section 2.3).

    Positive where the batch has more than the reference. Its mean over the batch less that over the reference
    is the squared MMD (V-statistic).

    Args:
        kernel: (n, n) mean kernel between images.
    """
    return np.asarray(kernel[:, in_batch].mean(axis=1) - kernel[:, ~in_batch].mean(axis=1), np.float64)


def regions_of(vectors: Floats, wanted: int) -> Ints:
    """(n,) region of each image: K-means, which does not know the sides."""
    from sklearn.cluster import KMeans

    distinct = len(np.unique(vectors.round(6), axis=0))
    count = min(wanted, len(vectors) // _LEAST, distinct)
    if count < 2:
        return np.zeros(len(vectors), np.int64)
    model = KMeans(count, n_init=2, random_state=seed("drift regions", wanted) % 2**31)
    return np.asarray(model.fit_predict(vectors), np.int64)


def drivers(
    batch: str,
    encoder: str,
    ids: list[str],
    vectors: Floats,
    kernel: ImageKernel,
    distance: Floats,
    blocks: Blocks,
    wanted: int,
    permutations: int,
    draw: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `drift_regions`, those that the batch has most in excess first, and of `drift_images`.

    Args:
        ids, vectors, kernel, distance, blocks: of n images: names; (n, d) means of vectors; the kernel between
            them; squared MMD to the nearest reference image; locations.
        wanted: most regions.
    """
    side = blocks.in_batch[blocks.number]
    value = witness(kernel.means(), side)
    region = regions_of(vectors, wanted)
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
