"""The tables: their columns, keys and meaning. One name for asset = table = DuckDB view."""

# No `from __future__ import annotations` here: the function of that name would redefine it.
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import DataError, StoreError

STRING, FLOAT, DOUBLE = pa.string(), pa.float32(), pa.float64()
INT, LONG, BOOL = pa.int32(), pa.int64(), pa.bool_()
TIME = pa.timestamp("us", tz="UTC")
CLOCK = pa.timestamp("us")
CORNERS = ("x1", "y1", "x2", "y2")  # columns of a box
STRINGS = pa.list_(pa.string())
DOUBLES = pa.list_(pa.float64())
ATTRIBUTES = pa.map_(pa.string(), pa.string())


@dataclass(frozen=True)
class Column:
    """One column. A column that is not `optional` may hold no nulls."""

    name: str
    type: pa.DataType
    doc: str
    optional: bool = False


@dataclass(frozen=True)
class Table:
    """One table. `batched` tables hold one Parquet file per batch, the others one in all."""

    name: str
    doc: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    batched: bool = False

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(c.name, c.type, nullable=c.optional) for c in self.columns])

    def empty(self) -> pa.Table:
        return self.schema.empty_table()

    def from_rows(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """A valid table from dictionaries; keys that are missing become null."""
        return self.conform(pa.Table.from_pylist(list(rows), schema=_nullable(self.schema)))

    def from_columns(self, columns: Mapping[str, Any]) -> pa.Table:
        """A valid table from equally long columns; columns that are missing become null."""
        length = len(next(iter(columns.values()))) if columns else 0
        arrays = {c.name: columns.get(c.name, pa.nulls(length, c.type)) for c in self.columns}
        unknown = sorted(set(columns) - set(arrays))
        if unknown:
            raise DataError(f"table {self.name!r} has no column {unknown[0]!r}", "see pipeline/schema.py")
        return self.conform(pa.table(arrays))

    def conform(self, table: pa.Table) -> pa.Table:
        """`table` with exactly this schema: columns ordered, cast, and checked for nulls.

        Raises:
            DataError: a column is missing, of an uncastable type, or null where it may not be.
        """
        arrays = []
        for column in self.columns:
            if column.name not in table.column_names:
                raise DataError(
                    f"table {self.name!r} lacks the column {column.name!r}",
                    f"it needs: {', '.join(c.name for c in self.columns)}",
                )
            values = table.column(column.name)
            if values.null_count and not column.optional:
                raise DataError(
                    f"{values.null_count} nulls in {self.name}.{column.name}",
                    "this column must have a value in every row",
                )
            try:
                arrays.append(values.cast(column.type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise DataError(
                    f"{self.name}.{column.name} must be {column.type}: {error}",
                    "fix the function that makes this table",
                ) from error
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def upgraded(self, table: pa.Table, columns: Sequence[str] | None = None, path: str = "") -> pa.Table:
        """A stored table of an earlier version with the optional columns that it lacks, all null.

        Args:
            columns: those that were asked for; None for all.
            path: where it lies, for errors.

        Raises:
            StoreError: it lacks one that is not optional.
        """
        wanted = [c for c in self.columns if columns is None or c.name in columns]
        lacking = [c for c in wanted if c.name not in table.column_names]
        if not lacking:
            return table
        if needed := [c.name for c in lacking if not c.optional]:
            raise StoreError(
                f"{path or self.name} is damaged, or was made by an older version: it lacks {', '.join(needed)}",
                f"make it again: cvp run PROJECT --select {self.name}",
            )
        for column in lacking:
            table = table.append_column(pa.field(column.name, column.type), pa.nulls(table.num_rows, column.type))
        return table.select([c.name for c in wanted if c.name in table.column_names])

    def duplicate_keys(self, table: pa.Table) -> int:
        """How many rows repeat another row's key."""
        if not table.num_rows:
            return 0
        # Columns that say the same everywhere, as batch and producer do, would only cost memory.
        telling = [name for name in self.key if _varies(table.column(name))]
        different = table.group_by(telling, use_threads=False).aggregate([]).num_rows if telling else 1
        return table.num_rows - different


def _varies(column: pa.ChunkedArray) -> bool:
    extremes = pc.min_max(column).as_py()
    return column.null_count > 0 or extremes["min"] != extremes["max"]


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])


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

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
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
                Column(
                    "moved_from", STRING, "the split that its own rule or location would give; null: it is there", True
                ),
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
        Table("detections", "boxes from every labeller, raw scores", ANNOTATION, ("annotation_id",), True),
        Table(
            "proposals",
            "what prompted detectors gave for each prompt, before thresholds, negative prompts and suppression",
            (
                IMAGE,
                BATCH,
                Column("producer", STRING, "the network and how images are shown to it; no prompt, no threshold"),
                Column("caption", STRING, "names the caption that the prompt was asked in"),
                Column("prompt", STRING, "as the network read it"),
                Column("rank", INT, "0 is the prompt's best box in the image, kept however low it scored"),
                *(Column(name, FLOAT, f"{name}, pixels of the upright image") for name in CORNERS),
                Column("score", FLOAT, "probability of the prompt's best word"),
                Column("text_score", FLOAT, "mean probability of its words"),
            ),
            ("image_id", "producer", "caption", "prompt", "rank"),
            True,
        ),
        Table(
            "unanswered",
            "images that a labeller could not look at, and why",
            (
                IMAGE,
                BATCH,
                Column("producer", STRING, "the labeller"),
                Column("reason", STRING, "what went wrong"),
            ),
            ("image_id", "producer"),
            True,
        ),
        Table(
            "yields",
            "what each class and each of its prompts brought in; those that brought nothing say so",
            (
                BATCH,
                Column("producer", STRING, "the labeller"),
                Column("class_name", STRING, "class"),
                Column("prompt", STRING, "'' for the class as a whole, or one of its prompts"),
                Column("negative", BOOL, "the prompt is of what the class is taken for"),
                Column("images", LONG, "images looked at"),
                Column("images_with", LONG, "of those, with a box at or above the thresholds"),
                Column("boxes", LONG, "boxes that stand (of a prompt: at or above the thresholds)"),
                Column("best", FLOAT, "best score seen, however low; null: the labeller gives none", True),
                Column("best_image", STRING, "image_id of that score", True),
                Column("note", STRING, "in words, where nothing was found"),
            ),
            ("batch", "producer", "class_name", "prompt"),
            True,
        ),
        Table(
            "prompt_errors",
            "how often each class and prompt is found in gold images that lack the class",
            (
                Column("producer", STRING, "the labeller"),
                Column("class_name", STRING, "class"),
                Column("prompt", STRING, "'' for the class as a whole, or one of its prompts"),
                Column("images", LONG, "gold images known to lack the class"),
                Column("false_images", LONG, "of those, with a box"),
                Column("rate", DOUBLE, "their share; null without such images", True),
                Column("low", DOUBLE, "lower end of its interval (Wilson)", True),
                Column("high", DOUBLE, "upper end", True),
                Column("level", DOUBLE, "confidence level of the interval"),
                Column("boxes_per_image", DOUBLE, "mean number of false boxes", True),
                Column("worst", FLOAT, "highest false score", True),
                Column("threshold", FLOAT, "lowest score that counted; null: as the labeller gave them", True),
            ),
            ("producer", "class_name", "prompt"),
        ),
        Table(
            "vocabulary",
            "how each prompt of a labeller was understood",
            (
                Column("producer", STRING, "the labeller"),
                Column("class_name", STRING, "class of the ontology"),
                Column("prompt", STRING, "what was asked"),
                Column("matched", STRING, "the labeller's own term; null when it has none", True),
                Column("similarity", FLOAT, "cosine of prompt and term; 1 for open vocabulary"),
            ),
            ("producer", "class_name", "prompt"),
        ),
        Table(
            "masks",
            "one mask a box",
            (
                Column("annotation_id", STRING, "the detection or ground-truth box"),
                IMAGE,
                BATCH,
                Column("producer", STRING, "the segmenter"),
                Column("mask", STRING, "COCO compressed RLE counts (column-major)"),
                Column("area", LONG, "pixels"),
                Column("score", FLOAT, "the segmenter's own estimate of quality, 0 to 1; SAM's predicted IoU"),
                Column("stability", FLOAT, "IoU of the mask at a higher and a lower threshold; null: not known", True),
            ),
            ("annotation_id", "producer"),
            True,
        ),
        Table(
            "tags",
            "zero-shot classes of whole images",
            (
                *ANNOTATION,
                Column("probability", FLOAT, "softmax over the classes of the ontology"),
                Column("rank", INT, "1 is the best class of its image"),
            ),
            ("annotation_id",),
            True,
        ),
        Table(
            "gold",
            "images that people labelled: those that labellers are graded on, and those kept for tests",
            (
                IMAGE,
                BATCH,
                Column("location", STRING, "images of one location depend on each other"),
                Column("graded", BOOL, "labellers are graded on it; the others only lay the grid of thresholds"),
            ),
            ("image_id",),
        ),
        Table(
            "exchangeability",
            "is what gold shows true of this batch? tests of its unlabelled images against gold",
            (
                BATCH,
                Column("gold", STRING, "'all', or 'batch': only the gold of this batch"),
                Column("test", STRING, "as in drift"),
                Column("subject", STRING, "encoder, model or column that was tested"),
                Column("statistic", DOUBLE, "the test's statistic", True),
                Column("p_value", DOUBLE, "null when there is too little to test", True),
                Column("differs", BOOL, "p below alpha: the certificate does not hold here"),
                Column("alpha", DOUBLE, "level of the test"),
                Column("images", LONG, "unlabelled images of the batch"),
                Column("gold_images", LONG, "gold images compared with"),
                Column("note", STRING, "in words"),
            ),
            ("batch", "gold", "test", "subject"),
            True,
        ),
        Table(
            "trust",
            "how far each labeller can be trusted, class by class, measured on gold",
            TRUST,
            ("producer", "class_name", "slice"),
        ),
        Table(
            "targets",
            "what other targets would need: the thresholds of trust, had the project asked for more or less",
            TRUST,
            ("producer", "class_name", "target"),
        ),
        Table(
            "calibration",
            "what a labeller's scores are worth: the share that is right on gold",
            (
                Column("producer", STRING, "the labeller"),
                Column("class_name", STRING, "'all' or a class that has answers enough"),
                Column("method", STRING, "raw, temperature or isotonic: the best on images it was not fitted on"),
                Column("answers", LONG, "answers on gold"),
                Column("right", LONG, "of those, right"),
                Column("brier_raw", DOUBLE, "mean squared error of the raw score"),
                Column("brier", DOUBLE, "of the calibrated one, cross-validated by image"),
                Column("error_raw", DOUBLE, "expected calibration error of the raw score"),
                Column("error", DOUBLE, "of the calibrated one, cross-validated by image"),
                Column("x", DOUBLES, "raw scores of the map's points"),
                Column("y", DOUBLES, "probabilities of being right there"),
            ),
            ("producer", "class_name"),
        ),
        Table(
            "reliability",
            "share of labels that is right over the score, before and after calibration",
            CURVE,
            ("model", "split", "class_name", "curve", "x", "y"),
        ),
        Table(
            "examinations",
            "what the verifier says of labels on gold images, so that it can be graded",
            SAID,
            ("question_id",),
        ),
        Table(
            "verifier_trust",
            "in which classes the verifier's word counts: its yes and its no, graded on gold",
            (
                Column("verifier", STRING, "who is graded"),
                Column("producer", STRING, "the labeller whose labels it is asked about"),
                Column("class_name", STRING, "class"),
                Column("slice", STRING, "'all', or batch:NAME, gold of one batch"),
                Column("answer", STRING, "yes or no"),
                Column("certified", BOOL, "the answer is right above target, with this confidence, and so it counts"),
                Column("threshold", FLOAT, "lowest score of the labeller from which it counts; null when never", True),
                Column("agreement", DOUBLE, "share of the attempts that must agree; null when it never counts", True),
                Column("target", FLOAT, "share asked for"),
                Column("confidence", FLOAT, "1 - delta"),
                Column("precision", FLOAT, "share of these answers that is right on gold (or the best seen)", True),
                Column("precision_low", FLOAT, "lower confidence limit at that alone", True),
                Column("precision_high", FLOAT, "upper confidence limit", True),
                Column("answers", LONG, "such answers on gold"),
                Column("asked", LONG, "labels on gold that it was asked about, of those its labeller leaves open"),
                Column("right_yes", LONG, "of those: right labels, answer yes"),
                Column("right_no", LONG, "right labels, answer no"),
                Column("right_open", LONG, "right labels, no majority, unsure, or no answer"),
                Column("wrong_yes", LONG, "wrong labels, answer yes"),
                Column("wrong_no", LONG, "wrong labels, answer no"),
                Column("wrong_open", LONG, "wrong labels, no majority, unsure, or no answer"),
                Column("units", LONG, "gold images (or locations) on which it was asked"),
                Column("unit", STRING, "what is taken for independent: box, image or location"),
                Column("most", LONG, "it counts for the best so many of one unit; null: for all", True),
                Column("more_gold", LONG, "further gold images (or locations) that would likely certify it", True),
                Column("floor", FLOAT, "lowest score that it is asked about"),
                Column("tokens_sent", DOUBLE, "of one question with all attempts, mean"),
                Column("tokens_written", DOUBLE, "likewise, written by the model"),
                Column("beside", STRING, "certificate of the labeller that leaves these labels open; null: none", True),
                Column("certificate", STRING, "names what was promised; null when nothing was", True),
                Column("method", STRING, "how it was tested"),
                Column("note", STRING, "in words"),
            ),
            ("verifier", "producer", "class_name", "slice", "answer"),
        ),
        Table(
            "prompt_evaluation",
            "how reliable each wording is on gold, in long form",
            (
                Column("prompt", STRING, "name of the wording"),
                Column("verifier", STRING, "model@version#config-hash"),
                Column("question", STRING, "label or count"),
                Column("class_name", STRING, "'all' or a class"),
                Column("metric", STRING, "accuracy, sensitivity, specificity, yes_right, no_right, agreement, …"),
                Column("value", DOUBLE, "null when it is undefined", True),
                Column("low", DOUBLE, "lower end of the interval", True),
                Column("high", DOUBLE, "upper end of the interval", True),
                Column("level", DOUBLE, "confidence level of the interval", True),
                Column("support", LONG, "labels (or images) it rests on"),
                Column("images", LONG, "images they lie on"),
            ),
            ("prompt", "question", "class_name", "metric"),
        ),
        Table(
            "verifications",
            "what the verifier says of labels that are open",
            SAID,
            ("question_id",),
            True,
        ),
        Table(
            "labels",
            "fused labels with their status",
            (
                *ANNOTATION,
                Column("status", STRING, "accepted, verified, needs_review, rejected or human"),
                Column("threshold", FLOAT, "score that was needed; null when nothing is certified", True),
                Column("precision", FLOAT, "measured on gold at the threshold", True),
                Column("certificate", STRING, "of trust or verifier_trust, if accepted or verified under one", True),
                Column("parts", STRINGS, "annotation_ids that were fused"),
                Column("decided_by", STRING, "the rule, in words"),
            ),
            ("annotation_id",),
            True,
        ),
        Table(
            "review_queue",
            "what a person should look at, most useful first",
            (
                Column("rank", INT, "1 is the first"),
                Column("annotation_id", STRING, "the label in question"),
                IMAGE,
                BATCH,
                Column("class_name", STRING, "class"),
                Column("score", FLOAT, "raw score"),
                Column("right", DOUBLE, "calibrated probability that it is right"),
                Column("gain", DOUBLE, "expected growth of the root of its class's labels by a look; 0 for audits"),
                Column("cost", DOUBLE, "expected price of a look, in the project's currency"),
                Column("reason", STRING, "why it is here"),
                Column("route", STRING, "who should look: a person, or the verifier, whose budget is spent", True),
                Column("producer", STRING, "model that drew a box that people may have overlooked, else null", True),
                Column("x1", FLOAT, "left edge of such a box, which is no label yet", True),
                Column("y1", FLOAT, "its top edge", True),
                Column("x2", FLOAT, "its right edge, exclusive", True),
                Column("y2", FLOAT, "its bottom edge, exclusive", True),
                Column("mask", STRING, "a model's mask of an object that people may have outlined badly", True),
            ),
            ("annotation_id",),
            True,
        ),
        Table(
            "audits",
            "accepted and verified labels that people look at again, drawn at random from each batch",
            (
                Column("annotation_id", STRING, "the label"),
                IMAGE,
                BATCH,
                Column("class_name", STRING, "class"),
                Column("producer", STRING, "the labeller, or verifier, that was believed"),
                Column("certificate", STRING, "why it was believed"),
                Column("right", BOOL, "what people said; null until somebody has looked", True),
            ),
            ("annotation_id",),
            True,
        ),
        Table(
            "decisions",
            "what people said of labels, every word of it: the latest of each person counts",
            (
                Column("decision_id", STRING, "hash of everything in the row"),
                Column("annotation_id", STRING, "the label in question, or the one that was added"),
                IMAGE,
                BATCH,
                Column("reviewer", STRING, "who decided"),
                Column("verdict", STRING, "yes, no, fix, add, or undo"),
                Column("class_name", STRING, "class as decided; null for no and undo", True),
                Column("x1", FLOAT, "left edge as decided; null for no, undo and image-level labels", True),
                Column("y1", FLOAT, "top edge", True),
                Column("x2", FLOAT, "right edge, exclusive", True),
                Column("y2", FLOAT, "bottom edge, exclusive", True),
                Column("mask", STRING, "COCO compressed RLE counts at the image's size", True),
                Column("asked_class", STRING, "class as it was shown", True),
                Column("asked_x1", FLOAT, "left edge as it was shown", True),
                Column("asked_y1", FLOAT, "top edge", True),
                Column("asked_x2", FLOAT, "right edge, exclusive", True),
                Column("asked_y2", FLOAT, "bottom edge, exclusive", True),
                Column("at", TIME, "when, UTC"),
                Column("source", STRING, "page, label-studio, cvat, coco or fiftyone"),
                Column("withdraws", STRING, "for undo: the decision that does not count any more", True),
            ),
            ("decision_id",),
            True,
        ),
        Table(
            "agreement",
            "how far people agree where several decided on the same label",
            (
                Column("class_name", STRING, "'all', or the class that was asked about"),
                Column("reviewers", STRING, "'all', or two names in order, with a comma"),
                Column("metric", STRING, "krippendorff_alpha, cohen_kappa, raw_agreement, mean_iou"),
                Column("value", DOUBLE, "null when it is undefined", True),
                Column("low", DOUBLE, "lower end of the interval", True),
                Column("high", DOUBLE, "upper end of the interval", True),
                Column("items", LONG, "labels that it rests on"),
                Column("disagreements", LONG, "labels on which not all said the same"),
            ),
            ("class_name", "reviewers", "metric"),
        ),
        Table(
            "training_set",
            "the pinned snapshot that models are trained on",
            (
                *ANNOTATION,
                Column("split", STRING, "train or val"),
                Column("origin", STRING, "gold, or the status of the accepted label"),
                Column("snapshot", STRING, "hash of the whole snapshot"),
            ),
            ("annotation_id",),
        ),
        Table(
            "models",
            "trained models",
            (
                Column("model", STRING, "producer of its predictions"),
                Column("kind", STRING, "fcos, linear_probe, clip, sam or grounding_dino"),
                Column("snapshot", STRING, "training_set it was trained on"),
                Column("path", STRING, "checkpoint (safetensors)"),
                Column("sha256", STRING, "of the checkpoint"),
                Column("config", STRING, "JSON"),
                Column("labels_per_class", INT, "training size asked for; null for all", True),
                Column("seconds", DOUBLE, "training time"),
                Column("device", STRING, "cpu, cuda, …"),
                Column("history", STRING, "JSON list of {step, loss, lr}"),
            ),
            ("model",),
        ),
        Table(
            "learning_curves",
            "quality against the number of labels trained on",
            CURVE,
            ("model", "split", "class_name", "curve", "x", "y"),
        ),
        Table(
            "predictions",
            "what trained models say: boxes, or the most probable classes of whole images",
            (*ANNOTATION, Column("rank", INT, "1 is the best class of its image; null for boxes", True)),
            ("annotation_id",),
            True,
        ),
        Table(
            "model_trust",
            "how far each trained model can be trusted, measured on val, which it never saw",
            TRUST,
            ("producer", "class_name", "slice"),
        ),
        Table(
            "evaluation",
            "metrics in long form",
            (
                Column("model", STRING, "producer, of a labeller or a trained model"),
                Column("split", STRING, "val or test"),
                Column("slice", STRING, "'all' or a declared slice"),
                Column("class_name", STRING, "'all' or a class"),
                Column("metric", STRING, "COCO's AP, AP50, …, AR_large; accuracy, count_mae, …"),
                Column("value", DOUBLE, "null when it is undefined", True),
                Column("low", DOUBLE, "lower end of the interval", True),
                Column("high", DOUBLE, "upper end of the interval", True),
                Column("level", DOUBLE, "confidence level of the interval", True),
                Column("support", LONG, "objects or images it rests on"),
                Column("images", LONG, "images it rests on"),
            ),
            ("model", "split", "slice", "class_name", "metric"),
        ),
        Table(
            "comparisons",
            "every two models on the same test images, and whether chance could explain the difference",
            (
                Column("model", STRING, "producer"),
                Column("other", STRING, "producer it is compared with"),
                Column("slice", STRING, "'all' or a declared slice"),
                Column("metric", STRING, "AP50, AP, mask_AP50 or count_mae, or accuracy"),
                Column("value", DOUBLE, "of the model"),
                Column("other_value", DOUBLE, "of the other"),
                Column("difference", DOUBLE, "value - other_value"),
                Column("low", DOUBLE, "lower end of its interval, by a paired bootstrap over images", True),
                Column("high", DOUBLE, "upper end", True),
                Column("level", DOUBLE, "confidence level of the interval"),
                Column("p_value", DOUBLE, "of no difference; null where nothing could be resampled", True),
                Column("corrected", DOUBLE, "Holm's, over all rows of the metric", True),
                Column("better", STRING, "the model that is better beyond chance; null where neither is", True),
                Column("images", LONG, "images it rests on"),
            ),
            ("model", "other", "slice", "metric"),
        ),
        Table(
            "confusion",
            "confusion matrix, long form",
            (
                Column("model", STRING, "producer"),
                Column("split", STRING, "val or test"),
                Column("actual", STRING, "class, or 'background'"),
                Column("predicted", STRING, "class, or 'background'"),
                Column("count", LONG, "objects or images"),
            ),
            ("model", "split", "actual", "predicted"),
        ),
        Table(
            "curves",
            "precision-recall and other curves, as points",
            CURVE,
            ("model", "split", "class_name", "curve", "x", "y"),
        ),
        Table(
            "slices",
            "declared, searched and discovered slices, and how models do on them",
            (
                Column("slice", STRING, "stable id or declared name"),
                Column("kind", STRING, "declared, searched (among facts about images) or discovered (in embeddings)"),
                Column("definition", STRING, "the SQL predicate, or how it was found"),
                Column("model", STRING, "producer"),
                Column("metric", STRING, "what is compared"),
                Column("images", LONG, "images in the slice"),
                Column("value", DOUBLE, "metric on the slice", True),
                Column("rest", DOUBLE, "metric on the rest", True),
                Column("p_value", DOUBLE, "that the slice is no worse than the rest", True),
                Column("confirmed", BOOL, "worse on held-out images too, after correction"),
                Column("members", STRINGS, "image_ids"),
                Column("title", STRING, "of a found slice: the words or facts that set it apart", True),
            ),
            ("slice", "model", "metric"),
        ),
        Table(
            "declared_slices",
            "the images of each slice that the project declares, and of all",
            (
                Column("slice", STRING, "its name; 'all' holds every image"),
                IMAGE,
                Column("definition", STRING, "its SQL predicate; of others, what was asked, in words"),
            ),
            ("slice", "image_id"),
        ),
        Table(
            "slice_traits",
            "what the images of each found slice have in common that others have not",
            (
                Column("slice", STRING, "as in slices"),
                Column("model", STRING, "producer; null in rows of an earlier version", True),
                Column("kind", STRING, "word (of the encoder's vocabulary) or fact (a SQL predicate)"),
                Column("trait", STRING, "the word or predicate"),
                Column("rank", INT, "1: the surest of its kind"),
                Column("inside", DOUBLE, "mean cosine with the word, or share that fulfils the fact, in the slice"),
                Column("outside", DOUBLE, "the same of the other held-out images"),
                Column("effect", DOUBLE, "of a word: difference in standard deviations; of a fact: inside / outside"),
                Column("low", DOUBLE, "lower end of its interval, corrected for all that were looked at"),
                Column("high", DOUBLE, "upper end"),
            ),
            ("slice", "model", "kind", "trait"),
        ),
        Table(
            "slice_images",
            "all images, labelled or not, in a found slice that is confirmed",
            (
                Column("slice", STRING, "as in slices"),
                Column("model", STRING, "producer"),
                IMAGE,
            ),
            ("slice", "model", "image_id"),
        ),
        Table(
            "slice_history",
            "what each run said of each slice",
            (
                Column("at", TIME, "when, UTC"),
                Column("slice", STRING, "as in slices"),
                Column("kind", STRING, "declared, searched or discovered"),
                Column("model", STRING, "producer"),
                Column("metric", STRING, "what is compared"),
                Column("images", LONG, "images in the slice"),
                Column("value", DOUBLE, "metric on the slice", True),
                Column("rest", DOUBLE, "metric on the rest", True),
                Column("p_value", DOUBLE, "as in slices", True),
                Column("confirmed", BOOL, "as in slices"),
            ),
            ("at", "slice", "model", "metric"),
        ),
        Table(
            "map",
            "where each image lies on the two-dimensional map of embeddings",
            (
                IMAGE,
                Column("encoder", STRING, "producer of the vectors"),
                Column("x", DOUBLE, "along the first axis of map_axes"),
                Column("y", DOUBLE, "along the second"),
            ),
            ("image_id", "encoder"),
        ),
        Table(
            "map_axes",
            "the axes of the map, which stay when images are added",
            (
                Column("encoder", STRING, "producer of the vectors"),
                Column("axis", INT, "0 or 1"),
                Column("mean", DOUBLES, "origin"),
                Column("direction", DOUBLES, "unit vector"),
            ),
            ("encoder", "axis"),
        ),
        Table(
            "descriptions",
            "what the verifier sees on images of each slice, in its words",
            (
                Column("slice", STRING, "stable id or declared name"),
                Column("model", STRING, "producer; null in rows of an earlier version", True),
                Column("verifier", STRING, "who describes: model@version#config-hash"),
                Column("description", STRING, "what the images share"),
                Column("tags", STRING, "short words, with commas"),
                Column("images", LONG, "images that were shown"),
            ),
            ("slice", "model"),
        ),
        Table(
            "failures",
            "every miss and false alarm on held-out images, with evidence",
            (
                Column("model", STRING, "producer"),
                IMAGE,
                BATCH,
                Column("annotation_id", STRING, "the wrong box, or the one that was missed"),
                Column("class_name", STRING, "class"),
                Column("error", STRING, "missed, background, localisation, classification, both, duplicate, outline"),
                Column(
                    "cost", DOUBLE, "rise of AP (or accuracy) on its split were it alone mended; null: outline", True
                ),
                Column("score", FLOAT, "of the wrong box", True),
                Column("iou", FLOAT, "with the best matching box; of an outline: of the masks", True),
                Column("x1", FLOAT, "box", True),
                Column("y1", FLOAT, "box", True),
                Column("x2", FLOAT, "box", True),
                Column("y2", FLOAT, "box", True),
                Column(
                    "causes", STRINGS, "small, crowded, truncated, confused, label_error, dark, blurry, unlike_training"
                ),
                Column("confused_with", STRING, "class of the object it is, or that it was taken for", True),
                Column("suspicion", DOUBLE, "that people's label is wrong instead, as in label_errors", True),
                Column("doubted_by", STRING, "model that doubts it; it may be the one that failed", True),
                Column("area", FLOAT, "of the box, square pixels", True),
                Column("neighbours", LONG, "other objects that overlap the place", True),
                Column("brightness", FLOAT, "of the image, as in quality", True),
                Column("sharpness", FLOAT, "of the image, as in quality", True),
                Column("distance", FLOAT, "1 - cosine of the image and the nearest training image", True),
                Column(
                    "nearest", STRINGS, "training images most like it, nearest first; null without embeddings", True
                ),
            ),
            ("model", "annotation_id", "error"),
        ),
        Table(
            "label_errors",
            "labels of people that are probably wrong, by models that did not learn from them",
            (
                Column("model", STRING, "producer of what speaks against the label"),
                IMAGE,
                BATCH,
                Column("annotation_id", STRING, "the label; of an overlooked object, the detection"),
                Column("class_name", STRING, "class that people gave, or of the overlooked object"),
                Column("error", STRING, "overlooked, badly_located, swapped, badly_outlined; of whole images: class"),
                Column("suggested", STRING, "class that the model gives"),
                Column("suspicion", DOUBLE, "0 to 1: that the label is wrong; of a class, 1 - its probability"),
                Column("score", FLOAT, "of the detection or mask, or probability of the suggested class"),
                Column("x1", FLOAT, "suggested box", True),
                Column("y1", FLOAT, "suggested box", True),
                Column("x2", FLOAT, "suggested box", True),
                Column("y2", FLOAT, "suggested box", True),
                Column("mask", STRING, "suggested mask: COCO compressed RLE counts; badly_outlined only", True),
            ),
            ("model", "annotation_id", "error"),
        ),
        Table(
            "verdict",
            "foundation model, trained model, or people: per class and slice",
            (
                Column("class_name", STRING, "'all' or a class"),
                Column("slice", STRING, "'all' or a slice"),
                Column("option", STRING, "foundation, labeller, trained or people"),
                Column("model", STRING, "producer, or human"),
                Column("metric", STRING, "what quality means here"),
                Column("value", DOUBLE, "quality", True),
                Column("low", DOUBLE, "lower end", True),
                Column("high", DOUBLE, "upper end", True),
                Column("support", LONG, "what it rests on"),
                Column("certified_coverage", DOUBLE, "share of its answers that are accepted with a certificate", True),
                Column("certified_recall", DOUBLE, "share of what is there that gets an accepted label", True),
                Column("seconds_per_1000", DOUBLE, "compute, per 1,000 images", True),
                Column("milliseconds", DOUBLE, "compute of one image: latency", True),
                Column("cost_per_1000", DOUBLE, "running cost of 1,000 images, in the project's currency", True),
                Column("fixed_cost", DOUBLE, "spent once: gold or training labels by hand, and training", True),
                Column("cost_per_1000_now", DOUBLE, "running cost, and the fixed spread over the images so far", True),
                Column("cost_per_1000_at_1m", DOUBLE, "running cost, and the fixed spread over 1,000,000 images", True),
                Column("recommended", BOOL, "the option to take"),
                Column("reason", STRING, "in words"),
            ),
            ("class_name", "slice", "option", "model"),
        ),
        Table(
            "champion",
            "the model in charge, and why",
            (
                Column("model", STRING, "producer"),
                Column("metric", STRING, "guarded metric"),
                Column("value", DOUBLE, "on the test split", True),
                Column("previous", STRING, "the model before", True),
                Column("promoted", BOOL, "changed in this run"),
                Column("reason", STRING, "in words"),
            ),
            ("model",),
        ),
        Table(
            "deployment",
            "what was exported, and how far it agrees with the original",
            (
                Column("model", STRING, "producer"),
                Column("path", STRING, "ONNX file"),
                Column("sha256", STRING, "of the file"),
                Column("bytes", LONG, "file size"),
                Column("opset", INT, "ONNX opset"),
                Column("parity_images", INT, "images compared"),
                Column("max_abs_difference", DOUBLE, "largest difference of raw outputs"),
                Column("agreement", DOUBLE, "share of images with equal decisions"),
                Column("milliseconds_torch", DOUBLE, "per image, PyTorch"),
                Column("milliseconds_onnx", DOUBLE, "per image, ONNX Runtime"),
                Column("card", STRING, "model card (Markdown)"),
            ),
            ("model",),
        ),
        Table(
            "reference",
            "the images that later batches are compared with",
            (IMAGE, BATCH),
            ("image_id",),
        ),
        Table(
            "drift",
            "is this batch like the reference",
            (
                BATCH,
                Column("test", STRING, "embedding_mmd, embedding_classifier, label_mix, …"),
                Column("subject", STRING, "encoder, model or column that was tested"),
                Column("statistic", DOUBLE, "the test's statistic", True),
                Column("p_value", DOUBLE, "null when there is too little to test", True),
                Column("drifted", BOOL, "p below the project's alpha"),
                Column("alpha", DOUBLE, "level of the test"),
                Column("images", LONG, "images of the batch that were compared: a sample where `note` says so"),
                Column("reference_images", LONG, "images of the reference, likewise"),
                Column("note", STRING, "in words"),
                Column("effect", DOUBLE, "size of the difference, in `unit`", True),
                Column(
                    "detectable", DOUBLE, "smallest effect that so many images show, at `alpha` and `drift.power`", True
                ),
                Column("unit", STRING, "of effect and detectable", True),
                Column(
                    "least_p", DOUBLE, "no smaller p-value is possible with so many locations; null: no bound", True
                ),
                Column("contents", STRING, "hash of the batch's image_ids", True),
                Column("reference", STRING, "hash of the reference's image_ids, the batch's own left out", True),
            ),
            ("batch", "test", "subject"),
            True,
        ),
        Table(
            "drift_dimensions",
            "each dimension of vectors and looks, batch against reference",
            (
                BATCH,
                Column("subject", STRING, "encoder, or quality"),
                Column("dimension", STRING, "v0, v1, … of the vector, or the measure"),
                Column("statistic", DOUBLE, "Kolmogorov-Smirnov distance of the locations' means"),
                Column("p_value", DOUBLE, "of this dimension alone"),
                Column("holm", DOUBLE, "p-value corrected after Holm"),
                Column("q_value", DOUBLE, "p-value corrected after Benjamini and Hochberg"),
                Column("shift", DOUBLE, "batch's mean less the reference's, in pooled standard deviations"),
            ),
            ("batch", "subject", "dimension"),
            True,
        ),
        Table(
            "drift_shares",
            "what labels, scores and slices are made of, batch against reference",
            (
                BATCH,
                Column("mix", STRING, "labels, scores or slices"),
                Column("subject", STRING, "model, or declared"),
                Column("category", STRING, "class, range of scores, or slice"),
                Column("count", DOUBLE, "in the batch; labels count as their scores"),
                Column("reference_count", DOUBLE, "in the reference"),
                Column("share", DOUBLE, "of the batch"),
                Column("reference_share", DOUBLE, "of the reference"),
                Column("psi", DOUBLE, "its term of the population stability index"),
                Column("p_value", DOUBLE, "that the shares are equal, by chi-square, corrected after Holm"),
            ),
            ("batch", "mix", "subject", "category"),
            True,
        ),
        Table(
            "drift_regions",
            "regions of embedding space, and how much of each the batch and the reference hold",
            (
                BATCH,
                Column("encoder", STRING, "producer of the vectors"),
                Column("region", INT, "1: the one that the batch has most in excess"),
                Column("images", LONG, "images of the batch"),
                Column("reference_images", LONG, "images of the reference"),
                Column("share", DOUBLE, "of the batch"),
                Column("reference_share", DOUBLE, "of the reference"),
                Column("contribution", DOUBLE, "share of the squared MMD that comes from here; all sum to 1"),
                Column("p_value", DOUBLE, "that the shares are equal, corrected after Holm"),
                Column("examples", STRINGS, "images of the batch least like the reference"),
                Column("reference_examples", STRINGS, "images of the reference least like the batch"),
            ),
            ("batch", "encoder", "region"),
            True,
        ),
        Table(
            "drift_images",
            "how much each image of a batch drives its difference",
            (
                BATCH,
                IMAGE,
                Column("encoder", STRING, "producer of the vectors"),
                Column("witness", DOUBLE, "mean kernel to the batch less that to the reference"),
                Column("distance", DOUBLE, "squared MMD to the nearest reference image; null outside a sample", True),
                Column("region", INT, "as in drift_regions"),
            ),
            ("batch", "image_id", "encoder"),
            True,
        ),
        Table(
            "alarms",
            "the first look at each batch, with a bound on false alarms over many; rows are added, never changed",
            (
                BATCH,
                Column("position", INT, "in the order of looks, from 1"),
                Column("stretch", INT, "looks that share one `drift.alarm_rate`, from 1"),
                Column("tests", INT, "p-values of the batch that can be at most the level"),
                Column("p_value", DOUBLE, "least p-value times their number"),
                Column("level", DOUBLE, "part of `drift.alarm_rate` that is spent on this look"),
                Column("spent", DOUBLE, "of it in this stretch so far"),
                Column("alarm", BOOL, "p at most the level"),
                Column("test", STRING, "with the least p-value"),
                Column("subject", STRING, "of that test"),
                Column("drifted", BOOL, "any test below the project's alpha, uncorrected, at that look"),
                Column("contents", STRING, "hash of the batch's image_ids; a batch whose images change is new", True),
                Column("reference", STRING, "hash of the image_ids that it was compared with", True),
                Column("at", TIME, "of the look, UTC", True),
            ),
            ("position",),
        ),
        Table(
            "costs",
            "the ledger: what each piece of work took",
            (
                Column("entry_id", STRING, "unique"),
                Column("stage", STRING, "asset group"),
                Column("asset", STRING, "table that was made"),
                Column("batch", STRING, "batch; empty for unpartitioned work"),
                Column("producer", STRING, "who did it"),
                Column("started_at", TIME, "UTC"),
                Column("seconds", DOUBLE, "wall clock"),
                Column("device", STRING, "cpu, cuda, …"),
                Column("images", LONG, "images processed"),
                Column("rows", LONG, "rows written"),
                Column("tokens", LONG, "sent and received"),
                Column("tokens_written", LONG, "of those, received from a verifier; null is 0", True),
                Column("money", DOUBLE, "seconds and tokens at the project's prices"),
                Column("currency", STRING, "ISO 4217"),
            ),
            ("entry_id",),
        ),
        Table(
            "prices",
            "what things cost, as project.yaml says",
            (
                Column("item", STRING, "cpu_hour, gpu_hour, human_box, human_image, human_look, token_million, …"),
                Column("price", DOUBLE, "of one"),
                Column("currency", STRING, "ISO 4217"),
            ),
            ("item",),
        ),
        Table(
            "warehouse",
            "the views of warehouse.duckdb",
            (
                Column("view", STRING, "name, as in SQL"),
                Column("rows", LONG, "when the view was last read"),
                Column("path", STRING, "the DuckDB file"),
            ),
            ("view",),
        ),
        Table(
            "report",
            "the HTML report",
            (
                Column("path", STRING, "the HTML file"),
                Column("sha256", STRING, "of the file"),
                Column("bytes", LONG, "file size"),
            ),
            ("path",),
        ),
    )
}


def table(name: str) -> Table:
    """The table called `name`.

    Raises:
        DataError: there is none; the message names the nearest.
    """
    from pipeline.errors import suggest

    if name not in TABLES:
        raise DataError(f"there is no table {name!r}", suggest(name, TABLES))
    return TABLES[name]


def annotations(
    name: str,
    *,
    image_ids: Sequence[str],
    batch: str | Sequence[str],
    producer: str | Sequence[str],
    classes: Sequence[str],
    boxes: Any,
    scores: Any = None,
    **extra: Any,
) -> pa.Table:
    """A table of annotations, ids and flags filled in.

    Args:
        name: detections, labels, ground_truth, predictions, tags, …
        boxes: (n, 4) xyxy pixels, or None for image-level labels.
        scores: (n,) in [0, 1]; 1 when left out.
        extra: further columns of that table, by name.
    """
    import numpy as np

    from pipeline.ids import annotation_ids

    n = len(image_ids)
    corners = None if boxes is None else np.asarray(boxes, np.float32).reshape(n, 4)
    columns: dict[str, Any] = {
        "annotation_id": annotation_ids(image_ids, producer, classes, corners),
        "image_id": list(image_ids),
        "batch": [batch] * n if isinstance(batch, str) else list(batch),
        "producer": [producer] * n if isinstance(producer, str) else list(producer),
        "class_name": list(classes),
        "score": np.ones(n, np.float32) if scores is None else np.asarray(scores, np.float32),
        "truncated": np.zeros(n, bool),
        "ignore": np.zeros(n, bool),
        "is_crowd": np.zeros(n, bool),
    }
    if corners is not None:
        columns |= {key: corners[:, i] for i, key in enumerate(CORNERS)}
    typed = {c.name: c.type for c in table(name).columns}
    columns |= extra
    return table(name).from_columns(
        {k: pa.array(v, typed[k]) if not isinstance(v, pa.ChunkedArray) else v for k, v in columns.items()}
    )


def best_classes(rows: pa.Table) -> pa.Table:
    """Annotation rows; of the ranked classes of an image only the best, and of tags the probability as score."""
    if "rank" not in rows.column_names:
        return rows
    best = rows.filter(pc.equal(pc.fill_null(rows["rank"], 1), 1))
    if "probability" not in rows.column_names:
        return best
    return best.set_column(best.column_names.index("score"), "score", best["probability"])


def with_masks(rows: pa.Table, masks: pa.Table) -> pa.Table:
    """The annotation rows that `masks` has a mask for, with it; of several segmenters there the last named."""
    last = masks.filter(pc.equal(masks["producer"], pc.max(masks["producer"])))
    at = pc.index_in(rows["annotation_id"], last["annotation_id"].combine_chunks())
    found = rows.filter(pc.is_valid(at))
    return found.set_column(found.column_names.index("mask"), "mask", last["mask"].take(at.drop_null()))


def box_array(rows: pa.Table) -> Any:
    """(n, 4) float64 xyxy of annotation rows; NaN where a label has no box."""
    columns = [rows.column(k).to_numpy(zero_copy_only=False) for k in CORNERS]
    return np.stack(columns, axis=1).astype(np.float64) if columns else np.zeros((0, 4))


def where_in(rows: pa.Table, column: str, values: Iterable[str]) -> pa.Table:
    """The rows whose `column` is one of `values`."""
    return rows.filter(pc.is_in(rows.column(column), pa.array(list(values), pa.string())))


def codes(values: pa.ChunkedArray, known: Sequence[str] | pa.ChunkedArray) -> NDArray[np.int64]:
    """(n,) place of each value in `known`, the first of equal ones; -1 for those that are not in it."""
    among = known.combine_chunks() if isinstance(known, pa.ChunkedArray) else pa.array(list(known), pa.string())
    return np.asarray(pc.fill_null(pc.index_in(values, among), -1).to_numpy(), np.int64)


def held_out(splits: pa.Table, split: str) -> list[str]:
    """Sorted ids of the images of `split` that people labelled."""
    rows = splits.filter(pc.and_(pc.equal(splits.column("split"), split), splits.column("gold")))
    return sorted(rows.column("image_id").unique().to_pylist())


def thresholds_of(evaluation: pa.Table, model: str) -> dict[str, float | None]:
    """A detector's operating threshold of each class, from rows of `evaluation`."""
    mine = pc.and_(pc.equal(evaluation.column("model"), model), pc.equal(evaluation.column("metric"), "threshold"))
    rows = evaluation.filter(mine)
    return dict(zip(rows.column("class_name").to_pylist(), rows.column("value").to_pylist(), strict=True))
