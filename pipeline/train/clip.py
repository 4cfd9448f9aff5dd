"""CLIP learns a project's classes: pictures and the texts that describe them are drawn together.

The loss is that of CLIP (Radford et al. 2021) with every pair that belongs together as a positive one (UniCL,
Yang et al. 2022). Tuning with the loss of pre-training is what keeps a model robust (FLYP, Goyal et al. 2023).
Workers that train together share the pictures and the texts of a step, and tell each other their vectors: each
picture is told from all texts of the step, and each text from all pictures, however many workers there are.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import TrainingConfig
from pipeline.errors import ConfigError, DataError
from pipeline.images import Pixels, Reader
from pipeline.models import clip_net
from pipeline.models.clip import ClipEncoder
from pipeline.ontology import Ontology
from pipeline.train import adapters
from pipeline.train.loop import Learner, layer_rates
from pipeline.train.state import Peers

MOST_TEXTS = 64  # classes that pictures are told from in one step
_KEPT = 256  # decoded photos
_SMALLEST = 0.7  # share of a photo's edges that an example shows
_HOTTEST = math.log(100)  # of the temperature's logarithm, as in CLIP


@dataclass(frozen=True)
class Picture:
    """A row of `images`, the index of its class (-1: unknown), and its caption ("": none)."""

    row: dict[str, Any]
    class_index: int
    caption: str = ""


def read_captions(path: Path) -> dict[str, str]:
    """Caption by file name, of a CSV with the columns file_name and caption.

    Raises:
        ConfigError: it cannot be read, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return {row["file_name"]: row["caption"].strip() for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"training.captions: cannot read {path}: {error}", "name a CSV file") from error
    except (KeyError, AttributeError) as error:
        raise ConfigError(
            f"training.captions: {path} has a row without file_name or caption", "write both columns' names on top"
        ) from error


class ClipLearner(Learner):
    """Both towers of an encoder; its network is left merged and ready after `finish`.

    Args:
        tune: `adapters` trains low-rank adapters on the blocks' linear layers, `all` every weight.

    Raises:
        ConfigError: `tune` is something else, or the towers have no blocks to adapt.
        DataError: there is no picture.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        pictures: Sequence[Picture],
        ontology: Ontology,
        templates: Sequence[str],
        config: TrainingConfig,
        tune: str,
    ) -> None:
        if tune not in ("adapters", "all"):
            raise ConfigError(f"training.tune: CLIP cannot be tuned by {tune!r}", "use adapters or all")
        if not pictures:
            raise DataError("no labelled image to train on", "label some, or set training.kind: none")
        self.network, self._encoder = encoder.network, encoder
        self._pictures, self._config = pictures, config
        self._texts = [[t.format(prompt) for prompt in c.prompts for t in templates] for c in ontology]
        self._tokens = clip_net.tokenizer(encoder.design)
        self._reader = Reader(keep=_KEPT)
        self._order = lru_cache(2)(self._shuffled)
        if tune == "all":
            self.network.requires_grad_(True)
        elif not adapters.add(self.network, config.rank):
            raise ConfigError("training.tune: this CLIP has no linear layers to adapt", "use tune: all")
        self.network.logit_scale.requires_grad_(True)

    def rates(self) -> Iterable[tuple[str, float]]:
        every = [name for name, _ in self.network.named_parameters()]
        trained = [name for name, p in self.network.named_parameters() if p.requires_grad]
        return layer_rates(trained, every, self._config.learning_rate, self._config.layer_decay)

    def draw(self, number: int) -> NDArray[np.uint8]:
        """What the network sees of a random window of the picture."""
        random = np.random.default_rng([self._config.seed, number, 1])
        pixels = _window(self._reader.read(self._picture(number).row), random, self._config.rotate)
        return self._encoder.prepare(pixels)

    def loss(self, examples: list[NDArray[np.uint8]], numbers: Sequence[int], peers: Peers) -> Any:
        import torch
        from torch.nn.utils import parametrize

        random = np.random.default_rng([self._config.seed, numbers[0], 2])
        texts, pairs = self._described([self._picture(number) for number in numbers], random)
        with parametrize.cached():
            images = self.network.encode_image(self._encoder.shown(examples), normalize=True)
            mine = peers.mine(texts)
            words = (
                self.network.encode_text(self._tokens(mine).to(images.device), normalize=True)
                if mine
                else images.new_zeros(0, images.shape[1])
            )
        images, words = peers.together(images, len(numbers)), peers.together(words, len(texts))
        # Every worker has the whole loss, with the gradient of its own vectors; only one has that of the temperature.
        scale = self.network.logit_scale if not peers.rank else self.network.logit_scale.detach()
        logits = scale.clamp(max=_HOTTEST).exp() * images @ words.T
        loss = contrastive(logits, torch.from_numpy(pairs).to(images.device))
        return loss - loss.detach() * (1 - 1 / peers.count)

    def _picture(self, number: int) -> Picture:
        epoch, place = divmod(number, len(self._pictures))
        return self._pictures[self._order(epoch)[place]]

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._config.seed, epoch, 0]).permutation(len(self._pictures))

    def finish(self) -> None:
        """Merge the adapters, and keep the temperature in CLIP's bounds."""
        import torch

        adapters.merge(self.network)
        with torch.no_grad():
            self.network.logit_scale.clamp_(max=_HOTTEST)

    def _described(
        self, pictures: Sequence[Picture], random: np.random.Generator
    ) -> tuple[list[str], NDArray[np.bool_]]:
        """Texts, and which (picture, text) belong together: one text of each class, and the captions."""
        shown = {p.class_index for p in pictures if p.class_index >= 0}
        order = sorted((int(c) for c in random.permutation(len(self._texts))), key=lambda c: c not in shown)
        classes = order[: max(MOST_TEXTS, len(shown))]
        texts = [self._texts[c][random.integers(len(self._texts[c]))] for c in classes]
        captions = sorted({p.caption for p in pictures} - {""})
        by_class = np.array([[p.class_index == c for c in classes] for p in pictures], bool)
        by_caption = np.array([[p.caption == c for c in captions] for p in pictures], bool)
        return texts + captions, np.hstack([by_class, by_caption.reshape(len(pictures), -1)])


def contrastive(logits: Any, pairs: Any) -> Any:
    """The mean of two cross-entropies: of the texts for each image, and of the images for each text.

    Args:
        logits: (images, texts). pairs: (images, texts) bool, which belong together; those without any pair
            are only told apart from.
    """
    import torch

    def one_way(scores: Any, positive: Any) -> Any:
        with_any = positive.any(dim=1)
        target = positive[with_any].float()
        target = target / target.sum(dim=1, keepdim=True)
        return torch.nn.functional.cross_entropy(scores[with_any], target)

    return (one_way(logits, pairs) + one_way(logits.T, pairs.T)) / 2


def _window(pixels: Pixels, random: np.random.Generator, rotate: bool) -> Pixels:
    """A random window, mirrored half the time; for views from above also upside down and turned by quarters."""
    height, width = pixels.shape[:2]
    share = random.uniform(_SMALLEST, 1)
    h, w = max(1, round(height * share)), max(1, round(width * share))
    y, x = random.integers(height - h + 1), random.integers(width - w + 1)
    window = pixels[y : y + h, x : x + w]
    mirror, down, swap = random.random(3) < 0.5
    if mirror:
        window = window[:, ::-1]
    if rotate and down:
        window = window[::-1]
    if rotate and swap:
        window = window.transpose(1, 0, 2)
    return np.ascontiguousarray(window)
