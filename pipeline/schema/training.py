"""Training and prediction."""

from __future__ import annotations

from pipeline.schema.columns import ANNOTATION, COUNTED, CURVE
from pipeline.schema.form import DOUBLE, INT, STRING, Column, Table

TABLES = (
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
        "prediction_counts",
        "which trained model has looked at which image, and how much it said there, be it nothing",
        (*COUNTED, Column("checkpoint", STRING, "SHA-256 of the model's file")),
        ("image_id", "producer"),
        True,
    ),
)
