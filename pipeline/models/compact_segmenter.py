"""U-2-Net (Qin et al. 2020), its small version, as a box-to-mask model: the salient object of a crop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import boxes as box_ops
from pipeline import ids, masks, weights
from pipeline.images import Pixels
from pipeline.models.roles import Segments
from pipeline.models.threads import each_on_one_thread

VERSION = "1"
INPUT = 320
MARGIN = 0.15  # of the box's size, on each side
THRESHOLD = 0.5
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)

Window = tuple[int, int, int, int]  # x1, y1, x2, y2 in whole pixels


def producer() -> str:
    """The name of everything this segmenter makes; needs no weights."""
    recipe = [INPUT, MARGIN, THRESHOLD, weights.checkpoint("u2netp").sha256]
    return ids.producer("compact_segmenter", VERSION, recipe)


class CompactSegmenter:
    """Fills the `Segmenter` role on a CPU.

    Raises:
        WeightsError: the compact checkpoints have not been pulled.
    """

    def __init__(self) -> None:
        from pipeline.models.onnx import session

        self._session = session(weights.resolve("u2netp"))
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name
        self.producer = producer()

    def segment(self, images: Sequence[Pixels], boxes: Sequence[NDArray[np.floating]]) -> list[Segments]:
        """Masks of each image's (n, 4) xyxy boxes, inside them.

        Quality is how clear the saliency is inside the mask, times how well the mask fills its box; it is
        0 for an empty mask.
        """
        given = [box_ops.as_boxes(some) for some in boxes]
        asked = [_Asked.of(image, some) for image, some in zip(images, given, strict=True)]
        # One box a call: the graph's batch size is fixed at 1. The boxes of all images share the threads.
        crops = [(at, i) for at, one in enumerate(asked) for i in one.drawn]
        seen = each_on_one_thread(lambda c: self._saliency(images[c[0]], asked[c[0]].around[c[1]]), crops)
        of: list[dict[int, NDArray[np.float32]]] = [{} for _ in asked]
        for (at, i), saliency in zip(crops, seen, strict=True):
            of[at][i] = saliency
        return [one.segments(mine, image) for one, mine, image in zip(asked, of, images, strict=True)]

    def _saliency(self, image: Pixels, crop: Window) -> NDArray[np.float32]:
        """Saliency in [0, 1] of each pixel of a crop."""
        x1, y1, x2, y2 = crop
        square = Image.fromarray(image[y1:y2, x1:x2]).resize((INPUT, INPUT), Image.Resampling.BILINEAR)
        pixels = np.asarray(square, np.float32)
        scaled = (pixels / max(float(pixels.max()), 1.0) - _MEAN) / _STD  # by the brightest, as it was trained
        feed = {self._input: np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])}
        found = Image.fromarray(self._session.run([self._output], feed)[0][0, 0])
        return np.asarray(found.resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class _Asked:
    """The boxes of one image in whole pixels, and the larger windows that the network looks at."""

    inside: list[Window]
    around: list[Window]

    @classmethod
    def of(cls, image: Pixels, boxes: box_ops.Boxes) -> _Asked:
        return cls(_windows(boxes, image), _windows(_grown(boxes), image))

    @property
    def drawn(self) -> list[int]:
        """Boxes of which the image shows something."""
        return [i for i, (x1, y1, x2, y2) in enumerate(self.inside) if x2 > x1 and y2 > y1]

    def segments(self, saliency: Mapping[int, NDArray[np.float32]], image: Pixels) -> Segments:
        count = len(self.inside)
        crops, corners = [np.zeros((0, 0), bool)] * count, np.zeros((count, 2), np.int64)
        area, quality = np.zeros(count, np.int64), np.zeros(count, np.float32)
        for i, crop in saliency.items():
            (x1, y1, x2, y2), (left, top, _, _) = self.inside[i], self.around[i]
            inside = crop[y1 - top : y2 - top, x1 - left : x2 - left]
            crops[i], corners[i] = inside > THRESHOLD, (x1, y1)
            area[i], quality[i] = crops[i].sum(), _quality(inside)
        return Segments(tuple(masks.encode_crops(crops, corners, *image.shape[:2])), area, quality)


def _grown(boxes: box_ops.Boxes) -> box_ops.Boxes:
    pad = MARGIN * (boxes[:, 2:] - boxes[:, :2])
    return np.concatenate([boxes[:, :2] - pad, boxes[:, 2:] + pad], axis=1)


def _windows(boxes: box_ops.Boxes, image: Pixels) -> list[Window]:
    inside = box_ops.clip(np.round(boxes), image.shape[1], image.shape[0]).astype(int)
    return [(int(x1), int(y1), int(x2), int(y2)) for x1, y1, x2, y2 in inside]


def _quality(saliency: NDArray[np.float32]) -> float:
    mask = saliency > THRESHOLD
    if not mask.any():
        return 0.0
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    tight = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    clearness = (saliency[mask] - THRESHOLD).mean() / (1 - THRESHOLD)
    return float(clearness * tight / mask.size)
