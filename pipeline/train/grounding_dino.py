"""Grounding DINO learns a project's classes from boxes: its prompts are asked in captions of random order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import TrainingConfig
from pipeline.errors import ConfigError
from pipeline.models import grounding_dino_net as net
from pipeline.models.captions import LIMIT, Caption, WordPieces, clean, pack
from pipeline.models.grounding_dino import MEAN, STD
from pipeline.ontology import Ontology
from pipeline.train.loop import Learner, layer_rates
from pipeline.train.scenes import Crop, Crops
from pipeline.train.set_loss import Objects, set_loss
from pipeline.train.state import Peers

TIMES = 4  # proposals of the encoder that each object teaches
_TOWERS = ("backbone.", "bert.")


class DinoLearner(Learner):
    """Grounding DINO, from a checkpoint of its package's layout.

    Args:
        crops: examples at the scale that the network sees photos in.
        tune: `decoder` keeps the image and text towers as they are, `all` trains them too.

    Raises:
        ConfigError: `tune` is something else, or one class's prompts fill a caption.
    """

    def __init__(
        self, network: Any, crops: Crops, ontology: Ontology, words: WordPieces, config: TrainingConfig, tune: str
    ) -> None:
        if tune not in ("decoder", "all"):
            raise ConfigError(f"training.tune: Grounding DINO cannot be tuned by {tune!r}", "use decoder or all")
        self.network, self._crops, self._words, self._config = network, crops, words, config
        self._prompts = [[clean(prompt) for prompt in c.prompts] for c in ontology]
        for name, parameter in network.named_parameters():
            # The pooler answers no question here.
            trained = tune == "all" or not name.startswith(_TOWERS)
            parameter.requires_grad_(trained and not name.startswith("bert.pooler."))
        self._device = next(network.parameters()).device

    def rates(self) -> Iterable[tuple[str, float]]:
        names = [name for name, p in self.network.named_parameters() if p.requires_grad]
        every = [name for name, _ in self.network.named_parameters()]
        towers = [name for name in names if name.startswith(_TOWERS)]
        yield from layer_rates(towers, every, self._config.learning_rate, self._config.layer_decay)
        yield from ((name, self._config.learning_rate) for name in names if not name.startswith(_TOWERS))

    def draw(self, number: int) -> Crop:
        return self._crops.draw(number)

    def loss(self, examples: list[Crop], numbers: Sequence[int], peers: Peers) -> Any:
        import torch

        random = np.random.default_rng([self._config.seed, numbers[0], 1])
        caption, spans = self._caption(random, self._shown(examples, peers))
        mean, std = (torch.tensor(v, device=self._device).view(3, 1, 1) for v in (MEAN, STD))
        pixels = torch.from_numpy(np.stack([crop.pixels for crop in examples])).to(self._device)
        images = pixels.permute(0, 3, 1, 2).float().div(255).sub(mean).div(std).unbind()
        features = net.encode_images(self.network, images)
        text = net.encode_caption(self.network, caption)
        objects = Objects.of([_objects(crop, caption, spans) for crop in examples], self._device)
        answers = net.all_answers(self.network, features, [text] * len(examples))
        found = [set_loss(*answers[0], objects, TIMES), *(set_loss(*a, objects) for a in answers[1:])]
        losses, pairs = torch.stack([loss for loss, _ in found]), [float(pairs) for _, pairs in found]
        return (losses / peers.total(torch.tensor(pairs, device=self._device)).clamp(min=1)).sum()

    def _shown(self, crops: list[Crop], peers: Peers) -> list[int]:
        """Classes that are to be seen in the examples of any worker."""
        import torch

        seen = torch.zeros(len(self._prompts), device=self._device)
        for crop in crops:
            seen[torch.from_numpy(crop.classes[~crop.ignore]).to(seen.device)] = 1
        return [int(c) for c in peers.total(seen).nonzero()]

    def _caption(self, random: np.random.Generator, shown: Iterable[int]) -> tuple[Caption, dict[int, int]]:
        """One prompt a class in random order, those of the classes in sight first to be kept; class -> its place."""
        first = set(shown)
        order = [int(c) for c in random.permutation(len(self._prompts))]
        chosen = {c: self._prompts[c][random.integers(len(self._prompts[c]))] for c in order}
        kept: list[int] = []
        room = LIMIT - 2
        for c in sorted(order, key=lambda c: c not in first):
            length = len(self._words.encode(chosen[c])) + 1
            # Two classes with one prompt share its tokens.
            if length <= room or chosen[c] in {chosen[k] for k in kept}:
                kept.append(c)
                room -= 0 if chosen[c] in {chosen[k] for k in kept[:-1]} else length
        kept.sort(key=order.index)
        (caption, *_) = pack([[chosen[c]] for c in kept], self._words)
        return caption, {c: caption.prompts.index(chosen[c]) for c in kept}


def _objects(crop: Crop, caption: Caption, places: dict[int, int]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Boxes, tokens and regions to be ignored of a crop, as `Objects.of` takes them."""
    size = crop.pixels.shape[0]
    boxes = np.concatenate([(crop.boxes[:, :2] + crop.boxes[:, 2:]) / 2, crop.boxes[:, 2:] - crop.boxes[:, :2]], 1)
    boxes = boxes / size
    asked = np.array([int(c) in places for c in crop.classes], bool)
    taught = ~crop.ignore & asked
    tokens = np.zeros((int(taught.sum()), len(caption.tokens)), np.float32)
    for row, c in enumerate(crop.classes[taught]):
        start, end = caption.spans[places[int(c)]]
        tokens[row, start:end] = 1
    return boxes[taught], tokens, boxes[crop.ignore]
