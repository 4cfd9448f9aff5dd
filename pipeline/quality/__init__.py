"""Measurements of each image, and flags for those that are hardly worth labelling.

`measures` is the one pass over pixels, `limits` says which values of a measure are out of the ordinary: set in
project.yaml, or learned from the project's own images.
"""

from __future__ import annotations

from pipeline.quality.limits import FIXED, ISSUES, MIN_BATCH, flag, project_limits
from pipeline.quality.measures import MEASURES, QualityWorker, measure, measured_before, perceptual_hash

__all__ = [
    "FIXED",
    "ISSUES",
    "MEASURES",
    "MIN_BATCH",
    "QualityWorker",
    "flag",
    "measure",
    "measured_before",
    "perceptual_hash",
    "project_limits",
]
