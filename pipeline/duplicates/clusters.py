"""Pairs into clusters: connected components, and what an earlier clustering spares.

Of an earlier clustering, an image is *unchanged* if all that it is compared by is as it was, and every image of
its cluster is still there and unchanged too. Two unchanged images were compared then: they are linked if they
were in one cluster. So only pairs with another image have to be looked at, and the outcome is that of looking at
all.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import CurationConfig
from pipeline.duplicates.cells import Recall, near_in_cells
from pipeline.duplicates.hashes import Pairs, near_hashes
from pipeline.duplicates.known import Known, cluster_name
from pipeline.duplicates.vectors import near_vectors

_FOLD = 2_000_000  # pairs that are kept before they are folded into clusters

Labels = NDArray[np.int64]  # (n,) the cluster of each image, as a number


def clustered(
    known: Known, marks: NDArray[np.int64], config: CurationConfig, before: pa.Table
) -> tuple[Labels, int, Recall | None]:
    """The cluster of each image, how many images were compared with all others, and at what recall.

    Args:
        marks: (n,) as of `Known.marks`.
        before: rows of `duplicate_clusters`, as an earlier call found them.
    """
    label, unchanged = _remembered(known, marks, before)
    fresh = np.flatnonzero(~unchanged)
    label = _fold(label, _hash_links(known, config.hash_duplicate))
    pairs, recall = _vector_pairs(known, fresh, config)
    waiting: list[Pairs] = []
    for some in pairs:
        waiting.append(some[~known.overlap(some)])
        if sum(map(len, waiting)) > _FOLD:
            label, waiting = _fold(label, waiting), []
    return _fold(label, waiting), len(fresh), recall


def table(known: Known, label: Labels, marks: NDArray[np.int64]) -> pa.Table:
    """The rows of `duplicate_clusters`."""
    names = np.full(len(known), None, object)
    for members in large(label):
        names[members] = cluster_name(known, members)
    columns = {"image_id": known.ids, "mark": pa.array(marks), "cluster": pa.array(names, pa.string())}
    return schema.table("duplicate_clusters").from_columns(columns)


def large(label: Labels) -> list[NDArray[np.int64]]:
    """The members of each cluster of more than one image."""
    order = np.argsort(label, kind="stable")
    edges = np.flatnonzero(np.diff(label[order], prepend=-1, append=-1))
    several = np.diff(edges) > 1
    return [order[a:b] for a, b in zip(edges[:-1][several], edges[1:][several], strict=True)]


def _remembered(known: Known, marks: NDArray[np.int64], before: pa.Table) -> tuple[Labels, NDArray[np.bool_]]:
    """Labels that unchanged images share if they shared a cluster, and (n,) which images are unchanged."""
    label = np.arange(len(known))
    place = pc.index_in(before.column("image_id"), known.ids).fill_null(-1).to_numpy()
    here = place >= 0
    same = np.zeros(before.num_rows, bool)
    same[here] = marks[place[here]] == before.column("mark").to_numpy()[here]
    names = before.column("cluster").combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
    torn = np.isin(names, names[~same & (names >= 0)])
    unchanged = np.zeros(len(known), bool)
    unchanged[place[same & ~torn]] = True
    kept = same & ~torn & (names >= 0)
    _, first, group = np.unique(names[kept], return_index=True, return_inverse=True)
    label[place[kept]] = place[kept][first][group]
    return label, unchanged


def _vector_pairs(
    known: Known, fresh: NDArray[np.int64], config: CurationConfig
) -> tuple[Iterable[Pairs], Recall | None]:
    """Near pairs by vector, as positions of images."""
    embedded = np.flatnonzero(known.vector_at >= 0)
    image = known.vector_at[embedded]
    new = np.flatnonzero(np.isin(image, fresh))
    vectors = known.vectors if len(embedded) == len(known.vectors) else known.vectors[embedded]
    if len(new) * len(image) <= config.exact_up_to**2:
        return (image[p] for p in near_vectors(vectors, config.embedding_duplicate, new)), None
    recall, pairs = near_in_cells(vectors, config.embedding_duplicate, config.recall, new)
    return (image[p] for p in pairs), recall


def _fold(label: Labels, pairs: list[Pairs]) -> Labels:
    """`label` with the clusters that `pairs` link merged."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not sum(map(len, pairs)):
        return label
    links = np.concatenate(pairs)
    ends = (label[links[:, 0]], label[links[:, 1]])
    graph = coo_array((np.ones(len(links), bool), ends), shape=(len(label), len(label)))
    return np.asarray(connected_components(graph, directed=False)[1][label], np.int64)


# -- hashes ----------------------------------------------------------------------------------------


def _hash_links(known: Known, limit: int) -> list[Pairs]:
    """Links that join the same images as all pairs of near hashes do, but for those of overlapping windows.

    Images of equal hash are one group. Windows of different photos never overlap, so a group with two photos in
    it is linked as a whole, as are two near groups that have two photos between them.
    """
    images = np.flatnonzero(known.hashed)
    values, group = np.unique(known.hash[images], return_inverse=True)
    order = np.lexsort((known.parent[images], group))
    images, group = images[order], group[order]
    parent = known.parent[images]
    bounds = np.searchsorted(group, np.arange(len(values) + 1))
    first, last = bounds[:-1], bounds[1:] - 1
    several = parent[first] != parent[last]  # photos
    single = first == last

    def of(g: int) -> NDArray[np.int64]:
        return images[bounds[g] : bounds[g + 1]]

    chained = np.flatnonzero((group[1:] == group[:-1]) & several[group[1:]])
    links = [np.stack([images[chained], images[chained + 1]], axis=1)]
    links += [_apart(known, of(g), of(g)) for g in np.flatnonzero(~several & ~single).tolist()]
    for pairs in near_hashes(values, limit):
        u, v = pairs.T
        simple = (several | single)[u] & (several | single)[v]
        some = np.stack([images[first[u]], images[first[v]]], axis=1)[simple]
        alone = (single[u] & single[v])[simple]
        links.append(some[~(alone & known.overlap(some))])
        links += [_joined(known, of(a), of(b)) for a, b in pairs[~simple].tolist()]
    return links


def _apart(known: Known, a: NDArray[np.int64], b: NDArray[np.int64]) -> Pairs:
    """All pairs of one of `a` and one of `b` that do not overlap."""
    pairs = np.stack(np.meshgrid(a, b), axis=-1).reshape(-1, 2)
    return pairs[~known.overlap(pairs)]


def _joined(known: Known, a: NDArray[np.int64], b: NDArray[np.int64]) -> Pairs:
    both = np.concatenate([a, b])
    if len(np.unique(known.parent[both])) > 1:
        return np.stack([both[:-1], both[1:]], axis=1)
    return _apart(known, a, b)
