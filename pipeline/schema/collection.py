"""Collection: what came in."""

from __future__ import annotations

from pipeline.schema.columns import ANNOTATION, BATCH, IMAGE
from pipeline.schema.form import ATTRIBUTES, CLOCK, INT, LONG, STRING, Column, Table

TABLES = (
    Table(
        "images",
        "every image or tile of every batch",
        (
            IMAGE,
            BATCH,
            Column("uri", STRING, "where the file is"),
            Column("file_name", STRING, "path inside the batch, '/' separated"),
            Column("parent_id", STRING, "SHA-256 of the file; equals image_id unless tiled"),
            Column("tile_x", INT, "window's left edge in the upright photo; 0 unless tiled"),
            Column("tile_y", INT, "window's top edge"),
            Column("width", INT, "pixels, upright"),
            Column("height", INT, "pixels, upright"),
            Column("photo_width", INT, "the whole photo's width"),
            Column("photo_height", INT, "the whole photo's height"),
            Column("format", STRING, "file format as decoded, e.g. JPEG"),
            Column("mode", STRING, "colour mode in the file, e.g. RGB, CMYK, I;16"),
            Column("orientation", INT, "EXIF orientation that was applied, 1 to 8"),
            Column("captured_at", CLOCK, "when it was taken, by EXIF: the camera's clock, without a zone", True),
            Column("bytes", LONG, "file size"),
            Column("location", STRING, "images of one location never straddle splits"),
            Column("attributes", ATTRIBUTES, "named groups of the project's attribute pattern"),
        ),
        ("image_id", "batch"),
        batched=True,
    ),
    Table(
        "rejected_files",
        "files that could not be used, and why",
        (
            BATCH,
            Column("uri", STRING, "where the file is"),
            Column("file_name", STRING, "path inside the batch"),
            Column("bytes", LONG, "file size"),
            Column("reason", STRING, "kind of damage, one word"),
            Column("detail", STRING, "what was found, and what to do"),
        ),
        ("batch", "file_name"),
        batched=True,
    ),
    Table("ground_truth", "what people labelled", ANNOTATION, ("annotation_id",), True),
    Table(
        "annotated_images",
        "images that people have labelled completely, the empty ones included",
        (IMAGE, BATCH, Column("source", STRING, "the annotation file or folder")),
        ("image_id", "batch"),
        True,
    ),
)
