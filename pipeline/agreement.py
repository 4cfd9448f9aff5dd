"""How far people agree: Krippendorff's alpha over all of them, Cohen's kappa of each pair.

Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"; Cohen 1960, "A coefficient of agreement
for nominal scales".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import boxes, schema
from pipeline.ids import seed

ALL = "all"
_NOTHING = "(nothing)"  # what a refusal says is there; no class can be called so, being one of the project's
_RESAMPLES = 500
_LEVEL = 0.95

Answers = NDArray[np.int64]  # (labels, people): the class that each person says it is, -1 where not asked


def krippendorff_alpha(answers: Answers) -> float | None:
    """Krippendorff's alpha for nominal answers.

    Args:
        answers: (n, m) codes >= 0; -1 where a person did not look at a label.

    Returns:
        1 for perfect agreement, 0 for what chance would give; None where no label was seen by two people
        or all answers are the same, so that there is nothing to disagree on.
    """
    counts = _counts(answers)
    counts = counts[counts.sum(axis=1) >= 2]
    if not len(counts):
        return None
    totals = counts.sum(axis=0)
    n = totals.sum()
    raters = counts.sum(axis=1)
    unlike = (raters**2 - (counts**2).sum(axis=1)) / (raters - 1)
    expected = (n**2 - (totals**2).sum()) / (n - 1)
    return float(1 - unlike.sum() / expected) if expected > 0 else None


def cohen_kappa(one: Answers, other: Answers) -> float | None:
    """Cohen's kappa of two people over (n,) codes >= 0; None without labels, or where chance explains all."""
    if not len(one):
        return None
    kinds = int(max(one.max(), other.max())) + 1
    table = np.bincount(one * kinds + other, minlength=kinds * kinds).reshape(kinds, kinds) / len(one)
    seen, chance = np.trace(table), float(table.sum(axis=1) @ table.sum(axis=0))
    return float((seen - chance) / (1 - chance)) if chance < 1 else None


def raw_agreement(answers: Answers) -> float | None:
    """Share of pairs of people, over all labels, that gave the same answer; None without pairs."""
    counts = _counts(answers)
    raters = counts.sum(axis=1)
    pairs = (raters * (raters - 1)).sum()
    return float((counts * (counts - 1)).sum() / pairs) if pairs else None


def measure(standing: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows of `agreement`.

    Args:
        standing: the decisions that count, as `decisions.standing` gives them. Labels that fewer than two
            people decided on say nothing and are left out; so are additions, which only one person saw.

    An answer is the class that a person leaves, or that there is nothing. Boxes are compared apart, by
    the mean IoU of the boxes that two people left on one label. Intervals: 95 %, labels resampled.
    """
    units: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for row in standing:
        if row["verdict"] != "add":
            units[row["annotation_id"]][row["reviewer"]] = row
    shared = {name: said for name, said in sorted(units.items()) if len(said) > 1}
    people = sorted({person for said in shared.values() for person in said})
    kinds = sorted({next(iter(said.values()))["asked_class"] or "" for said in shared.values()})
    rows: list[dict[str, Any]] = []
    for kind in [ALL, *kinds] if shared else []:
        mine = [s for s in shared.values() if kind in (ALL, next(iter(s.values()))["asked_class"] or "")]
        rows += _rows(kind, ALL, mine, people)
    for pair in combinations(people, 2):
        both = [{p: s[p] for p in pair} for s in shared.values() if all(p in s for p in pair)]
        rows += _rows(ALL, ", ".join(pair), both, list(pair)) if both else []
    return schema.table("agreement").from_rows(rows)


def _rows(kind: str, who: str, said: list[dict[str, Mapping[str, Any]]], people: list[str]) -> Iterable[dict[str, Any]]:
    answers = _answers(said, people)
    overlap = np.array([_mean_iou(s) for s in said])
    pair = who != ALL
    chance: Callable[[Answers], float | None] = (
        (lambda a: cohen_kappa(a[:, 0], a[:, 1])) if pair else krippendorff_alpha
    )
    drawn = np.random.default_rng(seed("agreement", kind, who)).integers(0, len(said), (_RESAMPLES, len(said)))
    unlike = int(sum(len(set(row[row >= 0])) > 1 for row in answers))
    for metric, value, resampled in (
        ("cohen_kappa" if pair else "krippendorff_alpha", chance(answers), [chance(answers[d]) for d in drawn]),
        ("raw_agreement", raw_agreement(answers), [raw_agreement(answers[d]) for d in drawn]),
        ("mean_iou", _mean(overlap), [_mean(overlap[d]) for d in drawn]),
    ):
        found = [v for v in resampled if v is not None]
        low, high = np.quantile(found, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]) if found else (None, None)
        yield {
            "class_name": kind,
            "reviewers": who,
            "metric": metric,
            "value": value,
            "low": None if value is None else low,
            "high": None if value is None else high,
            "items": len(said),
            "disagreements": unlike,
        }


def _answers(said: list[dict[str, Mapping[str, Any]]], people: list[str]) -> Answers:
    names = [[s[p]["class_name"] or _NOTHING if p in s else None for p in people] for s in said]
    codes = {name: i for i, name in enumerate(sorted({n for row in names for n in row if n is not None}))}
    return np.array([[-1 if n is None else codes[n] for n in row] for row in names], np.int64)


def _counts(answers: Answers) -> NDArray[np.float64]:
    """(n, kinds) how many people gave each answer."""
    kinds = int(answers.max(initial=-1)) + 1
    return (
        np.stack([(answers == k).sum(axis=1) for k in range(kinds)], axis=1).astype(np.float64)
        if kinds
        else (np.zeros((len(answers), 0)))
    )


def _mean_iou(said: Mapping[str, Mapping[str, Any]]) -> float:
    """Mean IoU of the boxes that pairs of people left on one label; NaN where no two left one."""
    left = [[row[key] for key in schema.CORNERS] for row in said.values() if row["x1"] is not None]
    if len(left) < 2:
        return np.nan
    first, second = np.triu_indices(len(left), 1)
    return float(boxes.iou(left, left)[first, second].mean())


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
