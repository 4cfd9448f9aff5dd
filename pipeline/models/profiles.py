"""Which models fill the roles of a project. A profile is never swapped for another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import weights
from pipeline.config import LabellerConfig, ProjectConfig
from pipeline.errors import ConfigError
from pipeline.models import compact_detector, compact_encoder, compact_segmenter, foundation, tiny, user
from pipeline.models.dino_questions import Questions
from pipeline.models.roles import Detector, Encoder, Segmenter
from pipeline.weights import Checkpoint


def checkpoints(config: ProjectConfig) -> list[Checkpoint]:
    """Every checkpoint that a project's models read; none for profile tiny."""
    if config.profile == "tiny":
        return []
    return foundation.checkpoints(config) if _founded(config) else weights.profile_checkpoints(config.profile)


def build_encoder(config: ProjectConfig) -> Encoder:
    """The encoder of a project's profile.

    Raises:
        WeightsError: its checkpoints are not there; the remedy is the command that gets them.
    """
    if _founded(config):
        return foundation.build(config, "encoder")
    return tiny.TinyEncoder() if config.profile == "tiny" else compact_encoder.CompactEncoder()


def build_segmenter(config: ProjectConfig) -> Segmenter:
    """The segmenter of a project's profile.

    Raises:
        WeightsError: its checkpoints are not there; the remedy is the command that gets them.
    """
    if _founded(config):
        return foundation.build(config, "segmenter")
    return tiny.TinySegmenter() if config.profile == "tiny" else compact_segmenter.CompactSegmenter()


def build_labeller(labeller: LabellerConfig, folder: Path | str, config: ProjectConfig) -> Detector:
    """A labeller of a project: a user's own class, or the profile's detector.

    Args:
        folder: where project.yaml lies.

    Raises:
        ConfigError: the user's class cannot be loaded, or the detector has no such option.
        WeightsError: the profile's checkpoints are not there.
    """
    if labeller.kind == "python":
        return user.UserLabeller(labeller.name, labeller.path, Path(folder), config.ontology, labeller.options)
    if _founded(config):
        return foundation.build(config, "detector", **_asked(labeller, config))
    _check_options(labeller, config)
    if config.profile == "tiny":
        return tiny.TinyDetector(config.ontology, labeller.name)
    return compact_detector.CompactDetector(
        config.ontology, config.labelling.nms_iou, name=labeller.name, **labeller.options
    )


def labeller_questions(labeller: LabellerConfig, config: ProjectConfig) -> Questions | None:
    """What a labeller asks with prompts, if it answers them one by one; needs no weights.

    Raises:
        ConfigError, WeightsError: as `build_labeller` does.
    """
    if labeller.kind == "python" or not _founded(config):
        return None
    found: Questions = foundation.questions(config, **_asked(labeller, config))
    return found


def encoder_producer(config: ProjectConfig) -> str:
    """The producer of the project's vectors; needs no weights."""
    if _founded(config):
        return foundation.producer(config, "encoder")
    return tiny.ENCODER if config.profile == "tiny" else compact_encoder.producer()


def segmenter_producer(config: ProjectConfig) -> str:
    """The producer of the project's masks; needs no weights."""
    if _founded(config):
        return foundation.producer(config, "segmenter")
    return tiny.SEGMENTER if config.profile == "tiny" else compact_segmenter.producer()


def labeller_producer(labeller: LabellerConfig, folder: Path | str, config: ProjectConfig) -> str:
    """The producer of a labeller's boxes; needs no weights, but imports a user's file.

    Raises:
        ConfigError, WeightsError: as `build_labeller` does.
    """
    if labeller.kind == "python":
        return user.producer(labeller.name, labeller.path, Path(folder), config.ontology, labeller.options)
    if _founded(config):
        return foundation.producer(config, "detector", **_asked(labeller, config))
    _check_options(labeller, config)
    if config.profile == "tiny":
        return tiny.producer(config.ontology, labeller.name)
    return compact_detector.producer(config.ontology, config.labelling.nms_iou, name=labeller.name, **labeller.options)


def _founded(config: ProjectConfig) -> bool:
    """Whether the roles are the foundation profile's.

    Raises:
        ConfigError: another profile, which has one model a role, is asked for another one.
    """
    if config.profile == "foundation":
        return True
    if config.models.chosen():
        raise ConfigError(
            f"profile {config.profile!r} has one model a role, so `models` cannot choose another",
            "remove `models` from project.yaml, or set `profile: foundation`",
        )
    return False


def _asked(labeller: LabellerConfig, config: ProjectConfig) -> dict[str, Any]:
    """What a detector is made with: the classes, and the labeller's name and options."""
    return {
        "ontology": config.ontology,
        "nms_iou": config.labelling.nms_iou,
        "name": labeller.name,
        "options": dict(labeller.options),
    }


def _check_options(labeller: LabellerConfig, config: ProjectConfig) -> None:
    allowed = {"floor"} if config.profile == "compact" else set()
    unknown = sorted(set(labeller.options) - allowed)
    if unknown:
        raise ConfigError(
            f"labeller {labeller.name!r}: the detector of profile {config.profile!r} has no option {unknown[0]!r}",
            f"its options: {', '.join(sorted(allowed)) or 'none'}",
        )
