"""All models, both held-out splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import ProjectConfig
from pipeline.failures.boxes import wrong_boxes
from pipeline.failures.classes import wrong_classes
from pipeline.failures.facts import facts_of


def find(
    models: pa.Table,
    ground_truth: pa.Table,
    images: pa.Table,
    quality: pa.Table,
    splits: pa.Table,
    evaluation: pa.Table,
    label_errors: pa.Table,
    masks: pa.Table,
    ids: Sequence[str],
    vectors: NDArray[np.floating],
    config: ProjectConfig,
    producers: Iterable[str] = (),
) -> pa.Table:
    """The table `failures` for the labelled images of val and test.

    Args:
        models: annotations; `producer` is the model.
        evaluation: that table; its metric 'threshold' is where detectors are judged. A class
            without one has no detections, so all its objects are missed.
        label_errors: that table. A failure has the cause `label_error` where it would be none were the label as is
            suggested there: a wrong answer that says just that (of several over one suggestion the surest; never a
            duplicate), or an object whose box, class or mask is doubted.
        masks: that table; those drawn in detections count.
        ids, vectors: n image ids and (n, d) unit vectors, those of training images included.
        producers: models that are judged even if they said nothing.

    Returns:
        For detection: objects that nothing found (`missed`), and TIDE's kinds of wrong detection:
        `localisation` (overlap 0.1 up to the project's), `classification`, `both` (beside an object of
        another class), `duplicate`, `background`. What a row costs is how much AP at the project's
        overlap would rise, within its split and among the detections at the operating threshold, were
        it alone mended. Where people and a segmenter drew masks, `outline`: an object was found, but the masks
        overlap by less than the project's overlap, which costs no AP of boxes. For classification: wrong
        classes, and images about which the model said nothing (`missed`); there the cost is in accuracy.
    """
    held = {split: schema.held_out(splits, split) for split in ("val", "test")}
    everything = sorted({*held["val"], *held["test"]})
    facts = facts_of(images, quality, splits, ids, vectors, everything)
    order = [("suspicion", "descending"), ("model", "ascending"), ("annotation_id", "ascending")]
    doubts = schema.where_in(label_errors, "image_id", everything).sort_by(order)  # the first of several counts
    parts = [schema.table("failures").empty()]
    for model in sorted({*models.column("producer").unique().to_pylist(), *producers}):
        mine = models.filter(pc.equal(models.column("producer"), model))
        for names in held.values():
            if not names:
                continue
            said, truth = (schema.where_in(t, "image_id", names) for t in (mine, ground_truth))
            if config.task == "classification":
                parts.append(wrong_classes(model, said, truth, facts, doubts))
            else:
                parts += wrong_boxes(model, _accepted(said, evaluation, model), truth, masks, facts, doubts, config)
    return pa.concat_tables(parts)


def _accepted(said: pa.Table, evaluation: pa.Table, model: str) -> pa.Table:
    """Detections at or above their class's operating threshold."""
    least = schema.thresholds_of(evaluation, model)
    names = said.column("class_name").to_pylist()
    needed = np.array([np.inf if least.get(n) is None else least[n] for n in names], np.float64)
    return said.filter(pa.array(said.column("score").to_numpy() >= needed))
