"""What the images of a slice have in common that others have not: words of the encoder, and facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import EvaluationConfig
from pipeline.slices.columns import Columns

_SHOWN = 5  # of words and of facts, for each slice
_TITLE = 3
_LEAST = 5  # images on either side

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Known:
    """What may be said of n held-out images.

    Attributes:
        ids: n names. columns: facts. words: the vocabulary. similarity: (n, words) of image and word; NaN for
            images without a vector.
    """

    ids: Sequence[str]
    columns: Columns
    words: Sequence[str]
    similarity: Floats

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        columns: Columns,
        embedded: Sequence[str],
        vectors: NDArray[np.floating],
        words: Mapping[str, NDArray[np.floating]],
    ) -> Known:
        """From (m, d) vectors of the images `embedded`, and the vector of each word."""
        similarity = np.full((len(ids), len(words)), np.nan)
        place = {image: k for k, image in enumerate(embedded)}
        there = np.array([i in place for i in ids], bool)
        if words and there.any():
            texts = np.stack(list(words.values())).astype(np.float64)
            chosen = [place[i] for i in ids if i in place]
            similarity[there] = np.asarray(vectors, np.float64)[chosen] @ texts.T
        return cls(ids, columns, list(words), similarity)


def traits(rows: Sequence[Mapping[str, Any]], known: Known, config: EvaluationConfig) -> pa.Table:
    """The table `slice_traits`: for each slice that was found, the words and facts that set it apart most surely.

    A fact's effect is its lift, the share inside over that outside, with Katz' interval of the logarithm (0.5 added to
    each count); a word's is the difference of mean similarity in standard deviations, with the normal interval of
    Hedges & Olkin (1985). Intervals are Bonferroni-corrected for all words and facts that were looked at, and only
    those whose lower end is above no effect are listed, the surest first.
    """
    place = {image: k for k, image in enumerate(known.ids)}
    found: list[dict[str, Any]] = []
    for row in rows:
        if row["kind"] == "declared":
            continue
        inside = np.zeros(len(known.ids), bool)
        inside[[place[i] for i in row["members"] if i in place]] = True
        for trait in (*_words(inside, known, config.level), *_facts(inside, known, config.level)):
            found.append({"slice": row["slice"], "model": row["model"]} | trait)
    return schema.table("slice_traits").from_rows(found)


def titles(table: pa.Table) -> dict[tuple[str, str], str]:
    """Slice and model to the slice's name in words: its surest words, or without any the surest facts."""
    by_slice: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in table.sort_by("rank").to_pylist():
        of = by_slice.setdefault((row["slice"], row["model"]), {"word": [], "fact": []})
        of[row["kind"]].append(row["trait"])
    return {
        of: ", ".join(kinds["word"][:_TITLE]) or "; ".join(kinds["fact"][:_TITLE]) for of, kinds in by_slice.items()
    }


def _words(inside: Flags, known: Known, level: float) -> list[dict[str, Any]]:
    seen = np.isfinite(known.similarity).all(axis=1)
    here, there = known.similarity[seen & inside], known.similarity[seen & ~inside]
    if not known.words or min(len(here), len(there)) < _LEAST:
        return []
    freedom = len(here) + len(there) - 2
    spread = np.sqrt((len(here) * here.var(axis=0) + len(there) * there.var(axis=0)) / freedom)
    gap = here.mean(axis=0) - there.mean(axis=0)
    effect = np.divide(gap, spread, out=np.zeros_like(gap), where=spread > 0)
    error = np.sqrt(1 / len(here) + 1 / len(there) + effect**2 / (2 * (len(here) + len(there))))
    reach = _quantile(level, len(known.words)) * error
    values = (here.mean(axis=0), there.mean(axis=0), effect, effect - reach, effect + reach)
    return _surest("word", known.words, values, 0.0)


def _facts(inside: Flags, known: Known, level: float) -> list[dict[str, Any]]:
    names = [text for texts in known.columns.predicates for text in texts]
    m, n = int(inside.sum()), int((~inside).sum())
    if not names or min(m, n) < _LEAST:
        return []
    here, there = (
        np.concatenate(
            [
                np.bincount(codes[side & (codes >= 0)], minlength=len(texts)).astype(np.float64)
                for codes, texts in zip(known.columns.codes.T, known.columns.predicates, strict=True)
            ]
        )
        for side in (inside, ~inside)
    )
    p, q = (here + 0.5) / (m + 0.5), (there + 0.5) / (n + 0.5)
    error = np.sqrt(1 / (here + 0.5) - 1 / (m + 0.5) + 1 / (there + 0.5) - 1 / (n + 0.5))
    reach = _quantile(level, len(names)) * error
    lift = p / q
    return _surest("fact", names, (here / m, there / n, lift, lift * np.exp(-reach), lift * np.exp(reach)), 1.0)


def _quantile(level: float, tests: int) -> float:
    from scipy.stats import norm

    return float(norm.ppf(1 - (1 - level) / (2 * tests)))


def _surest(kind: str, names: Sequence[str], values: tuple[Floats, ...], none: float) -> list[dict[str, Any]]:
    columns = ("inside", "outside", "effect", "low", "high")
    low = values[3]
    order = [k for k in np.argsort(-low, kind="stable") if low[k] > none][:_SHOWN]
    return [
        {"kind": kind, "trait": names[k], "rank": rank}
        | {column: float(v[k]) for column, v in zip(columns, values, strict=True)}
        for rank, k in enumerate(order, start=1)
    ]
