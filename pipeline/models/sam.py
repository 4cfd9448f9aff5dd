"""Segment Anything as a segmenter: an image is embedded once, then all its prompts go through in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from pipeline import boxes as box_ops
from pipeline import ids, masks, weights
from pipeline.config import Section, parse_section
from pipeline.images import Pixels
from pipeline.models import sam_net as net
from pipeline.models.foundation import Chosen
from pipeline.models.precision import Precision, autocast
from pipeline.models.roles import Segments

VERSION = "1"
STABILITY = 1.0  # logits by which the threshold is moved, up and down
_PROMPTS_AT_ONCE = 64
_MASK_PIXELS = 48_000_000  # of full-size logits held at a time
_IMAGES_AT_ONCE = {"cpu": 1, "cuda": 8}


class SamOptions(Section):
    """What `models.segmenter.options` may say in profile foundation."""

    multimask: bool = Field(True, description="three masks a prompt, of which the one predicted best is kept; or one")
    smallest_region: int = Field(0, ge=0, description="holes and specks of fewer pixels are filled and removed")
    precision: Precision = Field("float32", description="of the image encoder on a GPU; on a CPU, float32")


def build(chosen: Chosen) -> Sam:
    """The segmenter of a checkpoint."""
    options = _options(chosen)
    return Sam(chosen.path, producer(chosen), options.multimask, options.smallest_region, options.precision)


def producer(chosen: Chosen) -> str:
    """The name of everything that this segmenter makes; needs no weights."""
    return ids.producer("sam", VERSION, weights.identity(chosen.checkpoint), _options(chosen).model_dump(mode="json"))


def _options(chosen: Chosen) -> SamOptions:
    return parse_section(SamOptions, chosen.options, "models.segmenter.options")


@dataclass(frozen=True)
class Embedding:
    """An image as SAM knows it.

    Attributes:
        features: (1, c, g, g). size: height and width of the image. shown: of what SAM was shown.
    """

    features: Any
    size: tuple[int, int]
    shown: tuple[int, int]


@dataclass(frozen=True)
class Drawn:
    """Masks of n prompts before they are encoded.

    Attributes:
        logits: (n, height, width) at the image's size; a mask is where they exceed 0.
        predicted_iou: (n,) SAM's own guess. stability: (n,) share of the mask that stays when the
            threshold moves by `STABILITY` up instead of down.
    """

    logits: Any
    predicted_iou: Any
    stability: Any


class Sam:
    """Fills the `Segmenter` role on a GPU if there is one.

    Args:
        checkpoint: an official `.pth`, or a `.safetensors` trained here.
        multimask: choose among three masks a prompt by their predicted IoU.
        smallest_region: holes and specks of fewer pixels are filled and removed; 0 leaves all.
        precision: of the image encoder on a GPU.

    Raises:
        WeightsError: the checkpoint is missing or not what it must be.
    """

    def __init__(
        self,
        checkpoint: Path,
        producer: str = "sam",
        multimask: bool = True,
        smallest_region: int = 0,
        precision: Precision = "float32",
    ) -> None:
        import torch

        self.producer = producer
        self.multimask, self.smallest_region, self.precision = multimask, smallest_region, precision
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        network, self.config = net.load(checkpoint)
        self.network = network.to(self.device)
        with torch.inference_mode():
            self._places = self.network.prompt_encoder.get_dense_pe()

    def segment(self, images: Sequence[Pixels], boxes: Sequence[NDArray[np.floating]]) -> list[Segments]:
        """The mask of each of the (n, 4) xyxy boxes of each image."""
        found = [Segments() for _ in images]
        some = [i for i, given in enumerate(boxes) if len(given)]
        at_once = _IMAGES_AT_ONCE[self.device]
        for start in range(0, len(some), at_once):
            batch = some[start : start + at_once]
            for i, embedding in zip(batch, self.embed([images[i] for i in batch]), strict=True):
                found[i] = self._encoded(self.draw(embedding, boxes=box_ops.as_boxes(boxes[i])))
        return found

    def segment_points(self, image: Pixels, points: NDArray[np.floating], labels: NDArray[np.integer]) -> Segments:
        """The mask that n groups of points mean.

        Args:
            points: (n, k, 2) x, y pixels. labels: (n, k), 1 on the object, 0 off it, -1 for no point.
        """
        (embedding,) = self.embed([image])
        return self._encoded(self.draw(embedding, points=(np.asarray(points), np.asarray(labels))))

    def segment_everything(self, image: Pixels, points_per_side: int = 32, **options: Any) -> Segments:
        """Masks of whatever there is, by the package's own generator on a grid of points, best first.

        Args:
            options: of `segment_anything.SamAutomaticMaskGenerator`, for example `pred_iou_thresh`.
        """
        from segment_anything import SamAutomaticMaskGenerator

        options = {"min_mask_region_area": self.smallest_region} | options
        generator = SamAutomaticMaskGenerator(self.network, points_per_side, output_mode="coco_rle", **options)
        rows = sorted(generator.generate(np.ascontiguousarray(image)), key=lambda row: -row["predicted_iou"])
        counts = [row["segmentation"]["counts"] for row in rows]
        return Segments(
            tuple(c if isinstance(c, str) else c.decode("ascii") for c in counts),
            np.array([row["area"] for row in rows], np.int64),
            np.clip(np.array([row["predicted_iou"] for row in rows], np.float32), 0, 1),
            np.array([row["stability_score"] for row in rows], np.float32),
        )

    def embed(self, images: Sequence[Pixels]) -> list[Embedding]:
        """Embeddings of (height, width, 3) uint8 images, computed together."""
        import torch

        shown = [self._shown(image) for image in images]
        with torch.inference_mode():
            batch = torch.stack([self.network.preprocess(self._tensor(pixels)) for pixels in shown])
            with autocast(self.device, self.precision):
                features = self.network.image_encoder(batch)
            features = features.float()
        return [
            Embedding(features[i : i + 1], image.shape[:2], pixels.shape[:2])
            for i, (image, pixels) in enumerate(zip(images, shown, strict=True))
        ]

    def draw(
        self,
        embedding: Embedding,
        boxes: NDArray[np.floating] | None = None,
        points: tuple[NDArray[np.floating], NDArray[np.integer]] | None = None,
    ) -> Iterator[Drawn]:
        """Masks of an embedded image's prompts, in order, as many at a time as fit in memory.

        Args:
            boxes: (n, 4) xyxy pixels. points: (n, k, 2) x, y pixels and (n, k) labels.
        """
        height, width = embedding.size
        at_once = max(1, min(_PROMPTS_AT_ONCE, _MASK_PIXELS // (height * width)))
        count = len(boxes) if boxes is not None else len(points[0]) if points is not None else 0
        for start in range(0, count, at_once):
            part = slice(start, start + at_once)
            some = None if points is None else (points[0][part], points[1][part])
            yield self._draw(embedding, None if boxes is None else boxes[part], some)

    def _draw(
        self,
        embedding: Embedding,
        boxes: NDArray[np.floating] | None,
        points: tuple[NDArray[np.floating], NDArray[np.integer]] | None,
    ) -> Drawn:
        import torch

        with torch.inference_mode():
            small, predicted = self.decode(embedding, boxes, points)
            best = predicted.argmax(dim=1)
            rows = torch.arange(len(best), device=best.device)
            # Only the mask that is kept is brought to full size.
            logits = self.network.postprocess_masks(small[rows, best][:, None], embedding.shown, embedding.size)[:, 0]
            over = _pixels(logits > self.network.mask_threshold + STABILITY)
            under = _pixels(logits > self.network.mask_threshold - STABILITY)
        return Drawn(logits, predicted[rows, best], over / under.clamp(min=1))

    def decode(
        self,
        embedding: Embedding,
        boxes: NDArray[np.floating] | None = None,
        points: tuple[NDArray[np.floating], NDArray[np.integer]] | None = None,
    ) -> tuple[Any, Any]:
        """(n, m, 4g, 4g) logits of each prompt's m masks at SAM's own size, and (n, m) their predicted IoU."""
        import torch

        scale = np.array([embedding.shown[1] / embedding.size[1], embedding.shown[0] / embedding.size[0]])
        corners = None if boxes is None else self._on_device(boxes * np.tile(scale, 2))
        given = None
        if points is not None:
            given = (self._on_device(points[0] * scale), torch.as_tensor(points[1], device=self.device))
        sparse, dense = self.network.prompt_encoder(points=given, boxes=corners, masks=None)
        return self.network.mask_decoder(  # type: ignore[no-any-return]
            image_embeddings=embedding.features,
            image_pe=self._places,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=self.multimask,
        )

    def _encoded(self, parts: Iterator[Drawn]) -> Segments:
        counts: list[str] = []
        area: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        scores: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
        stability: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
        for part in parts:
            inside = (part.logits > self.network.mask_threshold).cpu().numpy()
            if self.smallest_region:
                inside = np.stack([without_small_regions(mask, self.smallest_region) for mask in inside])
            counts += masks.encode_many(inside)
            area.append(np.array([np.count_nonzero(mask) for mask in inside], np.int64))
            scores.append(part.predicted_iou.clamp(0, 1).cpu().numpy())
            stability.append(part.stability.float().cpu().numpy())
        return Segments(tuple(counts), np.concatenate(area), np.concatenate(scores), np.concatenate(stability))

    def _shown(self, image: Pixels) -> Pixels:
        """The image with its longer edge as long as the network's, as `ResizeLongestSide` has it."""
        height, width = image.shape[:2]
        scale = self.config.image / max(height, width)
        size = (max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5)))
        return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))

    def _tensor(self, pixels: Pixels) -> Any:
        import torch

        return torch.from_numpy(pixels).to(self.device).permute(2, 0, 1).float()

    def _on_device(self, values: NDArray[np.floating]) -> Any:
        import torch

        return torch.as_tensor(np.asarray(values, np.float32), device=self.device)


def _pixels(inside: Any) -> Any:
    """(n,) int64 how many pixels of (n, height, width) are True: torch's own sum takes five times as long on a CPU."""
    import torch

    if inside.is_cuda:
        return inside.sum((1, 2))
    return torch.tensor([np.count_nonzero(mask) for mask in inside.numpy()], dtype=torch.int64)


def without_small_regions(mask: NDArray[np.bool_], smallest: int) -> NDArray[np.bool_]:
    """A mask with its holes of fewer pixels filled, and then its specks removed, but for the largest."""
    from segment_anything.utils.amg import remove_small_regions

    filled, _ = remove_small_regions(mask, smallest, "holes")
    result, _ = remove_small_regions(filled, smallest, "islands")
    return np.asarray(result, bool)
