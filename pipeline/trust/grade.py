"""The table of trust: every labeller, class and slice with its threshold and what gold says of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import TrustConfig
from pipeline.ids import fingerprint
from pipeline.trust import evidence
from pipeline.trust.certify import Floats, Ints, Tally
from pipeline.trust.gold import ALL, Case, Gold, cases
from pipeline.trust.judge import Kind

# More gold than this many times what there is is no advice.
_MOST_TIMES = 50
# Bets need this many times the evidence expected before they have won it.
_BETTING_MARGIN = 1.3
# Below this many answers, the best precision seen is hearsay.
_LEAST_SEEN = 10
_WORDS = {"fixed_sequence": "fixed sequence", "holm": "Holm"}


def grade(
    candidates: pa.Table,
    ground_truth: pa.Table,
    gold: Gold,
    config: TrustConfig,
    classes: Sequence[str],
    kind: Kind = "detection",
    producers: Iterable[str] = (),
    scope: str = ALL,
) -> pa.Table:
    """Rows of `trust`: a threshold with a certificate, or why there is none, of every producer and class.

    The certificate: with probability 1 - delta over the draw of gold, the answers at or above the
    threshold are right at a rate above the target on images that gold is exchangeable with. Each row
    has its own delta.

    Args:
        candidates: detections, predictions or tags. Of tags, the best class of each image counts,
            and its probability is the score.
        classes: names of the ontology, in order.
        producers: graded even if they said nothing.
        scope: what the rows of all gold are called in `slice`. Rows of slices are made where gold could
            certify them.
    """
    graded = []
    for case in cases(candidates, ground_truth, gold, config, classes, kind, producers, scope):
        row = {"producer": case.producer, "class_name": case.class_name, "slice": case.slice, **_graded(case, config)}
        graded.append(row | {"certificate": certificate(row, case.frame.name) if row["certified"] else None})
    return schema.table("trust").from_rows(graded)


def other_targets(
    candidates: pa.Table, ground_truth: pa.Table, gold: Gold, config: TrustConfig, classes: Sequence[str], kind: Kind
) -> pa.Table:
    """The table `targets`: what `grade` would say of all gold at `trust.targets`, and at the project's own."""
    whole = replace(gold, slices=None)
    wanted = sorted({*config.targets, config.target})
    parts = [
        grade(candidates, ground_truth, whole, config.model_copy(update={"target": target}), classes, kind)
        for target in wanted
    ]
    return schema.table("targets").conform(pa.concat_tables(parts))


def _graded(case: Case, config: TrustConfig) -> dict[str, Any]:
    """What gold says, for one row of `trust`."""
    answers, trial, frame = case.answers, case.trial, case.frame
    tally, chosen = trial.tally, trial.chosen
    place = _best_seen(tally, trial.p_values) if chosen is None else chosen
    accepted, good, most = tally.accepted[:, place], tally.right[:, place], int(tally.most[place])
    by_box = config.unit == "box"
    inside = case.place >= 0
    of_image = np.zeros_like(case.place) if by_box else case.place
    objects = np.bincount(of_image[inside], answers.objects[inside], len(accepted)).astype(np.int64)
    candidates = np.bincount(of_image[answers.image], minlength=len(accepted))
    kept = np.zeros_like(accepted) if chosen is None else accepted
    found = np.zeros_like(good) if chosen is None else good
    row = {
        "threshold": None if chosen is None else float(trial.grid[place]),
        "target": config.target,
        "confidence": 1 - config.delta,
        "gold": int(objects.sum()),
        "units": case.units,
        "candidates": len(answers.score),
        "accepted": int(accepted.sum()),
        "certified": chosen is not None,
        "unit": config.unit,
        "most": None if by_box or chosen is None else most,
        "method": _method(config, frame.borrowed, bool((tally.most > 1).any())),
        "more_gold": more_gold(tally, case.units, config) if chosen is None else None,
        **ratio("precision", accepted, good, most, config),
        **ratio("recall", objects, found, 1 if by_box else int(objects.max(initial=1)), config),
        **ratio("coverage", candidates, kept, 1 if by_box else int(candidates.max(initial=1)), config),
    }
    return {**row, "note": _note(row)}


def certificate_of(case: Case, config: TrustConfig) -> str | None:
    """The name of the certificate that `grade` gives in this case; None where it gives none."""
    if case.trial.chosen is None:
        return None
    row = {"producer": case.producer, "class_name": case.class_name, "slice": case.slice, **_graded(case, config)}
    return certificate(row, case.frame.name)


def _best_seen(tally: Tally, p_values: Floats) -> int:
    """Place of the score that gold speaks for most, among those with answers enough to say anything."""
    total = tally.accepted.sum(axis=0)
    enough = total >= min(_LEAST_SEEN, int(total.max(initial=0)))
    return int(np.argmin(np.where(enough, p_values, np.inf)))


def ratio(name: str, whole: Ints, part: Ints, most: int, config: TrustConfig) -> dict[str, float | None]:
    """A share with its one-sided limits."""
    total = int(whole.sum())
    low, high = evidence.limits(whole, part, most, 1 - config.delta)
    return {name: int(part.sum()) / total if total else None, f"{name}_low": low, f"{name}_high": high}


def more_gold(tally: Tally, units: int, config: TrustConfig) -> int | None:
    """Images (or locations) that would likely certify some score if they are like those seen; None if none would."""
    best = None
    for place in range(tally.accepted.shape[1]):
        accepted, good = tally.accepted[:, place], tally.right[:, place]
        total = int(accepted.sum())
        if total < _LEAST_SEEN:
            continue
        if tally.most[place] <= 1:
            answers = evidence.units_needed(int(good.sum()) / total, config.target, config.delta)
            needed = None if answers is None else answers / total
        else:
            capital = evidence.log_capital(accepted, good, int(tally.most[place]), config.target)
            needed = _BETTING_MARGIN * np.log(1 / config.delta) / capital if capital > 0 else None
        best = needed if best is None or (needed is not None and needed < best) else best
    if best is None or best > _MOST_TIMES:
        return None
    # What passes by itself but not among the many tried is near: a quarter more is a round guess.
    return max(1, int(np.ceil(max(best - 1, 0.25) * units)))


def _method(config: TrustConfig, borrowed: bool, clustered: bool) -> str:
    test = f"bets on {config.unit}s" if clustered else "exact binomial"
    grid = "a fifth of gold, not graded on" if borrowed else "labelled images outside gold"
    return f"Learn-then-Test, {_WORDS[config.method]}; {test}; grid over scores of {grid}"


def certificate(row: Mapping[str, Any], gold: str) -> str:
    """Names what was promised, to whom, and on which gold."""
    keys = ("producer", "class_name", "slice", "threshold", "target", "confidence", "unit", "most", "method")
    return fingerprint(gold, [row[k] for k in keys])


def _note(row: Mapping[str, Any]) -> str:
    unit = {"location": "locations"}.get(row["unit"], "images")
    if not row["gold"]:
        return "gold holds no object of this class: nothing can be said"
    if row["precision"] is None:
        return "the labeller found nothing of this class on gold"
    right = round(row["precision"] * row["accepted"])
    seen = f"{right} of {row['accepted']} right ({row['precision']:.0%}) on {row['units']} {unit}"
    if row["certified"]:
        promise = f"above {row['target']:.0%} at {row['confidence']:.0%} confidence"
        return f"certified {promise}: {seen}; accepts {row['coverage']:.0%} of its answers"
    if row["more_gold"] is None:
        return f"not certified: at best {seen}, and no score is clearly better than {row['target']:.0%}"
    return f"not certified: at best {seen}; about {row['more_gold']} more gold {unit} would likely certify it"
