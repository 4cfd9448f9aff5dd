"""A hand-written labeller: tree crowns in aerial photographs, without any training.

Crowns are darker, yellower and rougher than the meadow, and throw a shadow to one side. These four cues
give each pixel a crownness; a crown is a round spot of it that stands out from the ring around it, at
the size where it stands out most (a local maximum over place and size).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline import boxes as box_ops
from pipeline.models.roles import Detections
from pipeline.ontology import Ontology

HALF = 0.5  # worked on at half resolution
# Weights of lightness, blue-yellow, green-red, roughness, near, middle and far shadow; then the offset.
# Set from the pixels (CIELAB) of the training photo, then tuned on its AP50: 0.32, and 0.32 on its held-out
# south. On the site's other photo, a forest with shadows to the upper left, it is 0.02: grading must find that.
CUES = (-0.055, 0.28, 0.37, 0.32, 3.5, -0.4, 2.0)
OFFSET = -1.9
DARK, BLUE = 38.0, 8.0  # a shadow's pixel is darker than this, and less yellow
SIZES = (9, 11, 13, 15, 19, 23, 27, 33, 39, 47)  # of a spot, half-resolution pixels
RING = 1.32  # outer edge of the ring, times the spot's
BOX = 1.16  # a box's edge, times the spot's


class Crowns:
    """Finds crowns of the ontology's first class.

    Args:
        shadow: direction in which shadows fall, degrees counter-clockwise from the right.
        floor: lowest score kept.
        overlap: of two crowns that overlap more (IoU), the weaker goes.
    """

    version = "1"

    def __init__(self, ontology: Ontology, shadow: float = 20.0, floor: float = 0.05, overlap: float = 0.36) -> None:
        self.class_name = ontology.names[0]
        self.shadow, self.floor, self.overlap = np.radians(shadow), floor, overlap

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Boxes of n (height, width, 3) uint8 images, best first."""
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> Detections:
        if min(image.shape[:2]) * HALF < SIZES[0]:
            return Detections()
        x, y, size, score = _spots(self._crownness(image), self.floor)
        half = size * BOX / 2
        spots = np.stack([x - half, y - half, x + half, y + half], axis=1) / HALF
        corners = box_ops.clip(spots, image.shape[1], image.shape[0])
        kept = box_ops.nms(corners, score, self.overlap)
        classes = (self.class_name,) * len(kept)
        return Detections(corners[kept].astype(np.float32), score[kept].astype(np.float32), classes)

    def _crownness(self, image: np.ndarray) -> np.ndarray:
        import cv2

        small = cv2.resize(image, None, fx=HALF, fy=HALF, interpolation=cv2.INTER_AREA)
        light, red, yellow = cv2.split(cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))
        rough = _blurred(np.abs(light - _blurred(light, 1)), 2)
        dark = _blurred(((light < DARK) & (yellow < BLUE)).astype(np.float32), 3)
        shadows = [self._upwind(dark, pixels) for pixels in (9, 15, 22.5)]
        cues = [_blurred(light, 2), _blurred(yellow, 2), _blurred(red, 2), rough, *shadows]
        evidence = OFFSET + sum(weight * cue for weight, cue in zip(CUES, cues, strict=True))
        return 1 / (1 + np.exp(-evidence))

    def _upwind(self, dark: np.ndarray, pixels: float) -> np.ndarray:
        """How dark it is so many pixels along the shadow's direction."""
        import cv2

        shift = np.array([[1, 0, -np.cos(self.shadow) * pixels], [0, 1, np.sin(self.shadow) * pixels]])
        return cv2.warpAffine(dark, shift, dark.shape[::-1], borderMode=cv2.BORDER_REPLICATE)


def _spots(crownness: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centres, sizes and scores of the squares that stand out most from their rings."""
    import cv2

    layers = []
    for size in SIZES:
        outer = int(size * RING) // 2 * 2 + 1
        inside, whole = _mean(crownness, size), _mean(crownness, outer)
        ring = (whole * outer**2 - inside * size**2) / (outer**2 - size**2)
        layers.append((inside - 1.1 * ring) * (size / 20) ** 0.14)
    contrast = np.stack(layers)
    around = np.stack([cv2.dilate(layer, np.ones((7, 7), np.uint8)) for layer in layers])
    highest = np.maximum.reduce([around, np.roll(around, 1, axis=0), np.roll(around, -1, axis=0)])
    k, y, x = np.nonzero((contrast >= highest) & (contrast > floor))
    return x + 0.5, y + 0.5, np.array(SIZES)[k], np.clip(contrast[k, y, x], 0, 1)


def _mean(image: np.ndarray, size: int) -> np.ndarray:
    import cv2

    return cv2.blur(image, (size, size), borderType=cv2.BORDER_REFLECT)


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    import cv2

    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
