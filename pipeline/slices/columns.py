"""Facts about images as columns of few values, each a SQL predicate: what slices are searched over."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# Identities, and what is only there because somebody drew a split: no property of an image.
NOT_SEARCHED = frozenset(
    {"image_id", "uri", "file_name", "parent_id", "tile_x", "tile_y", "phash", "bytes", "orientation"}
    | {"split", "gold", "moved_from", "moved_by"}
)
_BINS = 4
_FEW = 6  # numbers of no more distinct values are each a value of its own
_MOST_VALUES = 1000  # the most frequent ones of a column

Codes = NDArray[np.int32]


@dataclass(frozen=True)
class Columns:
    """d columns of n images.

    Attributes:
        codes: (n, d) values; -1 for one that is no predicate.
        predicates: for each column, the SQL predicate of each value.
    """

    codes: Codes
    predicates: tuple[tuple[str, ...], ...]

    def of(self, images: NDArray[np.bool_]) -> Columns:
        """The same columns of some of the images."""
        return Columns(self.codes[images], self.predicates)

    def sql(self, slice_: tuple[tuple[int, int], ...]) -> str:
        """The WHERE clause of a conjunction of (column, value)."""
        return " AND ".join(self.predicates[column][value] for column, value in slice_)

    def inside(self, slice_: tuple[tuple[int, int], ...]) -> NDArray[np.bool_]:
        """(n,) which images fulfil a conjunction of (column, value)."""
        chosen = [self.codes[:, column] == value for column, value in slice_]
        return np.logical_and.reduce(chosen) if chosen else np.ones(len(self.codes), bool)


def columns_of(facts: pa.Table, least: int) -> Columns:
    """The columns of `facts` that may tell slices apart.

    Texts and truth values are taken as they are, numbers in four parts of about equal size (or as they
    are, if they are few), maps key by key, and lists item by item. Null is a value, too. Values of fewer
    than `least` images are no predicates; a column that divides the images as an earlier one does, or
    not at all, is left out.
    """
    codes: list[Codes] = []
    predicates: list[tuple[str, ...]] = []
    known: set[bytes] = set()
    for name in facts.column_names:
        if name in NOT_SEARCHED:
            continue
        for values, texts in _coded(_identifier(name), facts.column(name).combine_chunks()):
            values, texts = _frequent(values, texts, least)
            division = _first_seen(values).tobytes()
            if texts and len(np.unique(values)) > 1 and division not in known:
                known.add(division)
                codes.append(values)
                predicates.append(texts)
    shape = (facts.num_rows, len(codes))
    return Columns(np.stack(codes, axis=1) if codes else np.zeros(shape, np.int32), tuple(predicates))


def _coded(name: str, column: pa.Array) -> Iterator[tuple[Codes, tuple[str, ...]]]:
    """A column, or each key or item of it, as codes and their predicates."""
    kind = column.type
    if pa.types.is_map(kind):
        for key in sorted(set(column.keys.to_pylist())):
            yield from _coded(f"{name}[{_literal(key)}]", pc.map_lookup(column, pa.scalar(key, kind.key_type), "first"))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        row, items = pc.list_parent_indices(column).to_numpy(), column.flatten()
        for item in sorted(set(items.drop_null().to_pylist())):
            codes = np.full(len(column), -1, np.int32)
            codes[row[pc.equal(items, item).fill_null(False).to_numpy(zero_copy_only=False)]] = 0
            yield codes, (f"list_contains({name}, {_literal(item)})",)
    elif pa.types.is_floating(kind) or pa.types.is_integer(kind):
        yield _numbers(name, column)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind):
        yield _categories(name, column)


def _numbers(name: str, column: pa.Array) -> tuple[Codes, tuple[str, ...]]:
    """Compared in the column's own precision, as DuckDB does it."""
    values = column.to_numpy(zero_copy_only=False)
    finite, null = np.isfinite(values), column.is_null().to_numpy(zero_copy_only=False)
    distinct = np.unique(values[finite])
    if len(distinct) <= _FEW:
        texts = [f"{name} = {_number(v)}" for v in distinct]
        codes = np.searchsorted(distinct, values)
    else:
        # Cut at short numbers, so that the predicate that people read is the very one that was used.
        shares = np.quantile(values[finite], np.arange(1, _BINS) / _BINS)
        whole = pa.types.is_integer(column.type)
        wanted = {float(math.ceil(c)) if whole else float(f"{c:.3g}") for c in shares}
        cuts = np.array(sorted(wanted)).astype(values.dtype)
        codes = np.searchsorted(cuts, values, side="right")
        # To DuckDB infinity and NaN are numbers beyond all others; here they belong nowhere.
        only = "" if (finite | null).all() else f" AND isfinite({name})"
        inner = pairwise(cuts)
        texts = [f"{name} < {_number(cuts[0])}{only}"]
        texts += [f"{name} >= {_number(a)} AND {name} < {_number(b)}" for a, b in inner]
        texts += [f"{name} >= {_number(cuts[-1])}{only}"]
    codes = np.where(null, len(texts), np.where(finite, codes, -1))
    return codes.astype(np.int32), (*texts, f"{name} IS NULL")


def _categories(name: str, column: pa.Array) -> tuple[Codes, tuple[str, ...]]:
    names = sorted(pc.unique(column.drop_null()).to_pylist())
    codes = pc.index_in(column, pa.array(names, column.type)).fill_null(len(names))
    texts = [f"{name} = {_literal(value)}" for value in names]
    return codes.to_numpy(zero_copy_only=False).astype(np.int32), (*texts, f"{name} IS NULL")


def _frequent(codes: Codes, texts: tuple[str, ...], least: int) -> tuple[Codes, tuple[str, ...]]:
    """Codes renumbered to those of at least `least` images, the others -1."""
    counts = np.bincount(codes[codes >= 0], minlength=len(texts))
    order = np.argsort(-counts, kind="stable")[:_MOST_VALUES]
    kept = np.sort(order[counts[order] >= max(1, least)])
    new = np.full(len(texts) + 1, -1, np.int32)  # the last is for -1
    new[kept] = np.arange(len(kept))
    return new[codes], tuple(texts[k] for k in kept)


def _first_seen(codes: Codes) -> NDArray[np.int64]:
    """Codes by order of first appearance, so that equal divisions are equal arrays."""
    _, first, place = np.unique(codes, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[place]


def _identifier(name: str) -> str:
    return name if name.isidentifier() and name.islower() else '"' + name.replace('"', '""') + '"'


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "'" + str(value).replace("'", "''") + "'"


def _number(value: Any) -> str:
    """A literal that DuckDB compares as the column's own type; with an exponent it takes it for a double."""
    if float(value).is_integer():
        return str(int(value))
    return f"{value}::FLOAT" if isinstance(value, np.float32) and "e" in str(value) else str(value)
