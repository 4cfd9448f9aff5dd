"""In which classes a verifier's word counts: its yes and its no, graded on gold like a labeller's answers.

A verifier is asked about labels that their labeller's certificate leaves open, and which these are depends on a
threshold that was chosen on the same gold. So a rule ("all attempts say yes, the labeller's score is 0.3 or more")
is not only tested on what is left open by the threshold in use, but one after the other on what is left by every
stricter one, beginning with none, each at full level. If it is not good enough on what is left by the threshold in
use, whichever that came to be, then there is a first one in that order of which this is true, and to pass it had to
be passed: so the chance of that is at most delta (fixed-sequence testing, with a place to stop that the data may
choose). The few rules that are tried share delta evenly (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import TrustConfig
from pipeline.ids import fingerprint
from pipeline.trust import evidence
from pipeline.trust.certify import Flags, Floats, Ints, Tally, caps
from pipeline.trust.examination import Plan
from pipeline.trust.gold import Case, Gold, cases
from pipeline.trust.grade import certificate_of, more_gold, ratio
from pipeline.trust.judge import Kind

BATCH = "batch:"  # begins the name of a slice that is the gold of one batch


def grade_verifier(
    examinations: pa.Table,
    candidates: pa.Table,
    ground_truth: pa.Table,
    gold: Gold,
    plan: Plan,
    config: TrustConfig,
    classes: Sequence[str],
    kind: Kind,
) -> pa.Table:
    """Rows of `verifier_trust`: where the verifier's yes, and its no, is certified.

    The certificate of a yes: with probability 1 - delta over the draw of gold, of the labels that their
    labeller's own certificate leaves open, that score at least `threshold`, and of which at least `agreement`
    of the attempts say yes (of one unit the best `most`), more than the target are right. That of a no: more
    than the target are wrong. Each row has its own delta.

    Args:
        examinations: its answers to label questions, all of one verifier and prompt.
        candidates: annotation rows as labels are made of them; `plan` says which of them were to be asked about.
        gold, config, classes, kind: as in `grade`.
    """
    if not examinations.num_rows:
        return schema.table("verifier_trust").empty()
    heard = _Heard(examinations, plan)
    rows = []
    for case in cases(candidates, ground_truth, _batches_only(gold), config, classes, kind):
        cuts = plan.cuts.get((case.producer, case.class_name))
        if cuts is None:
            continue
        asked = heard.of(case, cuts[-1])
        if asked.said.any():
            rows += [graded(case, asked, answer, cuts, config) for answer in ("yes", "no")]
    for row in rows:
        row |= {"verifier": examinations["verifier"][0].as_py(), "floor": row.pop("floor"), **heard.price}
        row["certificate"] = _certificate(row, plan.frame.name) if row["certified"] else None
    return schema.table("verifier_trust").from_rows(rows)


@dataclass(frozen=True)
class Asked:
    """Of the (n,) answers of a case: those on units that were examined to the end, and what was said of them.

    Attributes:
        said: (n,) whether the verifier was asked. answer: (n,) yes, no, or something else. agreement: (n,)
            share of its attempts. attempts: how many there were. units: (u,) which units count.
    """

    said: Flags
    answer: NDArray[np.object_]
    agreement: Floats
    attempts: int
    units: Flags

    def levels(self) -> list[float]:
        """Shares of the attempts that make a majority, the strictest first."""
        return [votes / self.attempts for votes in range(self.attempts, self.attempts // 2, -1)]


class _Heard:
    """What the verifier said of the labels that it was to be asked about."""

    def __init__(self, examinations: pa.Table, plan: Plan) -> None:
        self._rows = examinations
        self._ids = examinations["annotation_id"].combine_chunks()
        self._complete = plan.complete(self._ids)
        self._attempts = max(1, int(pc.max(examinations["attempts"]).as_py()))
        self.price = {k: float(pc.mean(examinations[k]).as_py()) for k in ("tokens_sent", "tokens_written")}

    def of(self, case: Case, floor: float) -> Asked:
        ids = case.found["annotation_id"].combine_chunks().take(pa.array(case.answers.row))
        place = pc.fill_null(pc.index_in(ids, self._ids), -1).to_numpy().astype(np.int64)
        units = np.ones(case.units, bool)
        units[case.place[(case.place >= 0) & ~self._complete]] = False
        said = (place >= 0) & units[case.unit] & (case.answers.score >= floor)
        answer = np.full(len(place), None, object)
        agreement = np.zeros(len(place))
        chosen = pa.array(place[said])
        answer[said] = self._rows["answer"].take(chosen).to_pylist()
        agreement[said] = self._rows["agreement"].take(chosen).to_numpy()
        return Asked(said, answer, agreement, self._attempts, units)


@dataclass(frozen=True)
class _Rule:
    """An answer that counts: from this labeller's score on, with this agreement, for the best `most` of a unit."""

    cut: float
    agreement: float
    most: int

    def tally(self, case: Case, asked: Asked, answer: str, open_: Flags, by_box: bool) -> tuple[Ints, Ints]:
        """(u,) answers of each examined unit that count among labels left open, and those of them that are right."""
        enough = (asked.agreement >= self.agreement - 1e-9) & (case.answers.score >= self.cut)
        counts = np.flatnonzero(asked.said & open_ & enough & (asked.answer == answer))
        right = case.answers.right[counts] == (answer == "yes")
        unit = case.unit[counts]
        if by_box:
            return np.array([len(counts)]), np.array([int(right.sum())])
        kept = _rank(unit, case.answers.score[counts]) < self.most
        size = len(asked.units)
        made = (np.bincount(unit[kept], minlength=size), np.bincount(unit[kept & right], minlength=size))
        return made[0][asked.units].astype(np.int64), made[1][asked.units].astype(np.int64)


def graded(case: Case, asked: Asked, answer: str, cuts: Sequence[float], config: TrustConfig) -> dict[str, Any]:
    """One row of `verifier_trust`, but for the verifier's name and price.

    Args:
        cuts: scores from which labels are asked about, the strictest first.
    """
    by_box = config.unit == "box"
    # A no is worth most where labels are likely wrong, so it is tried on all that is asked about.
    tried = cuts if answer == "yes" else cuts[-1:]
    share = config.model_copy(update={"delta": config.delta / (len(tried) * len(asked.levels()))})
    rules = list(_rules(case, asked, tried, share))
    last = left_open(case, case.trial.chosen, by_box)
    tallies = [rule.tally(case, asked, answer, last, by_box) for rule in rules]
    p_values = np.array([_p_value(rule, *t, share) for rule, t in zip(rules, tallies, strict=True)])
    sure = [
        i for i, rule in enumerate(rules) if p_values[i] <= share.delta and _holds(case, asked, answer, rule, share)
    ]
    best = max(sure, key=lambda i: (tallies[i][0].sum(), -i)) if sure else int(np.argmin(p_values))
    (counted, good), rule = tallies[best], rules[best]
    accepted, agreed = (np.stack(columns, axis=1) for columns in zip(*tallies, strict=True))
    tally = Tally(accepted, agreed, np.array([r.most for r in rules]))
    units = int(asked.units.sum())
    row = {
        "producer": case.producer,
        "class_name": case.class_name,
        "slice": case.slice,
        "answer": answer,
        "certified": bool(sure),
        "threshold": rule.cut if sure else None,
        "agreement": rule.agreement if sure else None,
        "target": config.target,
        "confidence": 1 - config.delta,
        **ratio("precision", counted, good, rule.most, config),
        "answers": int(counted.sum()),
        **_confusion(case, asked, last),
        "units": units,
        "unit": config.unit,
        "most": None if by_box or not sure else rule.most,
        "more_gold": None if sure else more_gold(tally, units, share),
        "floor": cuts[-1],
        "beside": certificate_of(case, config),
        "method": _method(len(rules), 1 if case.trial.chosen is None else case.trial.chosen + 2, config),
    }
    return row | {"note": _note(row, int(good.sum()))}


def left_open(case: Case, chosen: int | None, by_box: bool) -> Flags:
    """(n,) answers that the labeller's threshold at that place of its grid does not accept; None: no threshold."""
    if chosen is None:
        return np.ones(len(case.answers.score), bool)
    passed = case.answers.score >= case.trial.grid[chosen]
    if by_box:
        return ~passed
    return ~(passed & (_rank(case.unit, case.answers.score) < case.trial.tally.most[chosen]))


def _holds(case: Case, asked: Asked, answer: str, rule: _Rule, config: TrustConfig) -> bool:
    """Whether the rule passes on what every threshold from none to the one in use leaves open."""
    chosen, by_box = case.trial.chosen, config.unit == "box"
    for place in [None, *range(0 if chosen is None else chosen + 1)]:
        counted, good = rule.tally(case, asked, answer, left_open(case, place, by_box), by_box)
        if _p_value(rule, counted, good, config) > config.delta:
            return False
    return True


def _p_value(rule: _Rule, counted: Ints, good: Ints, config: TrustConfig) -> float:
    most = np.array([rule.most])
    return float(evidence.p_values(counted[:, None], good[:, None], most, config.target)[0])


def _rules(case: Case, asked: Asked, cuts: Sequence[float], config: TrustConfig) -> Iterator[_Rule]:
    """Rules to try. How many labels of one unit each is for depends on other images' scores alone."""
    most = np.ones(len(cuts), np.int64)
    if config.unit != "box":
        answers = case.design.counts(np.array(cuts, np.float64))
        most, _ = caps(answers, int(asked.units.sum()), config.target, config.delta)
    for agreement in asked.levels():
        for cut, cap in zip(cuts, most.tolist(), strict=True):
            yield _Rule(cut, agreement, cap)


def _confusion(case: Case, asked: Asked, open_: Flags) -> dict[str, int]:
    """Right and wrong labels left open, by what most attempts say."""
    mine = asked.said & open_
    counts: dict[str, int] = {"asked": int(mine.sum())}
    for name, truth in (("right", case.answers.right), ("wrong", ~case.answers.right)):
        yes, no = (int((mine & truth & (asked.answer == a)).sum()) for a in ("yes", "no"))
        counts |= {f"{name}_yes": yes, f"{name}_no": no, f"{name}_open": int((mine & truth).sum()) - yes - no}
    return counts


def _rank(unit: Ints, score: Floats) -> Ints:
    """(n,) place of each answer in its unit, best score first; ties go by their order."""
    order = np.lexsort((-score, unit))
    first = np.searchsorted(unit[order], unit[order])
    rank = np.empty(len(unit), np.int64)
    rank[order] = np.arange(len(unit)) - first
    return rank


def _batches_only(gold: Gold) -> Gold:
    """Gold with the slices that stand in when all of gold does not speak for a batch."""
    if gold.slices is None:
        return gold
    return replace(gold, slices=gold.slices.filter(pc.starts_with(gold.slices["slice"], BATCH)))


def _certificate(row: dict[str, Any], gold: str) -> str:
    keys = ("verifier", "producer", "class_name", "slice", "answer", "threshold", "agreement", "target", "confidence")
    return fingerprint(gold, [row[k] for k in (*keys, "unit", "most", "beside", "method")])


def _method(rules: int, pools: int, config: TrustConfig) -> str:
    test = "exact binomial" if config.unit == "box" else f"bets on {config.unit}s"
    left = "labels of every score" if pools == 1 else f"what {pools} thresholds in sequence leave open"
    return f"{test}; {rules} rules (Bonferroni); on {left}"


def _note(row: dict[str, Any], right: int) -> str:
    what = "right" if row["answer"] == "yes" else "wrong"
    unit = {"location": "locations"}.get(row["unit"], "images")
    if not row["answers"]:
        return f"it never says {row['answer']} of such labels on gold"
    seen = f"{right} of {row['answers']} {what} ({row['precision']:.0%}) on {row['units']} {unit}"
    if row["certified"]:
        rule = f"{row['agreement']:.0%} of its attempts, labels scored {row['threshold']:.3f} or more"
        return f"certified above {row['target']:.0%} at {row['confidence']:.0%} confidence: {seen}; {rule}"
    if row["more_gold"] is None:
        return f"not certified: at best {seen}, and that is not clearly above {row['target']:.0%}"
    return f"not certified: at best {seen}; about {row['more_gold']} more gold {unit} would likely certify it"
