"""CLIP (Radford et al. 2021) and its kin as an encoder: any model of open_clip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import ids, weights
from pipeline.ahead import ahead
from pipeline.errors import ConfigError, WeightsError, suggest
from pipeline.images import Pixels
from pipeline.models import clip_net
from pipeline.models.foundation import Chosen
from pipeline.models.precision import autocast
from pipeline.models.text_vectors import TextVectors

VERSION = "1"
OPTIONS = {
    "precision": ("auto", "float32", "bfloat16", "float16"),  # of the image tower on a GPU; on a CPU, float32
    "vectors": ("float32", "float16"),  # as stored
}
_AT_ONCE = {"cpu": 8, "cuda": 64}  # images that go through the network together
_TEXTS_AT_ONCE = 256
_LONGEST = 8  # times the shorter edge


def build(chosen: Chosen) -> ClipEncoder:
    """The encoder in the chosen checkpoint; see `ClipEncoder` for errors."""
    return ClipEncoder(chosen)


def producer(chosen: Chosen) -> str:
    """The name of everything the encoder makes; loads no weights.

    Raises:
        ConfigError: an unknown option.
    """
    _settings(chosen)
    name = (chosen.architecture or chosen.checkpoint.file_name).partition("/")[0]
    return ids.producer(f"clip_{name}", VERSION, chosen.identity)


def companions(chosen: Chosen) -> list[str]:
    """References of the files that the encoder reads besides its checkpoint: of text towers from the hub.

    Raises:
        WeightsError: open_clip knows no such model.
    """
    here = weights.location(chosen.checkpoint)
    if chosen.checkpoint.name in weights.CHECKPOINTS or not (chosen.architecture or here.is_file()):
        return []
    what = clip_net.design_of(here, chosen.architecture) if here.is_file() else clip_net.design(chosen.architecture)
    return [*what.tokenizer_files.values(), *what.text_files.values()]


class ClipEncoder:
    """Fills the `Encoder` role, on a GPU if there is one. The network is loaded when it is first needed.

    Texts go through it in float32 wherever it runs, and their vectors are kept on disk.

    Raises:
        ConfigError: an unknown option.
        WeightsError: the checkpoint is missing; or, at first use, it is not what it should be.
    """

    def __init__(self, chosen: Chosen) -> None:
        import torch

        self.producer = producer(chosen)
        self._precision, self._stored = _settings(chosen)
        self._path = chosen.path
        self.design = clip_net.design_of(self._path, chosen.architecture)
        self.dimensions = int(self.design.config["embed_dim"])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._texts = TextVectors(self.producer, self.dimensions)
        *self._to_pixels, _, self._normalise = clip_net.preprocess(self.design).transforms
        self._square = self.design.preprocess.get("resize_mode", "shortest") == "shortest"

    @cached_property
    def network(self) -> Any:
        """open_clip's model, loaded strictly.

        Raises:
            WeightsError: the checkpoint does not hold that model.
        """
        return clip_net.load(self._path, self.design).to(self.device).requires_grad_(False)

    @property
    def temperature(self) -> float:
        """The model's own: the exponential of its logit scale."""
        known = self._texts.temperature
        return known if known is not None else float(self.network.logit_scale.exp())

    def prepare(self, image: Pixels) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 pixels of the model's size: open_clip's transform up to its last two steps."""
        seen: Any = Image.fromarray(_middle(image) if self._square else image)
        for step in self._to_pixels:
            seen = step(seen)
        return np.asarray(seen)

    def encode_prepared(self, prepared: Iterable[NDArray[np.uint8]]) -> NDArray[np.floating]:
        """(n, d) unit vectors of n prepared images, float32, or float16 by option.

        Raises:
            WeightsError: the numbers overflow in the precision chosen.
        """
        import torch

        with torch.inference_mode():
            parts = [self._forward(some) for some in _batched(prepared, _AT_ONCE[self.device])]
            if not parts:
                return np.zeros((0, self.dimensions), self._stored)
            vectors = torch.cat(parts).cpu().numpy()  # not sooner: the GPU goes on while images are prepared
        if not np.isfinite(vectors).all():
            raise WeightsError(
                f"{self.producer} gives vectors that are not finite",
                "set models.encoder.options.precision to bfloat16 or float32",
            )
        return vectors.astype(self._stored, copy=False)

    def encode_images(self, images: Sequence[Pixels]) -> NDArray[np.floating]:
        """(n, d) unit vectors of n (height, width, 3) uint8 images; see `encode_prepared`."""
        return self.encode_prepared(ahead(self.prepare, images))

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d) float32 unit vectors of n texts; those that were asked before need no network."""
        return self._texts.of(texts, self._encode_texts)

    def _encode_texts(self, texts: list[str]) -> tuple[NDArray[np.float32], float]:
        import torch

        tokens = clip_net.tokenizer(self.design)
        with torch.inference_mode():
            parts = [
                self.network.encode_text(tokens(some).to(self.device), normalize=True)
                for some in _batched(texts, _TEXTS_AT_ONCE)
            ]
        return torch.cat(parts).float().cpu().numpy(), float(self.network.logit_scale.exp())

    def _forward(self, prepared: list[NDArray[np.uint8]]) -> Any:
        """(n, d) float32 unit vectors, on the device."""
        import torch

        images = self.shown(prepared)
        with autocast(self.device, self._precision):
            features = self.network.encode_image(images)
        return torch.nn.functional.normalize(features.float(), dim=-1)

    def shown(self, prepared: list[NDArray[np.uint8]]) -> Any:
        """(n, 3, height, width) float32 input of the image tower, on the device."""
        import torch

        pixels = torch.from_numpy(np.stack(prepared))
        if self.device == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        # As ToTensor and Normalize do, but of the whole batch, and where the network is.
        return self._normalise(pixels.permute(0, 3, 1, 2).contiguous().float().div_(255))


def _settings(chosen: Chosen) -> list[str]:
    """precision and vectors, as chosen or by default."""
    chosen.check_options(set(OPTIONS))
    found = []
    for name, allowed in OPTIONS.items():
        value = chosen.options.get(name, allowed[0])
        if value not in allowed:
            raise ConfigError(f"models.encoder: {name} cannot be {value!r}", suggest(str(value), allowed))
        found.append(value)
    return found


def _middle(image: Pixels) -> Pixels:
    """The middle of a very long image: the crop sees no more, and enlarging the rest may take gigabytes."""
    height, width = image.shape[:2]
    longest = _LONGEST * min(height, width)
    top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
    return image[top : top + longest, left : left + longest]


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some
