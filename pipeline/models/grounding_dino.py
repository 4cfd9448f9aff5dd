"""Grounding DINO as a detector: many classes and prompts of many images in few passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import weights
from pipeline.boxes import from_cxcywhn
from pipeline.config import parse_section
from pipeline.images import Pixels
from pipeline.models import dino_questions, seams
from pipeline.models import grounding_dino_net as net
from pipeline.models.captions import Caption
from pipeline.models.dino_questions import LIMIT, DinoOptions, Questions
from pipeline.models.foundation import COMPANIONS, Chosen
from pipeline.models.precision import autocast
from pipeline.models.roles import Detections, Term
from pipeline.models.settle import Proposals
from pipeline.ontology import Ontology

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Pixels that go through the network together: activations of Swin-T take about 1 GB a million.
_AT_ONCE = {"cpu": 1_200_000, "cuda": 16_000_000}


def build(chosen: Chosen, ontology: Ontology, nms_iou: float, name: str, options: Mapping[str, Any]) -> GroundingDino:
    """The detector of a checkpoint, asked for an ontology's classes."""
    return GroundingDino(questions(chosen, ontology, nms_iou, name, options), chosen.path)


def questions(chosen: Chosen, ontology: Ontology, nms_iou: float, name: str, options: Mapping[str, Any]) -> Questions:
    """What this detector is asked; needs the tokeniser, but no weights."""
    tokenizer = weights.resolve(COMPANIONS["detector"][0])
    return Questions(ontology, tokenizer, _weights(chosen), _options(chosen, name, options), nms_iou, name)


def producer(chosen: Chosen, ontology: Ontology, nms_iou: float, name: str, options: Mapping[str, Any]) -> str:
    """The name of everything that this detector says; needs no weights."""
    return dino_questions.producer(ontology, _options(chosen, name, options), nms_iou, name, _weights(chosen))


def _weights(chosen: Chosen) -> str:
    """Names the network; its options are named apart, since most of them change no proposal."""
    return str(weights.identity(chosen.checkpoint))


def _options(chosen: Chosen, name: str, options: Mapping[str, Any]) -> DinoOptions:
    """Settings of the model for all labellers, and over them the labeller's own."""
    known = set(DinoOptions.model_fields)
    chosen.check_options(known)
    return parse_section(DinoOptions, {**chosen.options, **options}, f"options of labeller {name!r}")


class GroundingDino:
    """Fills the `Detector` role on a GPU if there is one.

    Args:
        questions: what is asked.
        checkpoint: an official `.pth`, or a `.safetensors` trained here.

    Raises:
        WeightsError: the checkpoint is missing or not what it must be.
    """

    def __init__(self, questions: Questions, checkpoint: Path) -> None:
        import torch

        self.questions = questions
        self.producer, self.model = questions.producer, questions.model
        self.options = questions.options
        self._first = np.cumsum([0] + [len(c.prompts) for c in questions.captions])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        network, self.config = net.load(checkpoint, questions.words)
        self.network = network.to(self.device)
        with torch.inference_mode():
            self._texts = [net.encode_caption(self.network, caption) for caption in questions.captions]

    def vocabulary(self) -> list[Term]:
        """Every prompt is understood, as the text encoder reads it."""
        return self.questions.vocabulary()

    def detect(self, images: Sequence[Pixels]) -> list[Detections]:
        """Boxes of the ontology's classes in n (height, width, 3) uint8 images, best first."""
        found = self.propose(images)
        kept = self.questions.settle(found)
        names = np.array([rule.class_name for rule in self.questions.rules], object)[kept.rule]
        image = found.image[kept.row]
        said = []
        for number in range(len(images)):
            mine = kept.row[image == number]
            boxes, scores = found.boxes[mine].astype(np.float32), found.scores[mine].astype(np.float32)
            said.append(Detections(boxes, scores, tuple(names[image == number].tolist())))
        return said

    def propose(self, images: Sequence[Pixels], asked: Sequence[Sequence[int]] | None = None) -> Proposals:
        """What the network gives for each prompt: boxes scored `floor` or more, and the best in any case.

        Args:
            asked: the positions in `questions.captions` to ask of each image; None asks all.
        """
        import torch

        questions = [list(range(len(self.questions.captions)))] * len(images) if asked is None else asked
        looks = [
            _Look(number, window, tuple(questions[number]))
            for number, image in enumerate(images)
            for window in seams.windows(image.shape[1], image.shape[0], self.options.tile, self.options.overlap)
            if questions[number]
        ]
        sizes = [resized(int(look.window[3]), int(look.window[2]), self.config) for look in looks]
        parts: list[_Part] = []
        with torch.inference_mode(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for batch in batches(sizes, self.options.padding, _AT_ONCE[self.device]):
                pixels = list(pool.map(lambda i: _shown(images[looks[i].image], looks[i].window, sizes[i]), batch))
                parts += self._ask([looks[i] for i in batch], pixels)
        return self._merged(images, parts)

    def _ask(self, looks: Sequence[_Look], pixels: Sequence[Pixels]) -> Iterator[_Part]:
        """One batch of looks: images encoded once, then caption by caption asked of all that want it.

        A caption has a pass of its own, so that its answers do not depend on what else is asked: the last
        bit decides between queries of nearly equal rank, and ranks have embeddings of their own.
        """
        with autocast(self.device, self.options.precision):
            features = net.encode_images(self.network, [self._normalised(p) for p in pixels], self.config.queries)
        for caption in sorted({c for look in looks for c in look.captions}):
            rows = [row for row, look in enumerate(looks) if caption in look.captions]
            some = features if len(rows) == len(looks) else features.take(rows)
            with autocast(self.device, self.options.precision):
                logits, boxes = net.answer(self.network, some, [self._texts[caption]] * len(rows))
            for row, logit, box in zip(rows, logits.float(), boxes.float(), strict=True):
                scores, text = _by_prompt(logit.sigmoid(), self.questions.captions[caption])
                yield self._part(looks[row], caption, scores, text, box.cpu().numpy())

    def _normalised(self, pixels: Pixels) -> Any:
        import torch

        tensor = torch.from_numpy(pixels).to(self.device).permute(2, 0, 1).float().div_(255)
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (MEAN, STD))
        return tensor.sub_(mean).div_(std)

    def _part(
        self, look: _Look, caption: int, scores: NDArray[np.float32], text: NDArray[np.float32], shares: Any
    ) -> _Part:
        order = np.argsort(-scores, axis=0, kind="stable")[:LIMIT]
        column = np.broadcast_to(np.arange(scores.shape[1]), order.shape)
        kept = scores[order, column] >= self.options.floor
        kept[0] = True
        query, prompt = order[kept], column[kept]
        x, y, width, height = look.window
        boxes = from_cxcywhn(shares[query], float(width), float(height)) + np.array([x, y, x, y])
        return _Part(look, self._first[caption] + prompt, boxes, scores[query, prompt], text[query, prompt])

    def _merged(self, images: Sequence[Pixels], parts: Sequence[_Part]) -> Proposals:
        """All parts, image by image and prompt by prompt; what several windows saw is one box."""
        image, prompt, boxes, scores, text = [], [], [], [], []
        for number, whole in enumerate(images):
            mine = [part for part in parts if part.look.image == number]
            if not mine:
                continue
            tiles = seams.windows(whole.shape[1], whole.shape[0], self.options.tile, self.options.overlap)
            index = {tuple(window): i for i, window in enumerate(tiles.tolist())}
            owner = np.concatenate([np.full(len(p.prompt), index[tuple(p.look.window.tolist())]) for p in mine])
            asked, corners, score, words = (
                np.concatenate([getattr(p, key) for p in mine]) for key in ("prompt", "boxes", "scores", "text")
            )
            merged = seams.merge(asked, corners, score, owner, tiles)
            order = np.lexsort((-score[merged.source], asked[merged.source]))
            source = merged.source[order]
            image.append(np.full(len(source), number, np.int64))
            prompt.append(asked[source])
            boxes.append(merged.boxes[order])
            scores.append(score[source])
            text.append(words[source])
        empty = np.zeros(0, np.float32)
        return Proposals(
            np.concatenate([np.zeros(0, np.int64), *image]),
            np.concatenate([np.zeros(0, np.int64), *prompt]),
            np.concatenate([np.zeros((0, 4)), *boxes]),
            np.concatenate([empty, *scores]),
            np.concatenate([empty, *text]),
        )


def resized(height: int, width: int, config: net.DinoConfig) -> tuple[int, int]:
    """The size that an image is shown in: shorter edge to `shorter`, unless the longer would pass `longest`."""
    size, low, high = config.shorter, float(min(height, width)), float(max(height, width))
    if high / low * size > config.longest:
        size = max(1, round(config.longest * low / high))
    if min(height, width) == size:
        return height, width
    if width < height:
        return int(size * height / width), size
    return size, int(size * width / height)


def batches(sizes: Sequence[tuple[int, int]], padding: float, pixels: int) -> Iterator[list[int]]:
    """Positions of images that go through together, like shapes first.

    Args:
        sizes: height and width of each. padding: largest share of a batch that may be padding.
        pixels: largest batch, padding included, unless one image alone is larger.
    """
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i][0] / sizes[i][1], sizes[i], i))
    batch: list[int] = []
    for i in order:
        together = [*batch, i]
        canvas = max(sizes[k][0] for k in together) * max(sizes[k][1] for k in together) * len(together)
        wasted = 1 - sum(sizes[k][0] * sizes[k][1] for k in together) / canvas
        if batch and (canvas > pixels or wasted > padding):
            yield batch
            together = [i]
        batch = together
    if batch:
        yield batch


@dataclass(frozen=True)
class _Look:
    """One window of one image, and the captions asked of it."""

    image: int
    window: NDArray[np.int64]
    captions: tuple[int, ...]


@dataclass(frozen=True)
class _Part:
    """What one look at one caption gave: (n,) prompts, (n, 4) boxes in the image, (n,) scores."""

    look: _Look
    prompt: NDArray[np.int64]
    boxes: NDArray[np.floating]
    scores: NDArray[np.float32]
    text: NDArray[np.float32]


def _shown(image: Pixels, window: NDArray[np.int64], size: tuple[int, int]) -> Pixels:
    x, y, width, height = window.tolist()
    part = image[y : y + height, x : x + width]
    if part.shape[:2] == size:
        return np.ascontiguousarray(part)
    return np.array(Image.fromarray(part).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _by_prompt(probabilities: Any, caption: Caption) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(queries, prompts) best and mean probability of each prompt's own tokens, of (queries, tokens)."""
    import torch

    parts = [probabilities[:, start:end] for start, end in caption.spans]
    best = torch.stack([part.amax(dim=1) for part in parts], dim=1)
    mean = torch.stack([part.mean(dim=1) for part in parts], dim=1)
    return best.cpu().numpy(), mean.cpu().numpy()
