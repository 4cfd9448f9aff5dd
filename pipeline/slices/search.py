"""The slices of a table on which errors are largest: SliceLine (Sagadeeva & Boehm, SIGMOD 2021).

A slice is a conjunction of up to `max_predicates` predicates "column = value". With n rows of mean
error e, the score of a slice S is

    alpha * (mean error of S / e - 1) - (1 - alpha) * (n / |S| - 1),

so alpha weighs how much worse it is against how large it is. The k best are found exactly: every
slice that is not looked at has an upper bound below the k-th best.

The paper walks the lattice level by level with sparse matrices. Here it is walked best bound first,
which opens no slice whose bound is below the final k-th best, and the children of a slice are counted
together by two `bincount`s over its rows. Rows are sorted by error: those without any are no part of
error sums, and the largest error of a child is that of its last row. Children whose sum of errors
already rules them out have their rows not counted at all.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError

_SLACK = 1e-9  # scores closer than this are ties: sums in another order differ in the last digits
_CELLS = 1 << 14  # gathered at a time: they stay in the cache

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Slice:
    """Rows that fulfil every (column, value) of `predicates`.

    Attributes:
        predicates: column and value codes, by column. score: as above. size: rows. error: their sum of
            errors. largest: their largest error.
    """

    predicates: tuple[tuple[int, int], ...]
    score: float
    size: int
    error: float
    largest: float


def top_slices(
    codes: NDArray[np.integer],
    errors: NDArray[np.floating],
    *,
    k: int = 10,
    alpha: float = 0.95,
    min_support: int = 10,
    max_predicates: int = 3,
) -> list[Slice]:
    """The k slices of highest score, best first, with those that tie with the last.

    Args:
        codes: (n, d) value of each row in each column; a negative one is no value and no predicate.
        errors: (n,) errors, finite and not negative.
        k: how many; fewer are returned where fewer have a score above 0.
        alpha: in (0, 1]. min_support: least rows of a slice. max_predicates: most columns of a slice.

    Raises:
        DataError: errors or parameters outside of what is said here.
    """
    codes, weights = np.asarray(codes), np.asarray(errors, np.float64)
    _check(codes, weights, k, alpha, min_support, max_predicates)
    if not weights.any() or not codes.shape[1]:
        return []
    return _Search(codes, weights, k, alpha, max(1, min_support), max_predicates).run()


def _check(codes: NDArray[np.integer], errors: Floats, k: int, alpha: float, support: int, most: int) -> None:
    if codes.ndim != 2 or errors.shape != codes.shape[:1]:
        raise DataError(f"codes of shape {codes.shape} do not fit errors of {errors.shape}", "give one error a row")
    if not np.isfinite(errors).all() or (errors < 0).any():
        raise DataError("an error is negative or not finite", "measure errors as numbers from 0 up")
    if not 0 < alpha <= 1 or min(k, most) < 1 or support < 0:
        words = f"alpha={alpha}, k={k}, max_predicates={most}, min_support={support}"
        raise DataError(f"no search is possible with {words}", "0 < alpha <= 1, the others from 1 up")


@dataclass(frozen=True)
class _Family:
    """Slices that extend one parent by a predicate each: m of them, best bound first.

    Attributes:
        last: (m,) the predicate added. error, largest, size: (m,) their statistics.
    """

    last: Ints
    error: Floats
    largest: Floats
    size: Floats

    def __getitem__(self, chosen: slice | NDArray[np.bool_] | Ints) -> _Family:
        return _Family(self.last[chosen], self.error[chosen], self.largest[chosen], self.size[chosen])


class _Search:
    def __init__(
        self, codes: NDArray[np.integer], errors: Floats, k: int, alpha: float, support: int, most: int
    ) -> None:
        self.k, self.alpha, self.support, self.most = k, alpha, support, most
        self.rows, self.mean = len(errors), float(errors.mean())
        order = np.argsort(errors, kind="stable")
        self.errors = errors[order]
        self.first_error = int(np.searchsorted(self.errors, 0, side="right"))
        self.columns, self.column, self.value = _predicates(codes, order)
        self.floor = 0.0  # k-th best score so far, 0 while there are fewer
        self.best: list[tuple[float, tuple[int, ...], float, float, float]] = []

    def run(self) -> list[Slice]:
        n = len(self.value)
        everything = _Family(
            np.arange(n), *(np.full(n, v) for v in (self.errors.sum(), self.errors[-1], float(self.rows)))
        )
        tie = 0
        heap: list[tuple[float, int, tuple[int, ...], _Family]] = [(-np.inf, tie, (), everything)]
        while heap:
            bound, _, chosen, candidates = heapq.heappop(heap)
            if not self._may_enter(-bound):
                break
            children = self._children(chosen, candidates)
            self._keep(chosen, children)
            if len(chosen) + 1 >= self.most:
                continue
            bounds = self._bound(children.error, children.largest, children.size)
            order = np.argsort(-bounds, kind="stable")
            order = order[self._may_enter(bounds[order])]
            children = children[order]
            for i, b in enumerate(bounds[order][:-1].tolist()):
                tie += 1
                heapq.heappush(heap, (-b, tie, (*chosen, int(children.last[i])), children[i:]))
        return self._result()

    def _children(self, chosen: tuple[int, ...], family: _Family) -> _Family:
        """The slices that extend `chosen` by a predicate of another column, with their statistics.

        `family` are the parent's extensions: `chosen` itself first (but at the root), then the
        candidates, whose statistics bound those of the children.
        """
        if chosen:
            own, rest = family[:1], family[1:]
            rest = rest[self.column[rest.last] != self.column[chosen[-1]]]
            family = _Family(
                rest.last, *(np.minimum(getattr(own, s), getattr(rest, s)) for s in ("error", "largest", "size"))
            )
        family = family[self._may_enter(self._bound(family.error, family.largest, family.size))]
        if not len(family.last):
            return family
        rows = self._rows(chosen)
        erring = rows[np.searchsorted(rows, self.first_error) :]
        error, largest = self._error_sums(erring, family.last)
        family = _Family(family.last, error, largest, family.size)
        family = family[(error > 0) & self._may_enter(self._bound(error, largest, family.size))]
        if not len(family.last):
            return family
        family = _Family(family.last, family.error, family.largest, self._sizes(rows, family.last))
        return family[family.size >= self.support]

    def _rows(self, chosen: tuple[int, ...]) -> Ints:
        """Rows of a slice, ascending."""
        if not chosen:
            return np.arange(self.rows)
        rows = np.flatnonzero(self.columns[self.column[chosen[0]]] == chosen[0])
        for predicate in chosen[1:]:
            rows = rows[self.columns[self.column[predicate]][rows] == predicate]
        return rows

    def _error_sums(self, rows: Ints, wanted: Ints) -> tuple[Floats, Floats]:
        """Sum and maximum of the errors of those `rows` that fulfil each wanted predicate."""
        total, largest = np.zeros(len(self.value) + 1), np.zeros(len(self.value) + 1)
        errors = self.errors[rows]
        for cells in self._cells(rows, wanted):
            flat = cells.ravel().astype(np.intp)
            weights = errors if len(cells) == 1 else np.tile(errors, len(cells))
            total += np.bincount(flat, weights, len(total))
            largest[flat] = weights  # ascending, so the largest is written last
        return total[wanted], largest[wanted]

    def _sizes(self, rows: Ints, wanted: Ints) -> Floats:
        total = np.zeros(len(self.value) + 1, np.int64)
        for cells in self._cells(rows, wanted):
            total += np.bincount(cells.ravel(), minlength=len(total))
        return total[wanted].astype(np.float64)

    def _cells(self, rows: Ints, wanted: Ints) -> Iterator[NDArray[np.integer]]:
        """Predicates that `rows` fulfil in the columns of `wanted`, a few columns at a time."""
        columns = np.unique(self.column[wanted])
        step = max(1, _CELLS // max(1, len(rows)))
        for i in range(0, len(columns), step):
            yield self.columns[np.ix_(columns[i : i + step], rows)]

    def _score(self, error: Floats, size: Floats) -> Floats:
        worse = error / size / self.mean - 1
        return np.asarray(self.alpha * worse - (1 - self.alpha) * (self.rows / size - 1), np.float64)

    def _bound(self, error: Floats, largest: Floats, size: Floats) -> Floats:
        """Highest score that a slice of at most these errors and rows can have (the paper's eq. 3).

        The score of t rows that hold min(error, t * largest) rises up to t = error / largest, and goes
        one way from there.
        """
        at = np.clip(error / np.maximum(largest, np.finfo(float).tiny), self.support, np.maximum(size, self.support))
        peak = self._score(np.minimum(error, at * largest), at)
        return np.maximum(peak, self._score(error, np.maximum(size, self.support)))

    def _may_enter(self, bound: Floats | float) -> NDArray[np.bool_]:
        return np.asarray(bound >= self.floor - _SLACK * max(1.0, abs(self.floor)))

    def _keep(self, chosen: tuple[int, ...], children: _Family) -> None:
        """Take `children` into the k best."""
        score = self._score(children.error, children.size)
        for i in np.flatnonzero((score > _SLACK) & self._may_enter(score)).tolist():
            slice_ = tuple(sorted((*chosen, int(children.last[i]))))
            self.best.append((float(score[i]), slice_, children.size[i], children.error[i], children.largest[i]))
        if len(self.best) >= self.k:
            self.floor = heapq.nlargest(self.k, (b[0] for b in self.best))[-1]
            self.best = [b for b in self.best if self._may_enter(b[0])]

    def _result(self) -> list[Slice]:
        def named(predicates: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
            return tuple((int(self.column[p]), int(self.value[p])) for p in predicates)

        ordered = sorted(self.best, key=lambda b: (-b[0], len(b[1]), b[1]))
        return [Slice(named(p), score, int(size), float(e), float(m)) for score, p, size, e, m in ordered]


def _predicates(codes: NDArray[np.integer], order: Ints) -> tuple[NDArray[np.integer], Ints, Ints]:
    """Codes as numbers of predicates.

    Returns:
        (d, n) predicate that each row fulfils in each column, their count for none; and column and value
        of each predicate, by column and value.
    """
    columns, owners, values = [], [], []
    for j in range(codes.shape[1]):
        distinct, place = np.unique(codes[:, j], return_inverse=True)
        none = int(np.searchsorted(distinct, 0))  # so many negative values
        columns.append((np.maximum(place - none, -1)[order] + 1).astype(np.min_scalar_type(len(distinct))))
        owners.append(np.full(len(distinct) - none, j))
        values.append(distinct[none:])
    counts = [len(v) for v in values]
    total = sum(counts)
    numbers = np.empty((len(columns), len(order)), np.min_scalar_type(total))
    for row, column, start in zip(numbers, columns, np.cumsum([0, *counts[:-1]]), strict=True):
        row[:] = np.where(column == 0, total, column.astype(np.int64) - 1 + start)
    return numbers, np.concatenate(owners), np.concatenate(values).astype(np.int64)
