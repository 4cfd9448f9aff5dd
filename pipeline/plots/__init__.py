"""Pictures of tables: PNG or SVG bytes, legible at the width of a phone.

Charts take Arrow tables in the schema's form.
"""

from pipeline.plots.charts import (
    class_counts,
    confusion,
    cost_bars,
    drift,
    embedding_map,
    intervals,
    learning_curve,
    precision_recall,
    reliability,
    slice_bars,
    slice_history,
    training_loss,
)
from pipeline.plots.photos import ERROR_COLOURS, STATUS_COLOURS, Overlay, contact_sheet
from pipeline.plots.style import SERIES, SOFT

__all__ = [
    "ERROR_COLOURS",
    "SERIES",
    "SOFT",
    "STATUS_COLOURS",
    "Overlay",
    "class_counts",
    "confusion",
    "contact_sheet",
    "cost_bars",
    "drift",
    "embedding_map",
    "intervals",
    "learning_curve",
    "precision_recall",
    "reliability",
    "slice_bars",
    "slice_history",
    "training_loss",
]
