"""Evaluation's units of work: what one model said of some slices, measured or resampled wherever there is room.

Nearly all of an evaluation's time goes into resampling: matching a million boxes takes seconds. What a unit gives
depends on its model, split and slices alone, for resamples are seeded by these: the tables are the same wherever,
and in whatever order, units are done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.compute import Compute, map_batches
from pipeline.errors import ComputeError
from pipeline.evaluate import classification, detection
from pipeline.evaluate.coco import Ranking
from pipeline.evaluate.rows import ALL, Metrics, Resampling, divided, weighted
from pipeline.evaluate.scene import Objects, Scene, Thresholds
from pipeline.store import Staging

_UNIT = 5_000  # images: slices of one model are put together up to so many
_ALONE = 10_000_000  # images in all slices and models, times draws: less is done sooner than workers are up
Drawn = Iterator[tuple[str, NDArray[np.float64]]]  # names of metrics, and blocks of their draws

PAIRED = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("slice", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("values", pa.list_(pa.float64()), nullable=False),
        pa.field("images", pa.int64(), nullable=False),
        pa.field("right", pa.list_(pa.bool_())),
    ]
)


@dataclass(frozen=True)
class Spread:
    """Where units are done, and where those that are done lie until all are."""

    compute: Compute
    staging: Staging


@dataclass(frozen=True)
class Said(ABC):
    """What one model said of the images of one split.

    Attributes:
        slices: numbers of the images of each slice.
    """

    model: str
    split: str
    slices: Mapping[str, NDArray[np.int64]]

    def where(self, name: str) -> dict[str, str]:
        """Columns that rows of a slice share."""
        return {"model": self.model, "split": self.split, "slice": name}

    @abstractmethod
    def measure(self, metrics: Metrics, name: str) -> None:
        """Add the rows of `evaluation` of one slice."""

    @abstractmethod
    def draw(self, name: str, weights: NDArray[np.int32], wanted: Sequence[str]) -> Drawn:
        """Of one slice, what a block of a resampling's weights makes of the metrics that two models share."""

    def right(self, name: str) -> NDArray[np.bool_] | None:
        """Whether each image's class is right; None of a detector."""
        return None


@dataclass(frozen=True)
class Boxes(Said):
    """A detector's boxes, beside people's; `thresholds` are the operating ones."""

    seen: Objects
    truth: Objects
    images: int
    classes: list[str]
    iou: float
    thresholds: Thresholds

    @classmethod
    def of(
        cls, model: str, split: str, slices: Mapping[str, NDArray[np.int64]], scene: Scene, thresholds: Thresholds
    ) -> Boxes:
        return cls(
            model, split, slices, scene.seen, scene.truth, scene.images, scene.classes, scene.iou, dict(thresholds)
        )

    @cached_property
    def scene(self) -> Scene:
        """Matched once more where it is looked at: that is quicker than to send matches about."""
        return Scene.of(self.seen, self.truth, self.images, self.classes, self.iou)

    def measure(self, metrics: Metrics, name: str) -> None:
        where = self.where(name)
        detection.add_detection(metrics, where, self.scene, self.slices[name], self.thresholds)
        if name == ALL:
            detection.add_thresholds(metrics, where, self.scene, self.thresholds)

    def draw(self, name: str, weights: NDArray[np.int32], wanted: Sequence[str]) -> Drawn:
        yield from detection.draws(self._ranking(name), weights, wanted).items()
        if self._miscounts is not None:
            off = weighted(weights, self._miscounts[self.slices[name]])
            yield "count_mae", divided(off, weights.sum(axis=1))

    def _ranking(self, name: str) -> Ranking:
        return self.scene.ranking.on(self.slices[name])

    @cached_property
    def _miscounts(self) -> NDArray[np.int64] | None:
        """(images,) by how much the number of boxes is off; None where a class has no threshold."""
        if any(self.thresholds.get(name) is None for name in self.classes):
            return None
        hits, alarms, objects = (table.sum(axis=0) for table in self.scene.counts(self.thresholds))
        return np.abs(hits + alarms - objects)


@dataclass(frozen=True)
class Outlines(Said):
    """A detector's masks, ranked as boxes are; its metrics' names begin with `prefix`."""

    ranking: Ranking
    classes: list[str]
    prefix: str

    def measure(self, metrics: Metrics, name: str) -> None:
        members = self.slices[name]
        weights = metrics.resampling.weights(len(members), self.split, name)
        part = self.ranking.on(members)
        detection.add_coco(metrics, self.where(name), part, self.classes, weights, self.prefix)

    def draw(self, name: str, weights: NDArray[np.int32], wanted: Sequence[str]) -> Drawn:
        found = detection.draws(self.ranking.on(self.slices[name]), weights, wanted[:1])
        yield from ((self.prefix + metric, values) for metric, values in found.items())


@dataclass(frozen=True)
class Classes(Said):
    """A classifier's answers; `shares` as in `classification.add_classification`."""

    answers: classification.Answers
    shares: NDArray[np.float64]

    def measure(self, metrics: Metrics, name: str) -> None:
        members = self.slices[name]
        classification.add_classification(metrics, self.where(name), self.answers, self.shares, members)

    def draw(self, name: str, weights: NDArray[np.int32], wanted: Sequence[str]) -> Drawn:
        yield "accuracy", divided(weighted(weights, self.right(name)), weights.sum(axis=1))

    def right(self, name: str) -> NDArray[np.bool_]:
        return self.answers.right[self.slices[name]]


class _Worker(ABC):
    """Units (see `_units`) to rows. What it reckons out of one model's boxes it keeps until it comes to another's."""

    def __init__(self, said: Sequence[Said], resampling: Resampling) -> None:
        self._said, self.resampling = said, resampling
        self._open: tuple[int, Said] | None = None

    def __call__(self, rows: pa.Table) -> pa.Table:
        asked = [(unit["said"], name) for unit in rows.to_pylist() for name in unit["slices"]]
        return pa.concat_tables([self.schema.empty_table(), *(self.of(self._opened(n), name) for n, name in asked)])

    def _opened(self, number: int) -> Said:
        if self._open is None or self._open[0] != number:
            self._open = number, replace(self._said[number])  # a copy, so that what is cached in it goes with it
        return self._open[1]

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Of the rows."""

    @abstractmethod
    def of(self, said: Said, name: str) -> pa.Table:
        """The rows of one slice."""


class _Measure(_Worker):
    """Rows of `evaluation`."""

    schema = schema.table("evaluation").schema

    def of(self, said: Said, name: str) -> pa.Table:
        metrics = Metrics(self.resampling)
        said.measure(metrics, name)
        return metrics.table()


class _Draw(_Worker):
    """Rows of PAIRED: the value of a metric, and then what the resampling's weights made of it."""

    schema = PAIRED

    def __init__(self, said: Sequence[Said], resampling: Resampling, wanted: Sequence[str]) -> None:
        super().__init__(said, resampling)
        self._wanted = wanted

    def of(self, said: Said, name: str) -> pa.Table:
        images, right = len(said.slices[name]), said.right(name)
        parts: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
        for weights in self.resampling.blocks(images, said.split, name):
            for metric, values in said.draw(name, weights, self._wanted):
                parts[metric].append(values)
        rows = [
            {"model": said.model, "slice": name, "metric": metric, "values": np.concatenate(several)}
            | {"images": images, "right": right}
            for metric, several in parts.items()
        ]
        return pa.Table.from_pylist(rows, schema=PAIRED)


def measured(said: Sequence[Said], resampling: Resampling, spread: Spread | None) -> pa.Table:
    """Rows of `evaluation`, model after model and slice after slice."""
    return _done(_Measure, {"said": said, "resampling": resampling}, spread)


def drawn(said: Sequence[Said], resampling: Resampling, wanted: Sequence[str], spread: Spread | None) -> pa.Table:
    """Rows of PAIRED, model after model and slice after slice: draw k of a slice is of the same images for all.

    Args:
        wanted: of COCO's numbers, those that are wanted of detectors; of masks the first.
    """
    return _done(_Draw, {"said": said, "resampling": resampling, "wanted": wanted}, spread)


def _done(worker: type[_Worker], options: dict[str, Any], spread: Spread | None) -> pa.Table:
    units, images = _units(options["said"])
    if spread is None or images * options["resampling"].draws < _ALONE:
        return worker(**options)(units)

    def refuse(failed: pa.Table) -> None:
        spread.staging.clear()  # or they would be taken for done
        raise ComputeError(
            f"nothing survives the evaluation of {failed['unit'][0]}: it {failed['reason'][0]}",
            "it may want more memory than there is: lower `evaluation.bootstrap` or `workers` in project.yaml",
        )

    compute = replace(spread.compute, batch_size=1, batches_per_shard=1, failed=refuse)
    return map_batches(worker, options, units, compute, spread.staging)


def _units(said: Sequence[Said]) -> tuple[pa.Table, int]:
    """Units of work, a row each: the number of a `Said`, and some of its slices; and how many images are in all."""
    units: list[tuple[int, list[str]]] = []
    total = 0
    for number, one in enumerate(said):
        images = _UNIT
        for name, members in one.slices.items():
            if images >= _UNIT:
                units.append((number, []))
                images = 0
            units[-1][1].append(name)
            images += len(members)
            total += len(members)
    words = [f"{said[number].model} on {said[number].split}, {', '.join(names)}" for number, names in units]
    columns = [[number for number, _ in units], [names for _, names in units], words]
    types = {"said": pa.int64(), "slices": pa.list_(pa.string()), "unit": pa.string()}
    return pa.table([pa.array(c, t) for c, t in zip(columns, types.values(), strict=True)], names=list(types)), total
