"""Metrics of every model on held-out images: by class, by slice, with intervals."""

from __future__ import annotations

from pipeline.evaluate.compare import image_errors, paired_draws
from pipeline.evaluate.comparisons import compare
from pipeline.evaluate.mask_ap import mask_precision
from pipeline.evaluate.rows import class_shares, gather
from pipeline.evaluate.run import evaluate
from pipeline.evaluate.segmentation import mask_agreement
from pipeline.evaluate.units import Spread

__all__ = [
    "Spread",
    "class_shares",
    "compare",
    "evaluate",
    "gather",
    "image_errors",
    "mask_agreement",
    "mask_precision",
    "paired_draws",
]
