"""What every evaluation needs: the held-out images, models side by side, and rows of metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import EvaluationConfig
from pipeline.ids import seed
from pipeline.intervals import bca, percentiles, resamples

SPLITS = ("val", "test")
ALL = "all"
BACKGROUND = "background"
LEFT_OUT = 500  # groups of images that are left out in turn, at most
SHARES = ["producer", "image_id", "class_name", "share"]
_HELD = 1 << 25  # numbers of weights held at a time
_COLUMNS = [c.name for c in schema.ANNOTATION]


def gather(detections: pa.Table, predictions: pa.Table, tags: pa.Table) -> pa.Table:
    """What all models say, as annotations: of an image's ranked classes the best, of tags with its probability."""
    spec = schema.table("detections")
    said = (schema.best_classes(t) for t in (detections, predictions, tags))
    return pa.concat_tables([spec.conform(t.select(_COLUMNS)) for t in said])


def class_shares(*said: pa.Table) -> pa.Table:
    """How probable models find classes of images, by annotation rows: (producer, image_id, class_name, share)."""
    scores = ["probability" if "probability" in t.column_names else "score" for t in said]
    return pa.concat_tables(
        [t.select([*SHARES[:3], s]).rename_columns(SHARES) for t, s in zip(said, scores, strict=True)]
    )


def producers_of(models: pa.Table, also: Iterable[str] = ()) -> list[str]:
    """Names of the models, sorted."""
    return sorted({*models.column("producer").unique().to_pylist(), *also})


def members_by_slice(slices: pa.Table, image_ids: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Numbers of the images in each slice; 'all' first, then in order of appearance."""
    members: dict[str, NDArray[np.int64]] = {ALL: np.arange(len(image_ids))}
    numbers = schema.codes(slices.column("image_id"), image_ids)
    names = slices.column("slice")
    for name in names.unique().to_pylist():
        if name != ALL:
            found = numbers[pc.equal(names, name).to_numpy(zero_copy_only=False)]
            members[name] = np.unique(found[found >= 0])
    return members


class Members:
    """`members_by_slice`, looked up once a split: the same for all models."""

    def __init__(self, slices: pa.Table) -> None:
        self._slices = slices
        self._found: dict[str, dict[str, NDArray[np.int64]]] = {}

    def of(self, split: str, image_ids: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """Of the images of one split, which are the same each time."""
        if split not in self._found:
            self._found[split] = members_by_slice(self._slices, image_ids)
        return self._found[split]


def sample_weights(images: int, draws: int, *what: Any) -> NDArray[np.int32]:
    """(1 + draws, images): a row of ones, then the bootstrap samples that belong to `what`.

    The same for every model, so that models can be compared draw by draw. A single image cannot be
    resampled and gets no samples.
    """
    drawn = resamples(images, draws if images > 1 else 0, seed("bootstrap", images, *what))
    return np.concatenate([np.ones((1, images), np.int32), drawn])


@dataclass(frozen=True)
class Resampling:
    """How intervals are made: of so many bootstrap samples, at a level, by percentiles or by BCa.

    BCa's acceleration is the skewness of what single images weigh in a quantity (Efron 1987), told by leaving each
    out. Of more than LEFT_OUT images so many random groups are left out instead, as the moments of independent
    weights add up: so no matrix grows with the square of the images.
    """

    draws: int
    level: float
    bca: bool = False

    @classmethod
    def of(cls, config: EvaluationConfig) -> Resampling:
        return cls(config.bootstrap, config.level, config.interval == "bca")

    def weights(self, images: int, *what: Any) -> NDArray[np.int32]:
        """As `sample_weights`, and for BCa a row for each image, or group of images, that is left out."""
        return np.concatenate([sample_weights(images, self.draws, *what), self._left_out(images)])

    def blocks(self, images: int, *what: Any) -> Iterator[NDArray[np.int32]]:
        """The rows of `weights`, as many at a time as have some 32 million numbers."""
        rng = np.random.default_rng(seed("bootstrap", images, *what))
        at_once = max(1, _HELD // max(1, images))
        yield np.ones((1, images), np.int32)
        for done in range(0, self.draws if images > 1 else 0, at_once):
            yield resamples(images, min(at_once, self.draws - done), rng)
        yield self._left_out(images)

    def _left_out(self, images: int) -> NDArray[np.int32]:
        if not self.bca or images < 2:
            return np.zeros((0, images), np.int32)
        groups = min(images, LEFT_OUT)
        kept = np.arange(images) % groups != np.arange(groups)[:, None]  # ids are hashes: such groups are random
        return kept.astype(np.int32)

    def limits(self, values: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
        """(n, 2) intervals of n quantities, of each the value and then what `weights` made of it."""
        table = np.stack(values)
        drawn, left_out = table[:, 1 : 1 + self.draws], table[:, 1 + self.draws :]
        return bca(table[:, 0], drawn, left_out, self.level) if self.bca else percentiles(drawn, self.level)


@dataclass
class Metrics:
    """Rows of `evaluation` in the making."""

    resampling: Resampling
    rows: list[dict[str, Any]] = field(default_factory=list)
    draws: dict[int, list[tuple[int, NDArray[np.floating]]]] = field(default_factory=dict)
    """Values and their draws by their number, each with its row: intervals are cheap for many rows at once."""

    @property
    def level(self) -> float:
        return self.resampling.level

    def add(
        self,
        where: Mapping[str, str],
        metric: str,
        values: NDArray[np.floating],
        support: int,
        images: int,
        limits: tuple[float | None, float | None] | None = None,
    ) -> None:
        """One row: `values` holds the value, then its bootstrap draws; `limits` replaces their interval."""
        value = float(values[0])
        defined = bool(np.isfinite(value))
        if defined and limits is None and len(values) > 1:
            self.draws.setdefault(len(values), []).append((len(self.rows), values))
        self.rows.append(
            {
                **where,
                "metric": metric,
                "value": value if defined else None,
                "support": int(support),
                "images": int(images),
                **(self._interval(*limits) if defined and limits is not None else {}),
            }
        )

    def table(self) -> pa.Table:
        for several in self.draws.values():
            limits = self.resampling.limits([values for _, values in several])
            for (number, _), (low, high) in zip(several, limits.tolist(), strict=True):
                self.rows[number] |= self._interval(low, high)
        self.draws.clear()
        return schema.table("evaluation").from_rows(self.rows)

    def _interval(self, low: float | None, high: float | None) -> dict[str, float | None]:
        known = low is not None and not np.isnan(low)
        return {"low": low, "high": high, "level": self.level} if known else {}


def weighted(weights: NDArray[np.integer], values: NDArray[Any]) -> NDArray[np.float64]:
    """(D, …) sums of (n, …) values under each row of (D, n) weights.

    Not by BLAS, which would want the weights as floats, and whose sums depend on the number of its threads.
    """
    return np.asarray(np.einsum("dn,n...->d...", weights, np.asarray(values, np.float64)))


def divided(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """a / b, NaN where b is 0."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)


def mean_of_defined(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Mean over `axis` without the NaNs; NaN where there is nothing else."""
    known = ~np.isnan(values)
    return divided(np.where(known, values, 0).sum(axis), known.sum(axis))
