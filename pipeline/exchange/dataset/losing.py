"""What formats cannot hold, said of each label that it is true of, and summed up where it is true of all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pipeline.exchange.tasks import Loss, Row

_FLAGS = {"is_crowd": "a crowd", "ignore": "to be ignored", "truncated": "cut by its tile's edge"}


@dataclass
class Losses:
    """Losses of one file format.

    Args:
        name: of the format, for people.
        holds: of score, annotation_id, is_crowd, ignore, truncated, those that it can hold.
    """

    name: str
    holds: frozenset[str] = frozenset()
    found: list[Loss] = field(default_factory=list)
    _counts: Counter[str] = field(default_factory=Counter)

    def lose(self, row: Row, what: str) -> None:
        """One thing about one label."""
        self.found.append(Loss(f"label {row['annotation_id']}", what))

    def flags(self, row: Row) -> None:
        """What of a label that is written is not."""
        for key, words in _FLAGS.items():
            if row[key] and key not in self.holds:
                self.lose(row, f"{self.name} does not hold that it is {words}")
        self._counts["labels"] += 1
        self._counts["scores"] += row["score"] != 1

    def all(self) -> list[Loss]:
        """Every loss; scores and ids, which a format has or has not, in one line each."""
        n = self._counts
        if "score" not in self.holds and n["scores"]:
            self.found.append(Loss(f"{n['scores']} scores", f"{self.name} holds none"))
        if "annotation_id" not in self.holds and n["labels"]:
            self.found.append(Loss(f"{n['labels']} ids of labels", f"{self.name} holds none"))
        return self.found
