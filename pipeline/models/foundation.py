"""The profile `foundation`: which checkpoint fills a role, and which family of models reads it.

A family is a module of this folder with two functions. Both take the chosen checkpoint, and what else the
role needs as keywords; the second needs no weights:
    build(chosen, **how) -> the role's model
    producer(chosen, **how) -> the name of all that this model makes
A third one, `companions(chosen)`, gives references of files that it reads besides, where that depends on the model.
A detector has `questions(chosen, **how)`, which needs no weights either: what it asks, and how answers are read.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import weights
from pipeline.config import ProjectConfig
from pipeline.errors import ConfigError, suggest
from pipeline.weights import Checkpoint

DEFAULTS = {"encoder": "clip_vit_b_32", "detector": "grounding_dino_swin_t", "segmenter": "sam_vit_b"}
COMPANIONS = {"detector": ("bert_base_uncased_tokenizer",)}  # what a role reads besides its checkpoint
FAMILIES = {"encoder": "clip", "detector": "grounding_dino", "segmenter": "sam"}  # role -> module of pipeline.models


@dataclass(frozen=True)
class Chosen:
    """The checkpoint that fills a role.

    Attributes:
        architecture: how the role's family calls what the file holds; empty where the file says so itself.
        options: the role's settings in project.yaml.
    """

    role: str
    checkpoint: Checkpoint
    architecture: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> list[Any]:
        """What decides the model's answers, for its producer; needs no weights but a plain path's own file."""
        return [self.architecture, weights.identity(self.checkpoint), dict(self.options)]

    @property
    def path(self) -> Path:
        """The file.

        Raises:
            WeightsError: it has not been pulled; the remedy is the command that gets it.
        """
        return weights.resolve(self.checkpoint)

    def check_options(self, known: set[str]) -> None:
        """Raises:
        ConfigError: project.yaml sets an option that the role's model has not got.
        """
        for name in sorted(set(self.options) - known):
            raise ConfigError(f"models.{self.role} has no option {name!r}", suggest(name, known))


def choose(config: ProjectConfig, role: str) -> Chosen:
    """The checkpoint that fills `role`: project.yaml's, else the profile's own.

    Raises:
        WeightsError: project.yaml names one that does not exist.
    """
    wanted = config.models.chosen().get(role)
    found = weights.checkpoint(wanted.checkpoint if wanted else DEFAULTS[role])
    architecture = (wanted.architecture if wanted else "") or found.architecture
    return Chosen(role, found, architecture, dict(wanted.options) if wanted else {})


def checkpoints(config: ProjectConfig) -> list[Checkpoint]:
    """Every checkpoint that the roles of a project read."""
    return [item for role in DEFAULTS for item in with_companions(choose(config, role))]


def with_companions(chosen: Chosen) -> list[Checkpoint]:
    """A role's checkpoint, and what else its family reads.

    Raises:
        WeightsError: the family knows no such architecture.
    """
    more = list(COMPANIONS.get(chosen.role, ()))
    family = _family(chosen.role)
    if hasattr(family, "companions"):
        more += family.companions(chosen)
    return [chosen.checkpoint, *map(weights.checkpoint, more)]


def build(config: ProjectConfig, role: str, **how: Any) -> Any:
    """The model of a role.

    Raises:
        ConfigError: an unknown option or architecture.
        WeightsError: its checkpoint is not here, or is not what it should be.
    """
    return _family(role).build(choose(config, role), **how)


def producer(config: ProjectConfig, role: str, **how: Any) -> str:
    """The name of all that a role's model makes; loads no weights.

    Raises:
        ConfigError, WeightsError: as `build` does, short of loading.
    """
    name: str = _family(role).producer(choose(config, role), **how)
    return name


def questions(config: ProjectConfig, **how: Any) -> Any:
    """What a prompted detector is asked, and how its answers are read; loads no weights.

    Raises:
        ConfigError, WeightsError: as `build` does, short of loading.
    """
    return _family("detector").questions(choose(config, "detector"), **how)


def _family(role: str) -> Any:
    return importlib.import_module(f"pipeline.models.{FAMILIES[role]}")
