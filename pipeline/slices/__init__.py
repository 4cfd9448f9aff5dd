"""Parts of the data on which models may do worse: declared by the user, searched among facts, or discovered.

Declared ones are SQL predicates over what is known of an image, texts that images are like, or polygons on the
map. Searched ones are the predicates that an exact search finds to hold most error (SliceLine, Sagadeeva & Boehm
2021). Discovered ones are regions of the space of embeddings (compare Domino, Eyuboglu et al. 2022). What was
found on half of the held-out images is asked of the other half, and only what survives there, after Holm's
correction, is called confirmed. Found slices keep their names from run to run, and are named in words.
"""

from pipeline.slices.declared import declared, image_counts, members, per_image, without_labels
from pipeline.slices.mapped import map_of
from pipeline.slices.prompted import declared_table, in_embeddings, text_tower
from pipeline.slices.stable import history
from pipeline.slices.table import slice_table
from pipeline.slices.words import vocabulary

__all__ = [
    "declared",
    "declared_table",
    "history",
    "image_counts",
    "in_embeddings",
    "map_of",
    "members",
    "per_image",
    "slice_table",
    "text_tower",
    "vocabulary",
    "without_labels",
]
