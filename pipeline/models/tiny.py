"""Models without weights, for tests only: each does its role's least with plain statistics of pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline import boxes as box_ops
from pipeline import ids, masks
from pipeline.images import Pixels
from pipeline.models.roles import Detections, Segments, Term
from pipeline.ontology import Ontology

ENCODER = ids.producer("tiny_encoder", "1")
SEGMENTER = ids.producer("tiny_segmenter", "1")


class TinyEncoder:
    """Random projections of an image's mean colours, and of a text's hash."""

    producer = ENCODER
    dimensions = 16
    temperature = 10.0

    def __init__(self) -> None:
        self._projection = np.random.default_rng(0).normal(size=(13, self.dimensions))

    def prepare(self, image: Pixels) -> NDArray[np.float64]:
        """(16,) projected colours."""
        projected: NDArray[np.float64] = np.append(_quarters(image), 1.0) @ self._projection
        return projected

    def encode_prepared(self, prepared: Iterable[NDArray[np.float64]]) -> NDArray[np.float32]:
        """(n, 16) float32 unit vectors."""
        return _unit(list(prepared), self.dimensions)

    def encode_images(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """(n, 16) float32 unit vectors."""
        return self.encode_prepared(map(self.prepare, images))

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, 16) float32 unit vectors."""
        digests = [hashlib.sha256(text.encode()).digest()[: self.dimensions] for text in texts]
        return _unit([np.frombuffer(digest, np.uint8) - 127.5 for digest in digests], self.dimensions)


class TinyDetector:
    """One box of the first class around the pixels brighter than the image's mean."""

    def __init__(self, ontology: Ontology, name: str = "tiny_detector") -> None:
        self.producer = producer(ontology, name)
        self._ontology = ontology

    def vocabulary(self) -> list[Term]:
        """Every prompt is understood."""
        return [Term(name, prompt, prompt, 1.0) for name, prompt in self._ontology.prompts()]

    def detect(self, images: Sequence[Pixels]) -> list[Detections]:
        """One box an image, or none where the image is flat."""
        return [self._detect(image) for image in images]

    def _detect(self, image: Pixels) -> Detections:
        luma = image.mean(axis=2)
        bright = luma > luma.mean()
        if not bright.any():
            return Detections()
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        box = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], np.float32)
        return Detections(box, np.array([bright.mean()], np.float32), (self._ontology.names[0],))


def producer(ontology: Ontology, name: str = "tiny_detector") -> str:
    """The name of what a `TinyDetector` finds."""
    return ids.producer(name, "1", ontology.prompts())


class TinySegmenter:
    """The ellipse that touches a box's sides."""

    producer = SEGMENTER

    def segment(self, images: Sequence[Pixels], boxes: Sequence[NDArray[np.floating]]) -> list[Segments]:
        """Masks of quality 0.5."""
        found = []
        for image, given in zip(images, boxes, strict=True):
            drawn = _ellipses(image, box_ops.as_boxes(given))
            quality = np.full(len(given), 0.5, np.float32)
            found.append(Segments(tuple(masks.encode_many(drawn)), drawn.sum(axis=(1, 2)), quality))
        return found


def _ellipses(image: Pixels, boxes: box_ops.Boxes) -> NDArray[np.bool_]:
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    centre, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, np.maximum((boxes[:, 2:] - boxes[:, :2]) / 2, 1e-6)
    dx = (x - centre[:, 0, None, None]) / radius[:, 0, None, None]
    dy = (y - centre[:, 1, None, None]) / radius[:, 1, None, None]
    inside: NDArray[np.bool_] = dx**2 + dy**2 <= 1
    return inside


def _quarters(image: Pixels) -> NDArray[np.float64]:
    """(12,) mean colours of the four quarters, 0 to 1; of the whole where a quarter has no pixels."""
    halves = [part for half in np.array_split(image, 2, axis=0) for part in np.array_split(half, 2, axis=1)]
    return np.concatenate([(part if part.size else image).mean((0, 1)) / 255 for part in halves])


def _unit(rows: Sequence[NDArray[np.floating]], dimensions: int) -> NDArray[np.float32]:
    vectors = np.asarray(rows, np.float64).reshape(-1, dimensions)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
