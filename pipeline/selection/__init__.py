"""Which unlabelled images to annotate next, within a budget: a weighted mix of five criteria.

diversity            unlike all that is labelled or chosen: k-center greedy (Gonzalez 1985; as "core-set" active
                     learning, Sener & Savarese 2018), within twice the best possible covering radius
representativeness   like many images that nothing labelled or chosen is like: facility location (Krause & Golovin 2014)
uncertainty          labellers are undecided about it (Settles 2010)
rarity               it shows a class that few images show, as far as labellers can tell
slice_deficit        it belongs to a slice, declared or found and confirmed, of which few images are labelled

Each criterion is divided by its largest value at the start, weighted, and summed; the image with the largest
sum is taken, again and again. Weights and budget are in `curation.select`. All five only shrink while images are
chosen, so old values are upper bounds and few have to be looked at again (`greedy`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import SelectConfig
from pipeline.selection.criteria import Constant, Coverage, Criterion, Deficits, Distance, nearest_distance
from pipeline.selection.greedy import choose
from pipeline.selection.signals import rarity, uncertainty

__all__ = ["Coverage", "Distance", "choose", "facility_location", "k_center", "nearest_distance", "propose"]

_REPRESENTED = 5000  # images that must be represented; of more, the first by image_id, which are as good as drawn


def propose(
    images: pa.Table,
    splits: pa.Table,
    ids: list[str],
    vectors: NDArray[np.float32],
    config: SelectConfig,
    said: pa.Table | None = None,
    slices: pa.Table | None = None,
    left_out: Collection[str] = (),
) -> pa.Table:
    """The `selection` table: at most `config.budget` unlabelled images, best first; ties go to the smaller image_id.

    Args:
        images: rows of all batches. splits: says which images are gold; images it lacks are not.
        ids, vectors: image_ids and their (m, d) unit vectors; images without a vector are not proposed.
        said: detections or tags of all images, for uncertainty and rarity.
        slices: (slice, image_id) of slices, for slice_deficit.
        left_out: images that are not worth a look: diversity alone would take them first, as unlike all others.
    """
    known = images.column("image_id").unique()
    gold = splits.filter(splits.column("gold")).column("image_id").combine_chunks()
    names = pa.array(ids, pa.string())
    at = pc.sort_indices(names).to_numpy()
    at = at[_among(names, known)[at]]  # of images that have a vector, by their ids
    annotated, unwanted = _among(names, gold)[at], _among(names, pa.array(left_out, pa.string()))[at]
    labelled, chosen_from = at[annotated], at[~annotated & ~unwanted]
    if not len(chosen_from) or config.budget <= 0:
        return schema.table("selection").empty()
    pool = names.take(pa.array(chosen_from)).to_pylist()
    candidates, everything = vectors[chosen_from], vectors[at[:_REPRESENTED]]
    answers = schema.table("detections").empty() if said is None else said
    members = pa.table({"slice": pa.array([], pa.string()), "image_id": pa.array([], pa.string())})
    makers: dict[str, Callable[[], Criterion]] = {
        "diversity": lambda: Distance(candidates, vectors[labelled]),
        "representativeness": lambda: Coverage(candidates, everything, vectors[labelled]),
        "uncertainty": lambda: Constant(uncertainty(answers, pool)),
        "rarity": lambda: Constant(rarity(answers, pool, len(known))),
        "slice_deficit": lambda: Deficits(
            members if slices is None else slices, pool, set(gold.to_pylist()), config.slice_target
        ),
    }
    weights = {name: getattr(config, name) for name in makers if getattr(config, name) > 0}
    criteria: list[Criterion] = [makers[name]() for name in weights]
    order, parts = choose(criteria, list(weights.values()), config.budget)
    chosen = [pool[i] for i in order]
    return _table(chosen, images, dict(zip(weights, parts.T, strict=True)), config)


def _among(names: pa.Array, some: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(pc.is_in(names, some).to_numpy(zero_copy_only=False), bool)


def _table(
    chosen: list[str],
    images: pa.Table,
    parts: dict[str, NDArray[np.float64]],
    config: SelectConfig,
) -> pa.Table:
    """Rows of `selection`; `parts` are the scaled values of each criterion at the time of choice."""
    rows = schema.where_in(images, "image_id", chosen)
    batch_of = dict(zip(rows.column("image_id").to_pylist(), rows.column("batch").to_pylist(), strict=True))
    total = sum(getattr(config, name) for name in parts)
    gain = sum(getattr(config, name) * values for name, values in parts.items()) / total
    method = " + ".join(parts) if len(parts) > 1 else next(iter(parts))
    return schema.table("selection").from_columns(
        {
            "rank": pa.array(range(1, len(chosen) + 1), pa.int32()),
            "image_id": pa.array(chosen, pa.string()),
            "batch": pa.array([batch_of[i] for i in chosen], pa.string()),
            "method": pa.array([method] * len(chosen), pa.string()),
            "gain": pa.array(gain, pa.float32()),
            **{name: pa.array(values, pa.float32()) for name, values in parts.items()},
        }
    )


def k_center(
    candidates: NDArray[np.floating], labelled: NDArray[np.floating], n: int
) -> tuple[list[int], NDArray[np.float64]]:
    """At most `n` of (m, d) `candidates`, each the farthest from all labelled and chosen before it.

    Returns:
        Positions in order of choice, and the distance of each when it was chosen.
    """
    distance = Distance(candidates, labelled)
    order, parts = choose([distance], [1.0], n)
    return order, parts[:, 0] * distance.scale


def facility_location(
    candidates: NDArray[np.floating], represented: NDArray[np.floating], labelled: NDArray[np.floating], n: int
) -> tuple[list[int], NDArray[np.float64]]:
    """At most `n` of (m, d) unit `candidates` that greedily maximise the similarity, (1 + cosine) / 2, of each of
    (r, d) `represented` to the nearest labelled or chosen image.

    Returns:
        Positions in order of choice, and the sum by which each raised the similarity.
    """
    coverage = Coverage(candidates, represented, labelled)
    order, parts = choose([coverage], [1.0], n)
    return order, parts[:, 0] * coverage.scale
