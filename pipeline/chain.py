"""Detector, segmenter, encoder and tagger over photos that are decoded once, each model busy while the others are.

For photos outside the tables. Inside them each stage is an asset of its own, so that a changed prompt redoes one
stage and no other; `docs/foundation.md` says what decoding once saves, and when.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.ahead import ahead, cores
from pipeline.config import Project
from pipeline.errors import ConfigError, PipelineError
from pipeline.images import Pixels, decode
from pipeline.models import zero_shot
from pipeline.models.profiles import build_encoder, build_labeller, build_segmenter
from pipeline.models.roles import Detections, Detector, Encoder, Segmenter, Segments
from pipeline.models.threads import use_threads
from pipeline.ontology import Ontology

_IN_FLIGHT = 2  # batches inside the models besides the one that is being decoded
_CPU_BATCH = 4  # photos: there larger batches gain nothing, and stages wait for one another longer
Result = TypeVar("Result")


@dataclass(frozen=True)
class Seen:
    """All that the models say of one photo.

    Attributes:
        width, height: pixels, upright; 0 where it could not be decoded.
        detections: boxes, best first. segments: their masks, in the same order.
        vector: (d,) unit vector. tags: (classes,) zero-shot probabilities in the ontology's order.
        error: what failed, and the parts after it are empty; "" where nothing did.
    """

    path: Path
    width: int = 0
    height: int = 0
    detections: Detections = field(default_factory=Detections)
    segments: Segments = field(default_factory=Segments)
    vector: NDArray[np.floating] | None = None
    tags: NDArray[np.float64] | None = None
    error: str = ""


@dataclass(frozen=True)
class _Loaded:
    """A decoded photo, and what the encoder sees of it."""

    pixels: Pixels
    shown: Any


class Chain:
    """One copy of each model, each on a thread of its own.

    Args:
        batch: photos that go through a model together.
        mask_floor: boxes scored below this get no mask.
    """

    def __init__(
        self,
        detector: Detector,
        segmenter: Segmenter,
        encoder: Encoder,
        ontology: Ontology,
        templates: Sequence[str],
        batch: int = 8,
        mask_floor: float = 0.0,
        max_pixels: int = 200_000_000,
    ) -> None:
        self.ontology = ontology
        self._detector, self._segmenter, self._encoder = detector, segmenter, encoder
        self._templates, self._batch = templates, batch
        self._mask_floor, self._max_pixels = mask_floor, max_pixels

    @classmethod
    def of(cls, project: Project, labeller: str = "") -> Chain:
        """The models of a project.

        Args:
            labeller: the name of the one that draws boxes; empty: the first.

        Raises:
            ConfigError: it has no such labeller. WeightsError: a checkpoint is missing.
        """
        import torch

        config = project.config
        known = {x.name: x for x in config.labelling.labellers}
        chosen = known.get(labeller or next(iter(known), ""))
        if chosen is None:
            raise ConfigError(
                f"project {project.name} has no labeller {labeller!r}" if labeller else "the project has no labeller",
                f"choose one of: {', '.join(known)}" if known else "name one under labelling.labellers in project.yaml",
            )
        return cls(
            build_labeller(chosen, project.folder, config),
            build_segmenter(config),
            build_encoder(config),
            project.ontology,
            config.labelling.templates,
            config.batch_size if torch.cuda.is_available() else min(config.batch_size, _CPU_BATCH),
            config.labelling.mask_floor,
            config.source.max_pixels,
        )

    def run(self, paths: Iterable[Path]) -> Iterator[Seen]:
        """What is seen in each photo, in order, as soon as its batch is through.

        A photo that cannot be decoded, or over which a model fails, says so in `error`; the others of its
        batch are looked at all the same.
        """
        loaded = ahead(self._load, paths, depth=2 * self._batch)
        waiting: deque[_Batch] = deque()
        detecting, segmenting, encoding = stages = [_stage() for _ in range(3)]
        try:
            while some := list(islice(loaded, self._batch)):
                batch = _Batch(some)
                batch.detected = detecting.submit(self._detect, batch)
                batch.segmented = segmenting.submit(self._segment, batch)
                batch.encoded = encoding.submit(self._encode, batch)
                waiting.append(batch)
                if len(waiting) > _IN_FLIGHT:
                    yield from self._seen(waiting.popleft())
            while waiting:
                yield from self._seen(waiting.popleft())
        finally:
            for stage in stages:
                stage.shutdown(cancel_futures=True)

    def _load(self, path: Path) -> tuple[Path, _Loaded | str]:
        try:
            pixels = decode(path.read_bytes(), self._max_pixels).pixels
            return path, _Loaded(pixels, self._encoder.prepare(pixels))
        except _failures() as error:
            return path, _words(error)

    def _detect(self, batch: _Batch) -> list[Detections | str]:
        def detect(at: Sequence[int]) -> list[Detections]:
            return [_best_first(said) for said in self._detector.detect([batch.photos[i].pixels for i in at])]

        return _each(detect, len(batch.photos))

    def _segment(self, batch: _Batch) -> list[Segments | str]:
        found = batch.detected.result()

        def draw(at: Sequence[int]) -> list[Segments]:
            boxes = [said.boxes for i in at if isinstance(said := found[i], Detections)]
            scores = [said.scores for i in at if isinstance(said := found[i], Detections)]
            wanted = [b[s >= self._mask_floor] for b, s in zip(boxes, scores, strict=True)]
            return self._segmenter.segment([batch.photos[i].pixels for i in at], wanted)

        fine = [i for i, said in enumerate(found) if isinstance(said, Detections)]
        drawn = iter(_each(lambda at: draw([fine[k] for k in at]), len(fine)))
        return [next(drawn) if isinstance(said, Detections) else Segments() for said in found]

    def _encode(self, batch: _Batch) -> list[tuple[Any, Any] | str]:
        def encode(at: Sequence[int]) -> list[tuple[Any, Any]]:
            vectors = self._encoder.encode_prepared([batch.photos[i].shown for i in at])
            shares = zero_shot.probabilities(vectors, self.ontology, self._templates, self._encoder)
            return list(zip(vectors, shares, strict=True))

        return _each(encode, len(batch.photos))

    def _seen(self, batch: _Batch) -> Iterator[Seen]:
        answers = iter(
            zip(
                batch.photos,
                batch.detected.result(),
                batch.segmented.result(),
                batch.encoded.result(),
                strict=True,
            )
        )
        for path, loaded in batch.loaded:
            if isinstance(loaded, str):
                yield Seen(path, error=loaded)
                continue
            photo, found, drawn, encoded = next(answers)
            height, width = photo.pixels.shape[:2]
            errors = [said for said in (found, drawn, encoded) if isinstance(said, str)]
            seen = Seen(path, width, height, error="; ".join(errors))
            if isinstance(found, Detections):
                seen = replace(seen, detections=found)
            if isinstance(drawn, Segments):
                seen = replace(seen, segments=drawn)
            if not isinstance(encoded, str):
                seen = replace(seen, vector=encoded[0], tags=encoded[1])
            yield seen


class _Batch:
    """Some photos on their way; those that could not be decoded are not among `photos`."""

    detected: Future[list[Detections | str]]
    segmented: Future[list[Segments | str]]
    encoded: Future[list[tuple[Any, Any] | str]]

    def __init__(self, loaded: list[tuple[Path, _Loaded | str]]) -> None:
        self.loaded = loaded
        self.photos = [photo for _, photo in loaded if isinstance(photo, _Loaded)]


def _stage() -> ThreadPoolExecutor:
    """One thread for one model, which may use all cores: the models take turns at being the slowest."""
    return ThreadPoolExecutor(1, initializer=use_threads, initargs=(cores(),))


def _each(function: Callable[[Sequence[int]], Sequence[Result]], count: int) -> list[Result | str]:
    """`function` of all of `count` items at once; where that fails, of each, with words for those that fail."""
    if not count:
        return []
    try:
        return list(function(range(count)))
    except _failures() as error:
        if count == 1:
            return [_words(error)]
    said: list[Result | str] = []
    for i in range(count):
        try:
            said += function([i])
        except _failures() as error:
            said.append(_words(error))
    return said


def _failures() -> tuple[type[Exception], ...]:
    """What a model or a decoder may raise over one photo."""
    import cv2

    return (PipelineError, OSError, RuntimeError, ValueError, TypeError, ArithmeticError, MemoryError, cv2.error)


def _best_first(said: Detections) -> Detections:
    order = np.argsort(-said.scores, kind="stable")
    return Detections(said.boxes[order], said.scores[order], tuple(said.classes[i] for i in order.tolist()))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def photos(given: Iterable[Path]) -> list[Path]:
    """Files as they are, and all files below folders, sorted; hidden ones are left out.

    Raises:
        ConfigError: there is no such file or folder.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            below = (Path(base) / name for base, _, names in os.walk(path) for name in names)
            found += sorted(p for p in below if not any(part.startswith(".") for part in p.relative_to(path).parts))
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(f"there is no {path}", "name photos or folders of photos")
    return found
