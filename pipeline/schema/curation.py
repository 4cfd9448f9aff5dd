"""Curation: how good images are, what they are alike, and which to take."""

from __future__ import annotations

from pipeline.schema.columns import BATCH, IMAGE
from pipeline.schema.form import BOOL, DOUBLE, FLOAT, INT, LONG, STRING, STRINGS, Column, Table

TABLES = (
    Table(
        "quality",
        "measurements and flags of each image",
        (
            IMAGE,
            BATCH,
            Column("brightness", FLOAT, "mean luma, 0 to 1"),
            Column("contrast", FLOAT, "standard deviation of luma, 0 to 0.5"),
            Column("shadows", FLOAT, "5th percentile of luma, 0 to 1"),
            Column("highlights", FLOAT, "99th percentile of luma"),
            Column("sharpness", FLOAT, "variance of the Laplacian of luma in [0, 255]"),
            Column("thumbnail_sharpness", FLOAT, "cleanvision's blur score of a 64-pixel thumbnail, 0 to 1"),
            Column("entropy", FLOAT, "Shannon entropy of the luma histogram, bits"),
            Column("colourfulness", FLOAT, "Hasler & Suesstrunk 2003"),
            Column("dark_share", FLOAT, "share of pixels with luma below 0.05"),
            Column("bright_share", FLOAT, "share of pixels with luma above 0.95"),
            Column("aspect_ratio", FLOAT, "width / height"),
            Column("phash", LONG, "64-bit DCT perceptual hash, two's complement"),
            Column("issues", STRINGS, "flags by fixed limits, and of outliers within the batch: blurry, dark, …"),
        ),
        ("image_id", "batch"),
        True,
    ),
    Table(
        "quality_limits",
        "which values of each measure are flagged: fixed in project.yaml, or learned from all batches",
        (
            Column("issue", STRING, "the flag"),
            Column("measure", STRING, "column of quality, or shortest_edge or area of the image"),
            Column("source", STRING, "project.yaml or learned"),
            Column("low", DOUBLE, "flagged below; null: no such limit", True),
            Column("high", DOUBLE, "flagged above", True),
            Column("median", DOUBLE, "of the project's images; null: not learned", True),
            Column("images", LONG, "how many it was learned from"),
            Column("flagged", LONG, "images beyond it"),
        ),
        ("issue", "measure", "source"),
    ),
    Table(
        "quality_issues",
        "images out of the ordinary for the whole project, by quality_limits",
        (
            IMAGE,
            BATCH,
            Column("issue", STRING, "the flag"),
            Column("measure", STRING, "what was measured"),
            Column("value", DOUBLE, "of this image"),
            Column("limit", DOUBLE, "that it is beyond"),
            Column("source", STRING, "where the limit is from: project.yaml or learned"),
        ),
        ("image_id", "batch", "issue"),
    ),
    Table(
        "embeddings",
        "which vectors are in LanceDB; the vectors themselves are there",
        (
            IMAGE,
            BATCH,
            Column("encoder", STRING, "producer of the vector"),
            Column("patch", INT, "0 for the whole image, 1..g*g for its windows, row by row"),
            Column("dimensions", INT, "length of the vector"),
        ),
        ("image_id", "batch", "encoder", "patch"),
        True,
    ),
    Table(
        "duplicates",
        "pairs of images that are the same or nearly so",
        (
            IMAGE,
            Column("duplicate_of", STRING, "the kept image of the cluster"),
            Column("kind", STRING, "exact, perceptual or embedding"),
            Column("distance", FLOAT, "0; Hamming bits; or 1 - cosine"),
            Column("cluster", STRING, "id of the cluster"),
        ),
        ("image_id",),
    ),
    Table(
        "duplicate_clusters",
        "which images were compared for duplicates, and the cluster each is in",
        (
            IMAGE,
            Column("mark", LONG, "changes with whatever the image is compared by: hash, vector, limits"),
            Column("cluster", STRING, "id of the cluster; null for an image that is alone", True),
        ),
        ("image_id",),
    ),
    Table(
        "splits",
        "which images may be trained on, tuned on and tested on",
        (
            IMAGE,
            BATCH,
            Column("split", STRING, "train, val, test, or unlabelled"),
            Column("location", STRING, "the group that is kept together"),
            Column("gold", BOOL, "labelled by people, so usable for grading"),
            Column("moved_from", STRING, "the split that its own rule or location would give; null: it is there", True),
            Column("moved_by", STRING, "what it must not be parted from: duplicate or location", True),
        ),
        ("image_id",),
    ),
    Table(
        "selection",
        "which unlabelled images to annotate next, best first",
        (
            Column("rank", INT, "1 is the first to annotate"),
            IMAGE,
            BATCH,
            Column("method", STRING, "the criteria that counted, e.g. diversity + rarity"),
            Column("gain", FLOAT, "weighted mean of what follows; each is divided by its best at the start"),
            Column("diversity", FLOAT, "distance to the nearest image chosen before or labelled", True),
            Column("representativeness", FLOAT, "similarity that it adds to all images' nearest", True),
            Column("uncertainty", FLOAT, "how undecided labellers are", True),
            Column("rarity", FLOAT, "how rare the rarest class is that it shows", True),
            Column("slice_deficit", FLOAT, "share of labelled images that one of its slices lacks", True),
        ),
        ("image_id",),
    ),
)
