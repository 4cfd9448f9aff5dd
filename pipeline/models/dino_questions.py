"""What Grounding DINO is asked for a project's classes, and what its answers mean: needs no network.

A box's score for a prompt is the probability of the prompt's best word, as in the paper's own `predict`;
its text score is the mean over the prompt's words, as in the paper's evaluation on COCO. Both belong to
the prompt's own tokens, whatever else stands in the caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import Field, model_validator

from pipeline import ids
from pipeline.config import Section, Share
from pipeline.images import Pixels
from pipeline.models.captions import WordPieces, clean, pack
from pipeline.models.precision import Precision
from pipeline.models.roles import Term
from pipeline.models.settle import Proposals, Rule, Settled, settle
from pipeline.ontology import Ontology

VERSION = "1"
LIMIT = 300  # boxes kept of one prompt in one look


class DinoOptions(Section):
    """What `options` of a labeller of profile foundation may say."""

    box_threshold: Share = Field(0.1, description="lowest score of a box, unless its class says otherwise")
    text_threshold: Share = Field(0.1, description="lowest mean over a prompt's words, unless its class says otherwise")
    captions: Literal["packed", "class"] = Field(
        "packed",
        description="packed: all classes share captions and one pass; class: each class has its own, so that "
        "a change of its prompts changes, and recomputes, no other",
    )
    one_class: bool = Field(False, description="an object gets its best class only")
    one_class_iou: Share = Field(0.8, description="for one_class: boxes that overlap more are one object")
    floor: Share = Field(0.05, description="lowest score that proposals are kept from")
    tile: int = Field(0, ge=0, description="edge in pixels of windows that large images are also looked at in; 0: none")
    overlap: int = Field(100, ge=0, description="pixels that neighbouring windows share")
    padding: Share = Field(
        0.0,
        description="images of unlike shapes share a batch while no more of it than this is padding; padding "
        "makes scores depend a little on the neighbours, so 0 batches equal shapes only",
    )
    precision: Precision = Field("float32", description="of the network on a GPU; on a CPU, float32")

    @model_validator(mode="after")
    def _overlap_fits(self) -> DinoOptions:
        if self.tile and self.overlap >= self.tile:
            raise ValueError("overlap must be smaller than tile")
        return self


def producer(ontology: Ontology, options: DinoOptions, nms_iou: float, name: str, weights: str) -> str:
    """The name of everything that a detector so made says; needs no files.

    Args:
        weights: names the checkpoint, for example its SHA-256.
    """
    rules = [vars(rule) for rule in rules_of(ontology, options)]
    return ids.producer(name, VERSION, rules, options.model_dump(mode="json"), nms_iou, weights)


def rules_of(ontology: Ontology, options: DinoOptions) -> list[Rule]:
    """What each prompt means for each class, negative prompts last in their class."""
    return [
        Rule(
            c.name,
            clean(prompt),
            negative,
            options.box_threshold if c.box_threshold is None else c.box_threshold,
            options.text_threshold if c.text_threshold is None else c.text_threshold,
        )
        for c in ontology
        for negative, prompts in ((False, c.prompts), (True, c.negatives))
        for prompt in prompts
    ]


class Questions:
    """What is asked of every image, and how its answers are read.

    Args:
        tokenizer: `tokenizer.json` or `vocab.txt` of bert-base-uncased, or their folder.
        weights: names the checkpoint, for example its SHA-256.
        nms_iou: boxes of one class that overlap more are fused.

    Attributes:
        model: names the network and how images are shown to it, but no prompt and no threshold: of the
            same model, image and caption, proposals are the same.
        captions: what is asked. prompts: (caption's position, prompt) of everything in them, in order.
        rules: what prompts mean; `at` holds the position in `prompts` of each rule's.

    Raises:
        WeightsError: the tokeniser is not there. ConfigError: a prompt cannot be asked.
    """

    def __init__(
        self,
        ontology: Ontology,
        tokenizer: Path,
        weights: str,
        options: DinoOptions | None = None,
        nms_iou: float = 0.5,
        name: str = "grounding_dino",
    ) -> None:
        self.options = options or DinoOptions()
        self.producer = producer(ontology, self.options, nms_iou, name, weights)
        shown = self.options.model_dump(mode="json", include={"floor", "tile", "overlap", "padding", "precision"})
        self.model = ids.producer("grounding_dino", VERSION, weights, shown, LIMIT)
        self.rules = rules_of(ontology, self.options)
        self.words = WordPieces(tokenizer)
        asked = [(name, caption) for name, group in self._groups(ontology) for caption in pack(group, self.words)]
        self.captions = list({caption.key: caption for _, caption in asked}.values())
        self.prompts = [(i, prompt) for i, caption in enumerate(self.captions) for prompt in caption.prompts]
        number = {(self.captions[i].key, prompt): k for k, (i, prompt) in enumerate(self.prompts)}
        place = {(name, prompt): number[caption.key, prompt] for name, caption in asked for prompt in caption.prompts}
        packed = self.options.captions == "packed"
        self.at = np.array([place["" if packed else rule.class_name, rule.prompt] for rule in self.rules], np.int64)
        self._ontology, self._nms_iou = ontology, nms_iou

    def _groups(self, ontology: Ontology) -> list[tuple[str, list[list[str]]]]:
        """What may share captions: all classes under the name "", or each class under its own.

        Asked apart, a prompt that two classes use is asked for both, or one's change would be the other's.
        """
        groups = {c.name: [rule.prompt for rule in self.rules if rule.class_name == c.name] for c in ontology}
        if self.options.captions == "packed":
            return [("", list(groups.values()))]
        return [(name, [prompts]) for name, prompts in groups.items()]

    def vocabulary(self) -> list[Term]:
        """Every prompt is understood, as the text encoder reads it."""
        return [Term(name, prompt, clean(prompt), 1.0) for name, prompt in self._ontology.prompts()]

    def settle(self, found: Proposals) -> Settled:
        """The boxes that stand among proposals, whose `prompt` points into `prompts`."""
        same = self.options.one_class_iou if self.options.one_class else None
        return settle(found, self.at, self.rules, self._nms_iou, same)


@runtime_checkable
class Prompted(Protocol):
    """A detector that answers prompts one by one, so that answers can be kept."""

    producer: str
    questions: Questions

    def propose(self, images: Sequence[Pixels], asked: Sequence[Sequence[int]]) -> Proposals: ...
