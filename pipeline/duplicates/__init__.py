"""Images that are the same, or nearly so, and the one of each cluster that is kept.

Three kinds of pairs are found. *exact*: one image_id in two batches, that is, the same bytes (and
window). *perceptual*: DCT hashes that differ in at most `hash_duplicate` bits. *embedding*: vectors
whose cosine distance is below `embedding_duplicate`. Pairs are joined into clusters (connected
components), and each cluster keeps its largest image, then its sharpest, then the one with the smallest
image_id. All other members have one row, which names the kept image.

Tiles of one photo that share pixels are no duplicates of each other: they are known to be alike, and
stay together because they share their location. Images flagged low_information are not compared by
hash: the hash of a flat image is the rounding of its noise.

All pairs are found, by far fewer comparisons than there are pairs (`hashes`, `vectors`), and in memory
that grows with n. What was compared before is not compared again (`clusters`). Where new images times
all images exceed the square of `exact_up_to`, vectors are compared within cells only (`cells`), at a
measured recall.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import CurationConfig
from pipeline.duplicates.cells import Recall, near_in_cells
from pipeline.duplicates.clusters import clustered, large, table
from pipeline.duplicates.hashes import near_hashes
from pipeline.duplicates.known import Known, cluster_name
from pipeline.duplicates.vectors import Vectors, near_vectors

__all__ = ["Found", "Recall", "find_duplicates", "near_hashes", "near_in_cells", "near_vectors"]


@dataclass(frozen=True)
class Found:
    """Duplicates, and how they were looked for.

    Attributes:
        duplicates: the table. One row for each image that is not the kept one of its cluster. An image that
            arrived in more than one batch and is kept has a row that names itself. `distance` is that to the
            kept image, 0 for `exact`, in bits for `perceptual`, 1 - cosine for `embedding`; it can exceed the
            configured limit where the two are linked through others.
        duplicate_clusters: the table; given back as `before`, it spares comparing anew.
        compared: images that were compared with all others; the rest was compared before.
        recall: of near pairs of vectors; None where all of them were found.
    """

    duplicates: pa.Table
    duplicate_clusters: pa.Table
    compared: int
    recall: Recall | None


def find_duplicates(
    images: pa.Table,
    quality: pa.Table,
    ids: list[str],
    vectors: Vectors,
    config: CurationConfig,
    before: pa.Table | None = None,
) -> Found:
    """Find and cluster duplicates.

    Args:
        images: rows of all batches. quality: rows of the same images, some may lack.
        ids, vectors: n image_ids and their (n, d) unit vectors; images without vectors are allowed.
        before: rows of `duplicate_clusters` of an earlier call; the outcome is the same without.
    """
    known = Known(images, quality, ids, vectors)
    earlier = schema.table("duplicate_clusters").empty() if before is None else before
    marks = known.marks(config)
    label, compared, recall = clustered(known, marks, config, earlier)
    rows: dict[str, dict[str, object]] = {}
    for members in large(label):
        kept, *others = members[np.argsort(known.rank[members])].tolist()
        name = cluster_name(known, members)
        apart = ~known.overlap(np.array([(kept, i) for i in others]))
        found = [known.row(i, kept, name, config) for i, keep in zip(others, apart, strict=True) if keep]
        found += [known.exact(kept, name)] if known.repeated[kept] else []
        rows |= {str(row["image_id"]): row for row in found}
    for image in np.flatnonzero(known.repeated).tolist():
        row = known.exact(image, cluster_name(known, np.array([image])))
        rows.setdefault(str(row["image_id"]), row)
    duplicates = schema.table("duplicates").from_rows([rows[image] for image in sorted(rows)])
    return Found(duplicates, table(known, label, marks), compared, recall)
