"""Choice of models and their deployment."""

from __future__ import annotations

from pipeline.schema.form import BOOL, DOUBLE, INT, LONG, STRING, Column, Table

TABLES = (
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
)
