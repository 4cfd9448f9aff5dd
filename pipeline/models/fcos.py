"""A small FCOS on MobileNetV2: anchor-free, one dense output, decoded without torch.

Tian et al., FCOS: Fully Convolutional One-Stage Object Detection, ICCV 2019; backbone by Sandler et al.,
MobileNetV2, CVPR 2018; pyramid by Lin et al., FPN, CVPR 2017. Depthwise-separable pyramid and heads keep
it fast on a CPU. Group norm in the new layers and frozen batch norm in the old ones make the result
independent of how a batch is divided over workers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.boxes import nms
from pipeline.errors import WeightsError
from pipeline.files import replaced
from pipeline.images import Pixels
from pipeline.models.roles import Detections

KIND = "fcos"
HEADER = "model"  # key of the description in a checkpoint's metadata
STRIDE = 32  # images are padded to a multiple of the coarsest stride that the backbone sees
MEAN = (123.675, 116.28, 103.53)  # ImageNet's, RGB in 0 to 255
STD = (58.395, 57.12, 57.375)

# MobileNetV2's blocks: the last one of each stride, and its channels.
_TAPS = {4: (3, 24), 8: (6, 32), 16: (13, 96), 32: (16, 160)}


@dataclass(frozen=True)
class FcosConfig:
    """What a checkpoint must say of itself to be used.

    Attributes:
        classes: names, in the order of the score columns.
        scale: factor by which images are resized before the network sees them.
        strides: levels that predict; the pyramid always begins at stride 32.
        limits: a box belongs to the first level whose limit (pixels, of its larger distance from a
            location to a side, after scaling) it does not exceed; the last level takes the rest.
        width: channels of pyramid and heads.
        depth: blocks before each output.
    """

    classes: tuple[str, ...]
    scale: float = 1.0
    strides: tuple[int, ...] = (8, 16, 32)
    limits: tuple[float, ...] = (64.0, 128.0)
    width: int = 64
    depth: int = 2

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> FcosConfig:
        """Raises:
        WeightsError: not such a configuration.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            lists = {k: tuple(data[k]) for k in ("classes", "strides", "limits")}
            return cls(**(data | lists))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise WeightsError(f"not the configuration of an FCOS: {error}", "train the model again") from error


def build(config: FcosConfig, backbone: Path | None = None) -> Any:
    """A `torch.nn.Module` for (n, 3, h, w) float32 RGB in 0 to 255, h and w multiples of 32.

    `forward` gives (n, l, 4 + c): xyxy boxes in pixels of that input, then the score of each class, the
    geometric mean of its probability and of centerness. `raw` gives what the loss needs.

    Args:
        backbone: file of torchvision's ImageNet weights; None leaves it random (a checkpoint follows).
    """
    import torch
    from torch import nn

    from pipeline.torch_compat import import_torchvision

    features = import_torchvision().models.mobilenet_v2(weights=None).features[:17]
    if backbone is not None:
        state = torch.load(backbone, map_location="cpu", weights_only=True)
        named = {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
        features.load_state_dict({k: named[k] for k in features.state_dict()})

    def block(channels: int) -> Any:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.GroupNorm(8, channels),
            nn.ReLU(),
        )

    def tower() -> Any:
        return nn.Sequential(*(block(config.width) for _ in range(config.depth)))

    class Fcos(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.features = features
            finest = min(config.strides)
            self.taps = [s for s in _TAPS if s >= finest]
            self.lateral = nn.ModuleList(nn.Conv2d(_TAPS[s][1], config.width, 1) for s in self.taps)
            self.smooth = nn.ModuleList(block(config.width) for _ in config.strides)
            self.class_tower, self.box_tower = tower(), tower()
            self.class_logits = nn.Conv2d(config.width, len(config.classes), 3, padding=1)
            self.distances = nn.Conv2d(config.width, 4, 3, padding=1)
            self.centerness = nn.Conv2d(config.width, 1, 3, padding=1)
            self.scales = nn.Parameter(torch.ones(len(config.strides)))
            for layer in (self.class_logits, self.distances, self.centerness):
                nn.init.normal_(layer.weight, std=0.01)
                layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
            # Focal loss (Lin et al. 2017) starts from a prior of 1 % foreground.
            self.class_logits.bias = nn.Parameter(torch.full((len(config.classes),), -math.log(99.0)))
            self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
            self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.features.eval()  # a small batch's statistics would ruin the pretrained ones
            return self

        def pyramid(self, images: Any) -> list[Any]:
            x = (images - self.mean) / self.std
            wanted = {_TAPS[s][0] for s in self.taps}
            found = []
            for index, layer in enumerate(self.features):
                x = layer(x)
                if index in wanted:
                    found.append(x)
            top = self.lateral[-1](found[-1])
            merged = {self.taps[-1]: top}
            for stride, skip, lateral in zip(
                reversed(self.taps[:-1]), reversed(found[:-1]), reversed(self.lateral[:-1]), strict=True
            ):
                top = lateral(skip) + nn.functional.interpolate(top, scale_factor=2.0, mode="nearest")
                merged[stride] = top
            return [smooth(merged[s]) for smooth, s in zip(self.smooth, config.strides, strict=True)]

        def raw(self, images: Any) -> tuple[Any, Any, Any, Any, Any]:
            """Class logits (n, l, c), distances to the sides (n, l, 4) in pixels, centerness logits (n, l),
            location centres (l, 2) in pixels and their strides (l,)."""
            logits, sides, centres, points, strides = [], [], [], [], []
            for i, (stride, level) in enumerate(zip(config.strides, self.pyramid(images), strict=True)):
                height, width = level.shape[-2:]
                boxes = self.box_tower(level)
                distance = nn.functional.softplus(self.distances(boxes) * self.scales[i] + 1.0) * (2.0 * stride)
                logits.append(self.class_logits(self.class_tower(level)).flatten(2).transpose(1, 2))
                sides.append(distance.flatten(2).transpose(1, 2))
                centres.append(self.centerness(boxes).flatten(2).transpose(1, 2))
                y = (torch.arange(height, device=images.device) + 0.5) * stride
                x = (torch.arange(width, device=images.device) + 0.5) * stride
                grid = torch.stack([x[None].expand(height, width), y[:, None].expand(height, width)], dim=2)
                grid = grid.flatten(0, 1)
                points.append(grid)
                strides.append(torch.full_like(grid[:, 0], float(stride)))
            return (
                torch.cat(logits, 1).float(),
                torch.cat(sides, 1).float(),
                torch.cat(centres, 1).float().squeeze(2),
                torch.cat(points),
                torch.cat(strides),
            )

        def forward(self, images: Any) -> Any:
            logits, sides, centerness, points, _ = self.raw(images)
            boxes = torch.cat([points - sides[..., :2], points + sides[..., 2:]], dim=2)
            scores = torch.sqrt(torch.sigmoid(logits) * torch.sigmoid(centerness).unsqueeze(2))
            return torch.cat([boxes, scores], dim=2)

    return Fcos()


def prepare(images: Sequence[Pixels], scale: float) -> NDArray[np.float32]:
    """Images resized by `scale`, padded at right and bottom to one size that is a multiple of 32.

    Returns:
        (n, 3, h, w) float32, RGB in 0 to 255, filled with ImageNet's mean colour.
    """
    resized = [resize(image, scale) for image in images]
    height = -(-max(r.shape[0] for r in resized) // STRIDE) * STRIDE
    width = -(-max(r.shape[1] for r in resized) // STRIDE) * STRIDE
    batch = np.empty((len(resized), height, width, 3), np.float32)
    batch[:] = MEAN
    for slot, image in zip(batch, resized, strict=True):
        slot[: image.shape[0], : image.shape[1]] = image
    return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))


def resize(image: Pixels, scale: float) -> Pixels:
    """(height, width, 3) uint8 resized by `scale`, never to less than one pixel."""
    import cv2

    if scale == 1.0:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def decode(
    output: NDArray[np.float32],
    sizes: Sequence[tuple[int, int]],
    config: FcosConfig,
    floor: float = 0.05,
    nms_iou: float = 0.5,
    limit: int = 300,
    candidates: int = 1000,
) -> list[Detections]:
    """The network's dense output as boxes in pixels of the images before `prepare`.

    Args:
        output: (n, l, 4 + c), as `forward` gives it.
        sizes: (height, width) of each image before `prepare`.
        floor: lowest score that is kept. nms_iou: same-class boxes that overlap more are suppressed.
        limit: most boxes an image, over all classes. candidates: most boxes a class before suppression.
    """
    found = []
    for rows, (height, width) in zip(output, sizes, strict=True):
        # `resize` rounds sizes, so each axis has its own factor.
        factors = np.array([round(width * config.scale) / width, round(height * config.scale) / height] * 2)
        boxes = np.clip(rows[:, :4] / factors, 0, [width, height, width, height]).astype(np.float32)
        real = (boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)
        parts: list[tuple[NDArray[np.float32], NDArray[np.float32], str]] = []
        for index, name in enumerate(config.classes):
            scores = rows[:, 4 + index]
            at = np.flatnonzero(real & (scores >= floor))
            at = at[np.argsort(-scores[at], kind="stable")[:candidates]]
            at = at[nms(boxes[at], scores[at], nms_iou)]
            parts.append((boxes[at], scores[at], name))
        found.append(_best(parts, limit))
    return found


def _best(parts: list[tuple[NDArray[np.float32], NDArray[np.float32], str]], limit: int) -> Detections:
    boxes = np.concatenate([p[0] for p in parts])
    scores = np.concatenate([p[1] for p in parts])
    names = [p[2] for p in parts for _ in range(len(p[1]))]
    order = np.argsort(-scores, kind="stable")[:limit]
    return Detections(boxes[order], scores[order], tuple(names[i] for i in order))


def save(path: Path, state: Mapping[str, Any], config: FcosConfig) -> None:
    """Write weights as safetensors with the configuration in its header, atomically."""
    from safetensors.torch import save_file

    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    # One key: safetensors shuffles several, and then equal weights would hash differently.
    description = json.dumps({"kind": KIND, "config": asdict(config)}, sort_keys=True)
    with replaced(path) as made:
        save_file(tensors, made, metadata={HEADER: description})


def load(path: Path) -> tuple[Any, FcosConfig]:
    """The network (in evaluation mode) and its configuration.

    Raises:
        WeightsError: the file is missing, damaged, or of another kind of model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read the checkpoint {path}: {error}", "train the model again") from error
    if header.get("kind") != KIND:
        raise WeightsError(f"{path} is not an FCOS checkpoint", "look up its kind in the table `models`")
    config = FcosConfig.from_json(json.dumps(header["config"]))
    network = build(config)
    network.load_state_dict(state)
    return network.eval(), config
