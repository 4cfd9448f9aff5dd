"""Segment Anything learns from masks: an image is embedded, and each of its objects is asked for by its box.

The recipe is the paper's (Kirillov et al. 2023): focal and dice loss at 20 to 1, boxes that are a little off, of
three masks only the best one learns, and a guess of each mask's IoU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import masks, schema
from pipeline.config import TrainingConfig
from pipeline.errors import ConfigError, DataError
from pipeline.images import Pixels, Reader
from pipeline.train.loop import Learner, layer_rates
from pipeline.train.losses import dice, sigmoid_focal
from pipeline.train.scenes import recoloured
from pipeline.train.state import Peers

FOCAL, DICE = 20.0, 1.0
MOST_OBJECTS = 16  # of one image in one step
_JITTER = 0.1  # of a box's sides, at one standard deviation
_FARTHEST = 20  # pixels of the network's input that a corner may move
_KEPT = 256  # decoded photos
MEAN = (124, 116, 104)  # what SAM's own padding stands for, in pixels


@dataclass(frozen=True)
class Outlined:
    """A row of `images` and the RLE counts of its objects' masks."""

    row: dict[str, Any]
    masks: tuple[str, ...]


def outlined(images: pa.Table, annotations: pa.Table) -> list[Outlined]:
    """The images of `annotations` that have masks to learn from, by id; ignored objects and crowds are left out."""
    aside = pc.or_(annotations["ignore"], annotations["is_crowd"])
    rows = annotations.filter(pc.and_(pc.is_valid(annotations["mask"]), pc.invert(aside)))
    of: dict[str, list[str]] = {}
    for image, mask in zip(rows["image_id"].to_pylist(), rows["mask"].to_pylist(), strict=True):
        of.setdefault(image, []).append(mask)
    found = schema.where_in(images, "image_id", sorted(of)).sort_by("image_id")
    return [Outlined(row, tuple(of[row["image_id"]])) for row in found.to_pylist()]


@dataclass(frozen=True)
class Cut:
    """One example: (h, w, 3) uint8 pixels at the network's scale, (n, 4) boxes in them, (n, m, m) masks."""

    pixels: Pixels
    boxes: NDArray[np.float32]
    masks: NDArray[np.bool_]


class Cuts:
    """Draws windows with whole or cut objects: the i-th is the same whoever draws it, and whenever.

    Args:
        edge: smallest and largest edge of the square window, in pixels of the image.
        size: edge of the network's input. fine: of the masks that it gives.
    """

    def __init__(
        self, pictures: Sequence[Outlined], edge: tuple[int, int], size: int, fine: int, rotate: bool, seed: int
    ) -> None:
        if not pictures:
            raise DataError("no mask to train on", "label some objects with masks, or set training.kind: none")
        self._pictures, self._edge, self._size, self._fine = pictures, edge, size, fine
        self._rotate, self._seed = rotate, seed
        self._reader = Reader(keep=_KEPT)

    def draw(self, number: int) -> Cut:
        """The example number `number`: at least one object, whole or cut.

        Raises:
            UnusableImage: its photo is gone or has changed since it was collected.
        """
        random = np.random.default_rng([self._seed, number])
        picture = self._pictures[int(random.integers(len(self._pictures)))]
        pixels = self._reader.read(picture.row)
        height, width = pixels.shape[:2]
        inside = np.stack([masks.decode(text, height, width) for text in picture.masks])
        x, y, edge = self._window(inside, random)
        part = (slice(y, y + edge), slice(x, x + edge))
        shown = _square(pixels[part], edge, MEAN)
        cut = np.stack([_square(mask[part], edge) for mask in inside])
        shown, cut = _turned(shown, cut, random, self._rotate)
        return self._scaled(shown, cut[cut.any(axis=(1, 2))][:MOST_OBJECTS], random)

    def _window(self, inside: NDArray[np.bool_], random: np.random.Generator) -> tuple[int, int, int]:
        """x, y and edge of a window that shows some of a random object, within the image where it fits."""
        height, width = inside.shape[1:]
        edge = round(float(np.exp(random.uniform(*np.log(self._edge)))))
        shown = np.flatnonzero(inside[random.integers(len(inside))])
        row, column = divmod(int(shown[random.integers(len(shown))]), width)
        corner = np.array([column, row]) - random.uniform(0.1, 0.9, 2) * edge
        x, y = np.clip(corner, 0, np.maximum(np.array([width, height]) - edge, 0)).astype(int).tolist()
        return x, y, edge

    def _scaled(self, pixels: Pixels, cut: NDArray[np.bool_], random: np.random.Generator) -> Cut:
        import cv2

        size, scale = self._size, self._size / pixels.shape[0]
        small = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        boxes, fine = [], []
        for mask in cut:
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) * scale
            spread = np.tile([box[2] - box[0], box[3] - box[1]], 2) * _JITTER
            moved = box + np.clip(random.normal(0, 1, 4) * spread, -_FARTHEST, _FARTHEST)
            boxes.append(np.clip(moved, 0, size))
            share = cv2.resize(mask.astype(np.uint8) * 255, (self._fine, self._fine), interpolation=cv2.INTER_AREA)
            fine.append(share >= min(128, share.max()))  # the smallest objects keep a pixel
        return Cut(
            recoloured(np.asarray(small, np.uint8), random),
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(fine, bool).reshape(-1, self._fine, self._fine),
        )


class SamLearner(Learner):
    """SAM's mask decoder, or all of it.

    Args:
        tune: `decoder` keeps the image encoder and the prompts' as they are, `all` trains them too.

    Raises:
        ConfigError: `tune` is something else.
    """

    def __init__(self, network: Any, cuts: Cuts, config: TrainingConfig, tune: str) -> None:
        if tune not in ("decoder", "all"):
            raise ConfigError(f"training.tune: SAM cannot be tuned by {tune!r}", "use decoder or all")
        self.network, self._cuts, self._config = network, cuts, config
        self._whole = tune == "all"
        network.requires_grad_(False)
        (network if self._whole else network.mask_decoder).requires_grad_(True)
        # Points and earlier masks are not asked with, so what encodes them learns nothing.
        for part in (network.prompt_encoder.mask_downscaling, network.prompt_encoder.not_a_point_embed):
            part.requires_grad_(False)
        network.prompt_encoder.point_embeddings[:2].requires_grad_(False)
        self._device = next(network.parameters()).device

    def rates(self) -> Iterable[tuple[str, float]]:
        every = [name for name, _ in self.network.named_parameters() if name.startswith("image_encoder.")]
        trained = [name for name, p in self.network.named_parameters() if p.requires_grad]
        rate = self._config.learning_rate
        tower = [name for name in trained if name.startswith("image_encoder.")]
        yield from layer_rates(tower, every, rate, self._config.layer_decay)
        yield from ((name, rate) for name in trained if not name.startswith("image_encoder."))

    def draw(self, number: int) -> Cut:
        return self._cuts.draw(number)

    def loss(self, examples: list[Cut], numbers: Sequence[int], peers: Peers) -> Any:
        import torch

        some = [cut for cut in examples if len(cut.boxes)]
        objects = torch.tensor(float(sum(len(cut.boxes) for cut in some)), device=self._device)
        total = peers.total(objects).clamp(min=1)
        if not some:
            return torch.zeros_like(objects)
        pixels = torch.from_numpy(np.stack([cut.pixels for cut in some])).to(self._device)
        images = self.network.preprocess(pixels.permute(0, 3, 1, 2).float())
        with torch.set_grad_enabled(self._whole):
            features = self.network.image_encoder(images)
        boxes, truth = (
            torch.from_numpy(np.concatenate([getattr(cut, key) for cut in some])).to(self._device)
            for key in ("boxes", "masks")
        )
        image = torch.repeat_interleave(torch.tensor([len(cut.boxes) for cut in some])).to(self._device)
        prompts, decoder = self.network.prompt_encoder, self.network.mask_decoder
        sparse, dense = prompts(points=None, boxes=boxes, masks=None)
        # The decoder knows one image for all its prompts, and adds it to what each prompt brings: so each brings its
        # own, and the one image is nothing.
        logits, guess = decoder.predict_masks(
            image_embeddings=torch.zeros_like(features[:1]),
            image_pe=prompts.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense + features[image],
        )
        return mask_loss(logits, guess, truth.float()).sum() / total


def mask_loss(logits: Any, guess: Any, truth: Any) -> Any:
    """(n,) loss: of the single mask, of the best of the others, and of every guessed IoU.

    Args:
        logits: (n, 1 + m, h, w), the mask that answers alone first. guess: (n, 1 + m) predicted IoU.
        truth: (n, h, w) 0 or 1.
    """
    import torch

    flat, wanted = logits.flatten(2), truth.flatten(1)[:, None].expand(-1, logits.shape[1], -1)
    each = FOCAL * sigmoid_focal(flat, wanted).mean(-1) + DICE * dice(flat, wanted)
    with torch.no_grad():
        seen = flat > 0
        common = (seen & (wanted > 0)).sum(-1).float()
        overlap = common / (seen | (wanted > 0)).sum(-1).clamp(min=1)
    guessed = ((guess - overlap) ** 2).mean(1)
    best = each[:, 1:].amin(1) if each.shape[1] > 1 else 0.0
    return each[:, 0] + best + guessed


def _square(values: NDArray[Any], edge: int, fill: Any = 0) -> NDArray[Any]:
    """`values` at the upper left of an (edge, edge) square of `fill`."""
    if values.shape[:2] == (edge, edge):
        return values
    canvas = np.empty((edge, edge, *values.shape[2:]), values.dtype)
    canvas[:] = fill
    canvas[: values.shape[0], : values.shape[1]] = values
    return canvas


def _turned(
    pixels: Pixels, cut: NDArray[np.bool_], random: np.random.Generator, rotate: bool
) -> tuple[Pixels, NDArray[np.bool_]]:
    """Both mirrored half the time; for views from above also upside down and turned by quarters."""
    mirror, down, swap = random.random(3) < 0.5
    if mirror:
        pixels, cut = pixels[:, ::-1], cut[:, :, ::-1]
    if rotate and down:
        pixels, cut = pixels[::-1], cut[:, ::-1]
    if rotate and swap:
        pixels, cut = pixels.transpose(1, 0, 2), cut.transpose(0, 2, 1)
    return np.ascontiguousarray(pixels), np.ascontiguousarray(cut)
