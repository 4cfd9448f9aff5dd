"""Columns that several tables share."""

from __future__ import annotations

from pipeline.schema.form import BOOL, DOUBLE, FLOAT, INT, LONG, STRING, Column

BATCH = Column("batch", STRING, "the batch it arrived in")
IMAGE = Column("image_id", STRING, "SHA-256 of the file's bytes (of parent and window, for a tile)")

# Detections, labels, ground truth and predictions share these columns.
ANNOTATION = (
    Column("annotation_id", STRING, "hash of image, producer, class, rounded box and ordinal"),
    IMAGE,
    BATCH,
    Column("producer", STRING, "model@version#config-hash, or human"),
    Column("class_name", STRING, "class from the project's ontology"),
    Column("x1", FLOAT, "left edge, pixels of the upright image; null for an image-level label", True),
    Column("y1", FLOAT, "top edge", True),
    Column("x2", FLOAT, "right edge, exclusive", True),
    Column("y2", FLOAT, "bottom edge, exclusive", True),
    Column("score", FLOAT, "raw score in [0, 1]; 1 for people"),
    Column("mask", STRING, "COCO compressed RLE counts (column-major) at the image's size", True),
    Column("truncated", BOOL, "cut by the edge of its tile"),
    Column("ignore", BOOL, "too little visible to count: neither right nor wrong in evaluation"),
    Column("is_crowd", BOOL, "COCO iscrowd"),
)

# Told apart: who found nothing in an image, and who has not looked at it.
COUNTED = (
    IMAGE,
    BATCH,
    Column("producer", STRING, "who has looked at the image"),
    Column("found", INT, "how many rows it has there"),
)

TRUST = (
    Column("producer", STRING, "the labeller"),
    Column("class_name", STRING, "class"),
    Column("slice", STRING, "'all', or a slice of gold that has a threshold of its own"),
    Column("threshold", FLOAT, "lowest score accepted, certified; null when there is none", True),
    Column("certified", BOOL, "precision at the threshold is above target, with this confidence"),
    Column("target", FLOAT, "precision asked for"),
    Column("confidence", FLOAT, "1 - delta"),
    Column("precision", FLOAT, "on gold, at the threshold (or the best seen)", True),
    Column("precision_low", FLOAT, "lower confidence limit at that score alone", True),
    Column("precision_high", FLOAT, "upper confidence limit", True),
    Column("recall", FLOAT, "on gold, at the threshold", True),
    Column("recall_low", FLOAT, "lower confidence limit", True),
    Column("recall_high", FLOAT, "upper confidence limit", True),
    Column("coverage", FLOAT, "share of the labeller's answers on gold that are accepted", True),
    Column("coverage_low", FLOAT, "lower confidence limit", True),
    Column("coverage_high", FLOAT, "upper confidence limit", True),
    Column("gold", LONG, "gold annotations of the class"),
    Column("units", LONG, "gold images (or locations)"),
    Column("candidates", LONG, "the labeller's answers on gold images"),
    Column("accepted", LONG, "of those, at the threshold (or the best seen)"),
    Column("unit", STRING, "what is taken for independent: box, image or location"),
    Column("most", LONG, "only the best so many of one unit are covered; null: all", True),
    Column("more_gold", LONG, "further gold images (or locations) that would likely certify it", True),
    Column("certificate", STRING, "names what was promised, on which gold; null when nothing was", True),
    Column("method", STRING, "how the threshold was chosen"),
    Column("note", STRING, "in words"),
)

# What a verifier said of labels, on gold and of batches.
SAID = (
    Column("question_id", STRING, "hash of verifier, question, and label or image and class"),
    Column("annotation_id", STRING, "the label in question; null for counts", True),
    IMAGE,
    BATCH,
    Column("class_name", STRING, "class that was asked about"),
    Column("producer", STRING, "the labeller of the label; null for counts", True),
    Column("score", FLOAT, "the labeller's score; null for counts", True),
    Column("question", STRING, "label (is it right) or count (how many are there)"),
    Column("prompt", STRING, "name of the wording"),
    Column("verifier", STRING, "who was asked: model@version#config-hash"),
    Column("answer", STRING, "yes, no or unsure, or a number; null when its attempts came to nothing", True),
    Column("agreement", DOUBLE, "share of the attempts that gave this answer"),
    Column("attempts", LONG, "how often it was asked; 0 when people had decided before"),
    Column("answered", LONG, "of those, answers of the form that was asked for"),
    Column("words", STRING, "the verifier's own, or why there is no answer"),
    Column("boxes", LONG, "for counts: how many boxes the labels, or people on gold, have there", True),
    Column("detected", LONG, "for counts: how many the labellers found", True),
    Column("tokens_sent", LONG, "paid for, whenever that was"),
    Column("tokens_written", LONG, "likewise, written by the model"),
)

CURVE = (
    Column("model", STRING, "producer"),
    Column("split", STRING, "val, test or gold"),
    Column("class_name", STRING, "class"),
    Column("curve", STRING, "precision_recall, learning, reliability, calibrated, fine_tuning (x: steps)"),
    Column("x", DOUBLE, "recall, labels per class, …"),
    Column("y", DOUBLE, "precision, accuracy, …"),
    Column("low", DOUBLE, "lower end of the interval", True),
    Column("high", DOUBLE, "upper end of the interval", True),
)
