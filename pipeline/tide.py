"""Why detections are wrong and objects missed, and what each kind of error and each single one costs in AP.

TIDE (Bolya et al. 2020, "A General Toolbox for Identifying Object Detection Errors"), with the results of
the package tidecv 1.0.1, its treatment of equal scores and of ignore regions included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.curves import counts_to_reach, interpolated
from pipeline.matching import assign, ranks

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)
RIGHT = -1
NEAR = 0.1  # below this overlap a detection has nothing to do with an object
MOST = 100  # detections of an image that count
_RECALLS = np.arange(101) / 100
_CELLS_AT_ONCE = 2_000_000
_OF_SEEN = ("kind", "score", "turn", "error", "excused", "mends", "own", "other")


@dataclass(frozen=True)
class Judged:
    """n detections and m objects of K classes, judged.

    Attributes:
        kind, score: (n,) of the detections. truth_kind, truth_ignore: (m,) of the objects.
        turn: (n,) place of each detection image after image, best score first.
        error: (n,) RIGHT, or the number of the kind of error. hit: (n,) object found, -1 for none.
        excused: (n,) in an ignore region of its class: neither right nor wrong.
        target: (n,) object that would have been found but for the class or the place, -1 for none.
        mends: (n,) whether it is the best detection of a target that nothing found.
        own, other: (n,) overlap with the nearest object of its class, and of another.
        found: (m,) objects found. missed: (m,) those that nothing found, nor nearly found.
    """

    classes: int
    kind: Ints
    score: Floats
    truth_kind: Ints
    truth_ignore: Flags
    turn: Ints
    error: Ints
    hit: Ints
    excused: Flags
    target: Ints
    mends: Flags
    own: Floats
    other: Floats
    found: Flags
    missed: Flags

    @property
    def totals(self) -> Ints:
        """(K,) objects that count."""
        return np.bincount(self.truth_kind[~self.truth_ignore], minlength=self.classes)

    def of(self, seen: Flags, truth: Flags) -> Judged:
        """The same for some images: (n,) and (m,) which detections and objects are on these."""
        number = np.append(np.cumsum(truth) - 1, -1)  # the last is for -1, no object
        return replace(
            self,
            **{k: getattr(self, k)[seen] for k in _OF_SEEN},
            **{k: getattr(self, k)[truth] for k in ("truth_kind", "truth_ignore", "found", "missed")},
            hit=number[self.hit[seen]],
            target=number[self.target[seen]],
        )


def judge(
    image: Ints,
    kind: Ints,
    score: Floats,
    truth_kind: Ints,
    truth_ignore: Flags,
    pairs: tuple[Ints, Ints, Floats],
    classes: int,
    iou: float = 0.5,
) -> Judged:
    """Match detections with objects of their class, and say why the others are wrong.

    Args:
        image, kind, score: (n,) of the detections. truth_kind, truth_ignore: (m,) of the objects.
        pairs: detection, object and overlap of all pairs in one image, whatever their class, that overlap
            by at least NEAR; with ignore regions the overlap is the share of the detection inside.
        iou: overlap from which on an object is found.
    """
    n, m = len(kind), len(truth_kind)
    by_image = np.lexsort((-score, image))
    turn = np.empty(n, np.int64)
    turn[by_image] = np.arange(n)
    i, j, overlap = pairs
    ignored = truth_ignore[j]
    alike = kind[i] == truth_kind[j]
    inside = ignored & alike & (overlap > iou)
    excused = np.zeros(n, bool)
    excused[i[inside]] = True
    i, j, overlap, alike = i[~ignored], j[~ignored], overlap[~ignored], alike[~ignored]
    hit = _matched(image * classes + kind, turn, i[alike], m - 1 - j[alike], overlap[alike], m, iou)
    hit[hit >= 0] = m - 1 - hit[hit >= 0]
    found = np.zeros(m, bool)
    found[hit[hit >= 0]] = True
    excused &= hit < 0
    own, own_object = _nearest(n, i[alike], j[alike], overlap[alike])
    other, other_object = _nearest(n, i[~alike], j[~alike], overlap[~alike])
    again = alike & found[j] & (overlap >= iou)
    twice = np.zeros(n, bool)
    twice[i[again]] = True
    error = np.select(
        [
            hit >= 0,
            (own >= NEAR) & (own <= iou),
            other >= iou,
            twice,
            np.maximum(own, other) <= NEAR,
        ],
        [RIGHT, LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUND],
        BOTH,
    )
    target = np.select([error == LOCALISATION, error == CLASSIFICATION], [own_object, other_object], -1)
    target[target >= 0] = np.where(found[target[target >= 0]], -1, target[target >= 0])
    mends = _first_of_each(target, np.lexsort((turn, -score)))
    usable = np.zeros(m, bool)
    usable[target[mends]] = True
    missed = ~found & ~usable & ~truth_ignore
    return Judged(
        classes,
        kind,
        score,
        truth_kind,
        truth_ignore,
        turn,
        error,
        hit,
        excused,
        target,
        mends,
        own,
        other,
        found,
        missed,
    )


def best_of_image(image: Ints, score: Floats, most: int = MOST) -> Flags:
    """(n,) the `most` best-scored detections of each image."""
    return ranks(image, np.argsort(-score, kind="stable")) < most


def _matched(group: Ints, turn: Ints, i: Ints, j: Ints, overlap: Floats, objects: int, iou: float) -> Ints:
    """(n,) object that each detection finds; of equal overlaps the later object."""
    rank = ranks(group, np.argsort(turn))
    none = np.zeros(objects, bool)
    hits = assign(group, rank, i, j, overlap, none, none[None], np.array([iou]))
    hit = np.full(len(group), -1, np.int64)
    hit[hits.seen] = hits.truth
    return hit


def _nearest(n: int, i: Ints, j: Ints, overlap: Floats) -> tuple[Floats, Ints]:
    """(n,) largest overlap, 0 for none, and its object: the first of equal ones."""
    order = np.lexsort((-j, overlap, i))
    i, j, overlap = i[order], j[order], overlap[order]
    last = np.flatnonzero(np.r_[i[1:] != i[:-1], True][: len(i)])
    most, nearest = np.zeros(n), np.full(n, -1, np.int64)
    most[i[last]], nearest[i[last]] = overlap[last], j[last]
    return most, nearest


def _first_of_each(target: Ints, order: Ints) -> Flags:
    """(n,) the first in `order` of those that have the same target."""
    order = order[target[order] >= 0]
    _, first = np.unique(target[order], return_index=True)
    chosen = np.zeros(len(target), bool)
    chosen[order[first]] = True
    return chosen


def mean_precision(judged: Judged) -> float:
    """AP at the one overlap, averaged as tidecv does: over classes that occur in detections or objects."""
    points = np.flatnonzero(~judged.excused)
    right = judged.error[points] == RIGHT
    return _mean(judged.kind[points], _levels(judged.score)[points], judged.turn[points], right, judged.totals)


def costs(judged: Judged) -> dict[str, float]:
    """By how much AP rises when all errors of a kind are mended, those of other kinds left as they are.

    `false_positives` and `false_negatives` are TIDE's special errors: every wrong detection scored lowest,
    and every object that nothing found forgotten. NaN without detections and objects.
    """
    before = mean_precision(judged)
    wrong, level = judged.error != RIGHT, _levels(judged.score)
    # As in tidecv, what was wrong comes before what is right of equal score.
    turn = np.where(wrong, judged.turn, judged.turn + len(wrong))
    out = {}
    for number, name in enumerate(KINDS):
        mine = judged.error == number
        fixed = mine & judged.mends
        kind = judged.kind.copy()
        kind[fixed] = judged.truth_kind[judged.target[fixed]]
        points = np.flatnonzero(fixed | (~mine & ~judged.excused))
        gone = judged.missed if number == MISSED else np.zeros(len(judged.missed), bool)
        totals = judged.totals - np.bincount(judged.truth_kind[gone], minlength=judged.classes)
        after = _mean(kind[points], level[points], turn[points], (fixed | ~wrong)[points], totals)
        out[name] = max(after - before, 0.0)
    points = np.flatnonzero(~judged.excused)
    kind, right = judged.kind[points], ~wrong[points]
    totals = judged.totals
    out["false_positives"] = _mean(kind, (~right).astype(np.int64), turn[points], right, totals) - before
    totals = totals - np.bincount(judged.truth_kind[~judged.found & ~judged.truth_ignore], minlength=judged.classes)
    out["false_negatives"] = _mean(kind, level[points], turn[points], right, totals) - before
    return out


def counts(judged: Judged) -> dict[str, int]:
    """How many errors of each kind there are."""
    wrong = np.bincount(judged.error[judged.error >= 0], minlength=len(KINDS))
    wrong[MISSED] = judged.missed.sum()
    return dict(zip(KINDS, wrong.tolist(), strict=True))


def _levels(score: Floats) -> Ints:
    """(n,) number of each score among the different ones, 0 for the best."""
    return np.unique(-score, return_inverse=True)[1].astype(np.int64)


def _mean(kind: Ints, level: Ints, turn: Ints, right: Flags, totals: Ints) -> float:
    """Mean AP of detections in order of class, level of score and turn, over classes that occur."""
    # One number holds all of it: sorting values is far quicker than sorting by three keys.
    levels, turns = (int(a.max(initial=0)) + 1 for a in (level, turn))
    key = np.sort(((kind * levels + level) * turns + turn) * 2 + right)
    precision, first = _precision(key // (2 * levels * turns), (key & 1).astype(bool), len(totals))
    curves = interpolated(precision, first, counts_to_reach(totals, _RECALLS))
    there = (np.bincount(kind, minlength=len(totals)) > 0) | (totals > 0)
    return float(curves.mean(axis=1)[there].mean()) if there.any() else float("nan")


def _precision(kind: Ints, right: Flags, classes: int) -> tuple[Floats, Ints]:
    """Precision at each right detection of a sorted list, and where each class begins among these."""
    start = np.searchsorted(kind, np.arange(classes))
    place = np.flatnonzero(right)
    first = np.searchsorted(kind[place], np.arange(classes + 1))
    found = np.arange(1, len(place) + 1) - first[kind[place]]
    return found / (place + 1 - start[kind[place]]), first


# -- single errors ----------------------------------------------------------------------------------


def single_costs(judged: Judged) -> tuple[Floats, Floats]:
    """By how much AP would rise if one error alone were mended.

    A wrong detection is taken away or, where it `mends` a target, made right; an object that nothing
    found is forgotten. AP is the mean over classes that have objects.

    Returns:
        (n,) of the detections, 0 for those that are not wrong, and (m,) of the objects, 0 for those
        that are found. NaN where no object would be left.
    """
    totals = judged.totals
    rise_seen, rise_truth = np.zeros(len(judged.kind)), np.zeros(len(judged.truth_kind))
    present = int((totals > 0).sum())
    wrong = (judged.error != RIGHT) & ~judged.excused
    moved = wrong & judged.mends & (judged.error == LOCALISATION)
    renamed = wrong & judged.mends & (judged.error == CLASSIFICATION)
    renamed_to = np.full(len(judged.kind), -1, np.int64)
    renamed_to[renamed] = judged.truth_kind[judged.target[renamed]]
    value, forgotten = np.zeros(len(totals)), np.zeros(len(totals))
    for number in np.flatnonzero(totals):
        mine = np.flatnonzero(~judged.excused & (judged.kind == number))
        mine = mine[np.lexsort((judged.turn[mine], -judged.score[mine]))]
        curve = _Curve.of(judged.error[mine] == RIGHT, int(totals[number]))
        value[number], forgotten[number] = curve.value(), curve.value(1)
        place = np.arange(len(mine))
        away, better = place[(wrong & ~moved)[mine]], place[moved[mine]]
        rise_seen[mine[away]] += curve.changed(away, 0, -1) - value[number]
        rise_seen[mine[better]] += curve.changed(better, 1, 0) - value[number]
        new = np.flatnonzero(renamed_to == number)
        slots = _slots(judged.score, judged.turn, mine, new)
        rise_seen[new] += curve.changed(slots, 1, 1) - value[number]
    unfound = ~judged.found & ~judged.truth_ignore
    kind = judged.truth_kind[unfound]
    last = totals[kind] == 1
    after = value.sum() - value[kind] + np.where(last, 0, forgotten[kind])
    classes = (present - last).astype(np.float64)
    classes[classes == 0] = np.nan
    rise_truth[unfound] = after / classes - value.sum() / max(1, present)
    return rise_seen / max(1, present), rise_truth


def _slots(score: Floats, turn: Ints, mine: Ints, new: Ints) -> Ints:
    """(k,) how many of the detections `mine` come before each of `new`."""
    both = np.concatenate([mine, new])
    order = np.lexsort((turn[both], -score[both]))
    ahead = np.empty(len(both), np.int64)
    ahead[order] = np.cumsum(order < len(mine))
    return ahead[len(mine) :]


@dataclass(frozen=True)
class _Curve:
    """One class's list: (p,) places of the right detections, and how many objects there are."""

    right: Ints
    total: int

    @classmethod
    def of(cls, right: Flags, total: int) -> _Curve:
        return cls(np.flatnonzero(right), total)

    def value(self, fewer: int = 0) -> float:
        """AP, with some objects fewer."""
        return float(self._best(0, 0)[np.minimum(self._steps(self.total - fewer), len(self.right))].mean())

    def changed(self, place: Ints, found: int, seen: int) -> Floats:
        """(k,) AP if from each place on `found` more are right, one of them there, of `seen` more detections."""
        out = np.empty(len(place))
        size = max(1, _CELLS_AT_ONCE // len(_RECALLS))
        for low in range(0, len(place), size):
            part = place[low : low + size]
            out[low : low + size] = self._changed(part, found, seen).mean(axis=1)
        return out

    def _changed(self, place: Ints, found: int, seen: int) -> Floats:
        step = self._steps(self.total)[None]
        before = np.searchsorted(self.right, place)[:, None]
        then = self._best(found, seen)
        # Whatever is mended lifts what comes after, so the best of before and after is that of the old
        # curve before and the new one after.
        least = then[before]
        if found:
            least = np.maximum(least, (before + 1) / (place[:, None] + 1))
        earlier = np.maximum(self._best(0, 0)[np.minimum(step, len(self.right))], least)
        later = then[np.clip(step - found, 0, len(self.right))]
        return np.where(step < before, earlier, np.where((step == before) & (found > 0), least, later))

    def _best(self, found: int, seen: int) -> Floats:
        """(p + 1,) best precision at each right detection or after it, 0 at last."""
        count = np.arange(1, len(self.right) + 1) + found
        precision = count / np.maximum(self.right + 1 + seen, 1)
        return np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)

    def _steps(self, total: int) -> Ints:
        """(R,) which right detection reaches each recall, counted from 0; more than there are where none does."""
        return counts_to_reach(np.array([total]), _RECALLS)[0] - 1
