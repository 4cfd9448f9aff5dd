"""How reliable a verifier is with each wording: shares with intervals, on gold labels whose truth is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import intervals, schema
from pipeline.config import TrustConfig
from pipeline.ids import seed
from pipeline.trust import evidence
from pipeline.trust.certify import Flags, Floats, Ints
from pipeline.trust.examination import Plan
from pipeline.trust.gold import ALL, Gold, cases
from pipeline.trust.judge import Kind

_DRAWS = 500  # bootstrap samples of images, for differences


def evaluate_prompts(
    examinations: pa.Table,
    candidates: pa.Table,
    ground_truth: pa.Table,
    gold: Gold,
    plan: Plan,
    config: TrustConfig,
    classes: Sequence[str],
    kind: Kind,
    used: str,
    level: float,
) -> pa.Table:
    """Rows of `prompt_evaluation`: each wording, for each class and for all together.

    Of labels: accuracy (right yes and right no, of all), sensitivity (yes, of right labels), specificity (no, of
    wrong ones), yes_right and no_right (of its yes, and of its no, that is right), decided (yes or no, of all),
    unanimous (all attempts say the same), gain (accuracy less that of the wording in use, on the same labels),
    tokens (of a question). Of counts: right, error (mean absolute difference), detector_right (how often the
    labellers' own count is right), agreeing (both counts are the same), agreeing_right (of those, right).

    Shares have intervals that hold for any number of labels, with images as units unless `config.unit` is box;
    differences and means have bootstrap intervals over images.

    Args:
        examinations: rows of all wordings. With several, all are compared on the same images, those that
            `plan` has set apart for it; with one, on all that it was asked about.
        used: the wording in use. level: confidence of the intervals.
    """
    asked = examinations.filter(pc.equal(examinations["question"], "label"))
    if plan.comparing:
        asked = schema.where_in(asked, "image_id", plan.comparing)
    truth = truths(candidates, ground_truth, gold, config, classes, kind)
    right = np.array([truth.get(i, -1) for i in asked["annotation_id"].to_pylist()], np.int64)
    asked, right = asked.filter(pa.array(right >= 0)), right[right >= 0] == 1
    rows: list[dict[str, Any]] = []
    for prompt, name, mine in _groups(asked):
        view = _View.of(asked.filter(pa.array(mine)), config.unit, gold, level)
        reference = _reference(asked, right, name, used)
        rows += [
            {"prompt": prompt, "question": "label", "class_name": name, "verifier": view.verifier, **row}
            for row in _of_labels(view, right[mine], reference if prompt != used else {})
        ]
    counted = examinations.filter(pc.equal(examinations["question"], "count"))
    for prompt, name, mine in _groups(counted):
        view = _View.of(counted.filter(pa.array(mine)), config.unit, gold, level)
        rows += [
            {"prompt": prompt, "question": "count", "class_name": name, "verifier": view.verifier, **row}
            for row in _of_counts(view)
        ]
    return schema.table("prompt_evaluation").from_rows(rows)


def truths(
    candidates: pa.Table, ground_truth: pa.Table, gold: Gold, config: TrustConfig, classes: Sequence[str], kind: Kind
) -> dict[str, int]:
    """annotation_id -> 1 where people agree, 0 where they do not, of all answers on gold that are either."""
    found: dict[str, int] = {}
    for case in cases(candidates, ground_truth, replace(gold, slices=None), config, classes, kind):
        ids = case.found["annotation_id"].combine_chunks().take(pa.array(case.answers.row)).to_pylist()
        found |= dict(zip(ids, case.answers.right.astype(int).tolist(), strict=True))
    return found


def _groups(rows: pa.Table) -> Iterator[tuple[str, str, Flags]]:
    """(prompt, class or 'all', which rows)."""
    prompts, names = (np.array(rows[c].to_pylist(), object) for c in ("prompt", "class_name"))
    for prompt in sorted(set(prompts)):
        mine = prompts == prompt
        yield prompt, ALL, mine
        for name in sorted(set(names[mine])):
            yield prompt, name, mine & (names == name)


@dataclass(frozen=True)
class _View:
    """Some rows of `examinations`, and the images that they lie on."""

    rows: pa.Table
    unit: Ints
    units: int
    by_box: bool
    level: float
    verifier: str

    @classmethod
    def of(cls, rows: pa.Table, unit: str, gold: Gold, level: float) -> _View:
        images = rows["image_id"].to_pylist()
        names = [gold.locations.get(i, i) for i in images] if unit == "location" else images
        known, place = np.unique(np.array(names, str), return_inverse=True)
        return cls(rows, place.reshape(-1), len(known), unit == "box", level, rows["verifier"][0].as_py())

    def column(self, name: str) -> NDArray[Any]:
        return np.array(self.rows[name].to_pylist(), object)

    def row(self, metric: str, value: float | None, limits: intervals.Limits, support: int) -> dict[str, Any]:
        low, high = limits
        found = {"metric": metric, "value": value, "low": low, "high": high, "level": self.level}
        return found | {"support": support, "images": len(set(self.rows["image_id"].to_pylist()))}

    def share(self, metric: str, whole: Flags, part: Flags) -> dict[str, Any]:
        """A share of some rows, with limits that hold each with half of what is left of the level."""
        accepted, right = (
            np.bincount(self.unit[f], minlength=self.units).astype(np.int64) for f in (whole, whole & part)
        )
        if self.by_box:
            accepted, right = accepted.sum(keepdims=True), right.sum(keepdims=True)
        most = 1 if self.by_box else int(accepted.max(initial=1))
        limits = evidence.limits(accepted, right, most, (1 + self.level) / 2)
        total = int(accepted.sum())
        return self.row(metric, int(right.sum()) / total if total else None, limits, total)

    def mean(self, metric: str, values: Floats) -> dict[str, Any]:
        """A mean, with a bootstrap interval over units."""
        if not len(values):
            return self.row(metric, None, (None, None), 0)
        weights = intervals.resamples(self.units, _DRAWS, seed("prompts", metric)).astype(np.float64)
        sums, counts = (np.bincount(self.unit, v, self.units) for v in (values, np.ones(len(values))))
        drawn = weights @ counts
        means = np.divide(weights @ sums, drawn, out=np.full(len(weights), np.nan), where=drawn > 0)
        return self.row(metric, float(values.mean()), intervals.percentile(means, self.level), len(values))


def _of_labels(view: _View, right: Flags, reference: dict[str, bool]) -> Iterator[dict[str, Any]]:
    answer, everything = view.column("answer"), np.ones(len(right), bool)
    yes, no = answer == "yes", answer == "no"
    agrees = (yes & right) | (no & ~right)
    yield view.share("accuracy", everything, agrees)
    yield view.share("sensitivity", right, yes)
    yield view.share("specificity", ~right, no)
    yield view.share("yes_right", yes, right)
    yield view.share("no_right", no, ~right)
    yield view.share("decided", everything, yes | no)
    yield view.share("unanimous", everything, view.column("agreement").astype(np.float64) >= 1 - 1e-9)
    yield view.mean("tokens", (view.column("tokens_sent") + view.column("tokens_written")).astype(np.float64))
    if reference:
        before = np.array([reference.get(i, np.nan) for i in view.column("annotation_id")], np.float64)
        both = ~np.isnan(before)
        shared = replace(view, rows=view.rows.filter(pa.array(both)), unit=view.unit[both])
        yield shared.mean("gain", agrees[both].astype(np.float64) - before[both])


def _of_counts(view: _View) -> Iterator[dict[str, Any]]:
    boxes, detected = (view.column(c).astype(np.float64) for c in ("boxes", "detected"))
    said = np.array([np.nan if a is None else float(a) for a in view.column("answer")])
    known = ~np.isnan(said)
    everything = np.ones(len(said), bool)
    yield view.share("right", everything, said == boxes)
    yield view.share("detector_right", everything, detected == boxes)
    yield view.share("agreeing", everything, said == detected)
    yield view.share("agreeing_right", said == detected, said == boxes)
    yield view.share("unanimous", everything, view.column("agreement").astype(np.float64) >= 1 - 1e-9)
    answered = replace(view, rows=view.rows.filter(pa.array(known)), unit=view.unit[known])
    yield answered.mean("error", np.abs(said - boxes)[known])
    yield view.mean("detector_error", np.abs(detected - boxes))


def _reference(asked: pa.Table, right: Flags, name: str, used: str) -> dict[str, bool]:
    """annotation_id -> whether the wording in use was right about it."""
    mine = np.array(asked["prompt"].to_pylist(), object) == used
    if name != ALL:
        mine &= np.array(asked["class_name"].to_pylist(), object) == name
    answer = np.array(asked["answer"].to_pylist(), object)
    agrees = ((answer == "yes") & right) | ((answer == "no") & ~right)
    ids = np.array(asked["annotation_id"].to_pylist(), object)
    return dict(zip(ids[mine].tolist(), agrees[mine].tolist(), strict=True))
