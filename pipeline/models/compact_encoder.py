"""A CLIP-style encoder out of two small checkpoints, with no training.

Image tower: MobileNetV2 (ImageNet). Its pooled features are centred and projected on the leading right
singular vectors of its own centred classifier, which keeps what tells the 1,000 classes apart. Text
tower: BGE-small sentence vectors, carried into the same space by ridge regression from the vectors of
"a photo of a CLASS" to the projected classifier rows (a linear cross-modal map in the manner of
DeViSE, Frome et al. 2013, with closed-form weights).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import ids, weights
from pipeline.ahead import ahead
from pipeline.images import Pixels
from pipeline.models.text import SentenceEncoder
from pipeline.models.threads import each_on_one_thread

VERSION = "1"
RESIZED, CROPPED = 256, 224  # as the checkpoint was evaluated
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RECIPE: dict[str, Any] = {
    "dimensions": 256,
    "ridge": 1.0,
    "template": "a photo of a {}",
    "centre": "batch_norm",
    "resized": RESIZED,
    "cropped": CROPPED,
    "images": weights.checkpoint("mobilenet_v2").sha256,
    "texts": weights.checkpoint("bge_small_en").sha256,
}
TEMPERATURE = 20.0  # least log-loss on clip-art cut-outs of 13 classes
_LONGEST = 8  # times the shorter edge

Heads = dict[str, NDArray[np.float32]]


def producer() -> str:
    """The name of everything this encoder makes; needs no weights."""
    return ids.producer("compact_encoder", VERSION, RECIPE)


def preprocess(image: Pixels) -> NDArray[np.uint8]:
    """(224, 224, 3) uint8: shorter edge to 256 by antialiased bilinear, then the centre crop."""
    image = _middle(image)
    height, width = image.shape[:2]
    short = min(height, width)
    new_width, new_height = int(RESIZED * width / short), int(RESIZED * height / short)
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
    left, top = round((new_width - CROPPED) / 2.0), round((new_height - CROPPED) / 2.0)
    return np.array(resized.crop((left, top, left + CROPPED, top + CROPPED)))


def _middle(image: Pixels) -> Pixels:
    """The middle of a very long image: the crop sees no more, and enlarging the rest may take gigabytes."""
    height, width = image.shape[:2]
    longest = _LONGEST * min(height, width)
    top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
    return image[top : top + longest, left : left + longest]


class CompactEncoder:
    """Fills the `Encoder` role on a CPU.

    Raises:
        WeightsError: the compact checkpoints have not been pulled.
    """

    dimensions: int = RECIPE["dimensions"]
    temperature = TEMPERATURE

    def __init__(self) -> None:
        self.producer = producer()
        texts = SentenceEncoder()
        self.model = build_clip(texts)
        self.tokenizer = texts.tokenize
        self._tower = _fused(self.model.visual)
        self._mean = self.model.image_mean.numpy()
        self._projection = self.model.image_projection.detach().numpy()

    def prepare(self, image: Pixels) -> NDArray[np.uint8]:
        """(224, 224, 3) uint8: what the tower sees of an image."""
        return preprocess(image)

    def encode_prepared(self, prepared: Iterable[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(n, 256) float32 unit vectors of n prepared images.

        They do not depend on the number of threads, nor on which images are encoded together.
        """
        pooled = each_on_one_thread(self._pooled, prepared)
        if not pooled:
            return np.zeros((0, self.dimensions), np.float32)
        # Not BLAS: the order of its sums follows the number of threads and rows.
        vectors: NDArray[np.float32] = np.einsum("nk,kd->nd", np.concatenate(pooled) - self._mean, self._projection)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def encode_images(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """(n, 256) float32 unit vectors of n (height, width, 3) uint8 images."""
        return self.encode_prepared(ahead(self.prepare, images))

    def _pooled(self, prepared: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            pixels = self.model.normalise(torch.from_numpy(prepared[None]))
            pooled: NDArray[np.float32] = self._tower(pixels).mean((2, 3)).numpy()
        return pooled

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, 256) float32 unit vectors of n texts."""
        import torch

        if not texts:
            return np.zeros((0, self.dimensions), np.float32)
        with torch.inference_mode():
            vectors: NDArray[np.float32] = self.model.encode_text(self.tokenizer(texts), normalize=True).numpy()
        return vectors


def build_clip(texts: SentenceEncoder) -> Any:
    """A torch module with open_clip's calls: `encode_image`, `encode_text`, `get_logits`, `forward`.

    Its image side is trainable; its text tower is fixed.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    network = load_mobilenet()
    heads = load_heads(network, texts)

    class CompactClip(nn.Module):
        image_mean: torch.Tensor
        text_mean: torch.Tensor
        text_offset: torch.Tensor
        pixel_mean: torch.Tensor
        pixel_std: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.visual = network.features
            self.image_projection = nn.Parameter(torch.from_numpy(heads["image_projection"]))
            self.text_projection = nn.Parameter(torch.from_numpy(heads["text_projection"]), requires_grad=False)
            self.logit_scale = nn.Parameter(torch.tensor(TEMPERATURE).log())
            for name in ("image_mean", "text_mean", "text_offset"):
                self.register_buffer(name, torch.from_numpy(heads[name]))
            self.register_buffer("pixel_mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
            self.register_buffer("pixel_std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

        def normalise(self, pixels: Any) -> Any:
            """(n, h, w, 3) uint8 -> (n, 3, h, w) float32 as the tower expects it."""
            return (pixels.permute(0, 3, 1, 2).float().div(255) - self.pixel_mean) / self.pixel_std

        def encode_image(self, image: Any, normalize: bool = False) -> Any:
            pooled = self.visual(image).mean((2, 3))
            vectors = (pooled - self.image_mean) @ self.image_projection
            return functional.normalize(vectors, dim=-1) if normalize else vectors

        def encode_text(self, text: Any, normalize: bool = False) -> Any:
            sentences = torch.from_numpy(texts.encode_tokens(text.cpu().numpy())).to(self.text_mean.device)
            vectors = (sentences - self.text_mean) @ self.text_projection + self.text_offset
            return functional.normalize(vectors, dim=-1) if normalize else vectors

        def get_logits(self, image: Any, text: Any) -> tuple[Any, Any]:
            images, sentences, scale = self(image, text)
            logits = scale * images @ sentences.T
            return logits, logits.T

        def forward(self, image: Any = None, text: Any = None) -> tuple[Any, Any, Any]:
            images = None if image is None else self.encode_image(image, normalize=True)
            sentences = None if text is None else self.encode_text(text, normalize=True)
            return images, sentences, self.logit_scale.exp()

    return CompactClip().eval()


def load_mobilenet() -> Any:
    """torchvision's MobileNetV2 with the pulled ImageNet weights, in evaluation mode."""
    from pipeline.torch_compat import import_torchvision

    torchvision = import_torchvision()
    import torch

    network = torchvision.models.mobilenet_v2()
    state = torch.load(weights.resolve("mobilenet_v2"), map_location="cpu", weights_only=True)
    network.load_state_dict(state)
    return network.eval()


def _fused(tower: Any) -> Any:
    """A copy of a convolutional tower for inference, twice as fast: norms folded in, channels last."""
    import copy

    import torch
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    fast = copy.deepcopy(tower).requires_grad_(False)
    for block in [m for m in fast.modules() if isinstance(m, nn.Sequential)]:
        for i in range(len(block) - 1):
            first, second = block[i], block[i + 1]
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                block[i], block[i + 1] = fuse_conv_bn_eval(first, second), nn.Identity()
    return fast.to(memory_format=torch.channels_last)


def load_heads(network: Any, texts: SentenceEncoder) -> Heads:
    """The projections of both towers, from the cache beside the weights or computed (2 s)."""
    from safetensors.numpy import load_file

    path = weights.weights_root() / f"compact_encoder_heads-{ids.fingerprint(VERSION, RECIPE)}.safetensors"
    if path.is_file():
        return load_file(path)
    heads = compute_heads(network, texts)
    with contextlib.suppress(OSError):  # a read-only cache costs the next process those 2 s again
        _save(heads, path)
    return heads


def _save(heads: Heads, path: Path) -> None:
    from safetensors.numpy import save_file

    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file(heads, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def compute_heads(network: Any, texts: SentenceEncoder) -> Heads:
    """Both projections from the checkpoints alone; see the module's text."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    rows = network.classifier[1].weight.detach().double().numpy()
    rows = rows - rows.mean(0)
    basis = _signed(np.linalg.svd(rows, full_matrices=False)[2][: RECIPE["dimensions"]])
    targets = rows @ basis.T
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    sentences = texts.encode([RECIPE["template"].format(name) for name in _IMAGENET_CATEGORIES]).astype(np.float64)
    mean, offset = sentences.mean(0), targets.mean(0)
    centred = sentences - mean
    gram = centred.T @ centred + RECIPE["ridge"] * np.eye(centred.shape[1])
    ridge = np.linalg.solve(gram, centred.T @ (targets - offset))
    heads = {
        "image_mean": _expected_activation(network.features[-1][1]),
        "image_projection": basis.T,
        "text_mean": mean,
        "text_projection": ridge,
        "text_offset": offset,
    }
    return {name: np.ascontiguousarray(values, np.float32) for name, values in heads.items()}


def _signed(basis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Singular vectors with their largest component positive: LAPACK leaves the sign open."""
    largest = np.take_along_axis(basis, np.abs(basis).argmax(1)[:, None], axis=1)
    return basis * np.sign(largest)


def _expected_activation(batch_norm: Any) -> NDArray[np.float64]:
    """Mean of ReLU6 of a normal variable with the batch norm's mean and deviation.

    It stands for the mean pooled feature of ImageNet, which the checkpoint does not hold. Without it all
    cosines share one large offset.
    """
    from scipy.stats import norm

    mean = batch_norm.bias.detach().double().numpy()
    deviation = np.maximum(batch_norm.weight.detach().double().abs().numpy(), 1e-6)

    def rectified(shifted: NDArray[np.float64]) -> NDArray[np.float64]:
        z = shifted / deviation
        result: NDArray[np.float64] = shifted * norm.cdf(z) + deviation * norm.pdf(z)
        return result

    return rectified(mean) - rectified(mean - 6.0)
