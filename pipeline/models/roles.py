"""What a model must do to fill a role. A user's own labeller is a Detector like any other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.images import Pixels


@dataclass(frozen=True)
class Detections:
    """What a detector says of one image.

    Attributes:
        boxes: (n, 4) xyxy pixels. scores: (n,) raw, in [0, 1]. classes: n class names.
    """

    boxes: NDArray[np.floating] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    scores: NDArray[np.floating] = field(default_factory=lambda: np.zeros(0, np.float32))
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Term:
    """How a detector understood one prompt; `matched` is None when it has no such word."""

    class_name: str
    prompt: str
    matched: str | None
    similarity: float


@dataclass(frozen=True)
class Segments:
    """What a segmenter says of one image's n boxes.

    Attributes:
        masks: n RLE counts at the image's size (see `pipeline.masks`). area: (n,) pixels.
        scores: (n,) its own estimate of their quality, 0 to 1.
        stability: (n,) how little they depend on the threshold, 0 to 1; None where it has none.
    """

    masks: tuple[str, ...] = ()
    area: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    stability: NDArray[np.float32] | None = None


@runtime_checkable
class Encoder(Protocol):
    """Images and texts to unit vectors of one space.

    What the network sees of an image is prepared apart, on threads, while the network is busy with others.
    """

    producer: str
    dimensions: int

    @property
    def temperature(self) -> float:
        """Multiplies cosines before a softmax."""

    def prepare(self, image: Pixels) -> Any:
        """What the network sees of an image; safe on threads, and small, since many wait at once."""

    def encode_prepared(self, prepared: Iterable[Any]) -> NDArray[np.floating]:
        """(n, d) float32 or float16 unit vectors of n prepared images, which are taken as they come."""

    def encode_images(self, images: Sequence[Pixels]) -> NDArray[np.floating]: ...

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]: ...


@runtime_checkable
class Detector(Protocol):
    """Images to boxes of the ontology's classes. Made with `ontology=` and its own options."""

    producer: str

    def detect(self, images: Sequence[Pixels]) -> list[Detections]: ...

    def vocabulary(self) -> list[Term]: ...


@runtime_checkable
class Segmenter(Protocol):
    """Boxes to masks: of each image, (n, 4) xyxy boxes to n masks."""

    producer: str

    def segment(self, images: Sequence[Pixels], boxes: Sequence[NDArray[np.floating]]) -> list[Segments]: ...
