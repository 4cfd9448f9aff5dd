"""One class out of several labellers' answers: by vote, or by how reliable each labeller seems to be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LEAST = 1e-10  # of a probability, so that its logarithm is finite
_ROUNDS, _GAIN = 100, 1e-5


def votes(item: Ints, answer: Ints, items: int, classes: int) -> Floats:
    """(items, classes) share of each item's answers; zeros where there are none."""
    counts = np.bincount(item * classes + answer, minlength=items * classes).reshape(items, classes).astype(np.float64)
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)


@dataclass(frozen=True)
class Skills:
    """What labellers say when what is true.

    Attributes:
        prior: (c,) share of each class. confusion: (w, c, c) probability that labeller w says the second
            class when the first is true.
    """

    prior: Floats
    confusion: Floats

    def classes_of(self, item: Ints, labeller: Ints, answer: Ints, items: int) -> Floats:
        """(items, c) probability of each class, given all answers to an item (the E-step)."""
        said = np.log(self.confusion)[labeller, :, answer]
        logs = np.tile(np.log(np.maximum(self.prior, _LEAST)), (items, 1))
        for c in range(len(self.prior)):
            logs[:, c] += np.bincount(item, said[:, c], items)
        raised = np.exp(logs - logs.max(axis=1, keepdims=True))
        return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float64)


def dawid_skene(item: Ints, labeller: Ints, answer: Ints, items: int, labellers: int, classes: int) -> Skills:
    """Skills from answers alone, by expectation maximisation from the votes (Dawid & Skene 1979).

    Args:
        item, labeller, answer: (n,) of each answer; every item below `items` has one.
    """
    probable = votes(item, answer, items, classes)
    skills = _learnt(probable, item, labeller, answer, labellers, classes)
    bound = -np.inf
    for _ in range(_ROUNDS):
        probable = skills.classes_of(item, labeller, answer, items)
        skills = _learnt(probable, item, labeller, answer, labellers, classes)
        now = _bound(skills, probable, item, labeller, answer) / max(1, len(item))
        if now - bound < _GAIN:
            break
        bound = now
    return skills


def _learnt(probable: Floats, item: Ints, labeller: Ints, answer: Ints, labellers: int, classes: int) -> Skills:
    """The M-step: priors and confusions of the most likely truth."""
    counts = np.zeros((labellers, classes, classes))
    place = labeller * classes + answer
    for true in range(classes):
        summed = np.bincount(place, probable[item, true], labellers * classes)
        counts[:, true, :] = summed.reshape(labellers, classes)
    counts = np.maximum(counts, _LEAST)
    prior = probable.mean(axis=0) if len(probable) else np.full(classes, 1 / classes)
    return Skills(prior, counts / counts.sum(axis=2, keepdims=True))


def _bound(skills: Skills, probable: Floats, item: Ints, labeller: Ints, answer: Ints) -> float:
    """Evidence lower bound of the answers."""
    joint = np.log(skills.confusion)[labeller, :, answer] + np.log(np.maximum(skills.prior, _LEAST))
    entropy = -(np.log(np.maximum(probable, _LEAST)) * probable).sum()
    return float((probable[item] * joint).sum() + entropy)
