"""Blocks of project.yaml about training, evaluation and drift."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.section import Section, Share, Target


class TrainingConfig(Section):
    kind: Literal["auto", "fcos", "linear_probe", "clip", "sam", "grounding_dino", "none"] = Field(
        "auto",
        description="auto: fcos or linear_probe, by the task; clip, sam, grounding_dino: tune a foundation model",
    )
    tune: Literal["auto", "adapters", "decoder", "all"] = Field(
        "auto", description="what tuning changes: adapters (of clip), decoder (of sam, grounding_dino), or all"
    )
    rank: int = Field(8, gt=0, description="of adapters")
    layer_decay: float = Field(
        0.75, gt=0, le=1, description="fine-tuning: each block learns at this share of the rate of the one above it"
    )
    captions: str = Field(
        "", description="clip: CSV of file_name,caption; images learn from their caption besides their class"
    )
    steps: int = Field(300, gt=0, description="optimiser steps")
    batch_size: int = Field(4, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    crop: tuple[int, int] = Field((220, 420), description="edge of random training crops, pixels")
    input_size: int = Field(320, ge=32, multiple_of=32, description="edge that training crops are resized to, pixels")
    rotate: bool = Field(False, description="also turn crops by quarters and upside down: for views from above")
    checkpoint_every: int = Field(
        50, gt=0, description="steps between checkpoints, from which a killed training resumes"
    )
    budgets: list[int] = Field([10, 50, 200], description="labels a class for the learning curve of a probe")
    repeats: int = Field(5, gt=0, description="random draws a budget")
    seed: int = 0
    workers: int = Field(1, gt=0, description="data-parallel workers at most, when compute is Ray")
    min_workers: int = Field(1, gt=0, description="so few will do where there is no room, or some are lost")
    max_failures: int = Field(5, ge=0, description="lost workers or machines after which training on Ray gives up")

    @model_validator(mode="after")
    def _bounds_fit(self) -> TrainingConfig:
        if self.min_workers > self.workers:
            raise ValueError("min_workers must not exceed workers")
        return self

    def within(self, folder: Path) -> TrainingConfig:
        """The same, a relative path of captions taken from `folder`."""
        return self.model_copy(update={"captions": str(folder / self.captions)}) if self.captions else self


class SliceConfig(Section):
    name: str
    where: str = Field("", description="SQL predicate over the columns of images, quality, splits and image_counts")
    text: str = Field("", description="or a text that its images are like, by the encoder")
    at_least: float | None = Field(
        None, ge=-1, le=1, description="with text: least cosine; null: learned from all images' similarities"
    )
    polygon: list[tuple[float, float]] = Field([], description="or three corners x, y or more in the table map")

    @model_validator(mode="after")
    def _one_way(self) -> SliceConfig:
        if sum(map(bool, (self.where.strip(), self.text.strip(), self.polygon))) != 1:
            raise ValueError(f"slice {self.name!r} needs one of where, text and polygon")
        if self.at_least is not None and not self.text:
            raise ValueError(f"slice {self.name!r}: at_least goes with text")
        if self.polygon and len(self.polygon) < 3:
            raise ValueError(f"slice {self.name!r}: a polygon has three corners or more")
        return self


class EvaluationConfig(Section):
    slices: list[SliceConfig] = Field([], description="declared slices")
    search: int = Field(5, ge=0, description="how many weak slices to look for among facts about images; 0: none")
    discover: int = Field(8, ge=0, description="how many weak slices to look for among embeddings; 0: none")
    words: list[str] = Field([], description="words that found slices may be named with, beside the built-in ones")
    bootstrap: int = Field(200, ge=0, description="resamples of images for intervals")
    interval: Literal["percentile", "bca"] = Field(
        "percentile", description="how intervals are made of resamples; bca is truer for few images, and slower"
    )
    level: Share = Field(0.95, description="confidence level of intervals")
    sufficient: Share | None = Field(
        None, description="quality at which people are not needed; null: AP50 of 0.5, or accuracy of trust.target"
    )
    guard_drop: Share = Field(0.05, description="a challenger may lose at most this on any declared slice")

    @property
    def polygons(self) -> dict[str, list[tuple[float, float]]]:
        """Corners of the slices that are declared on the map."""
        return {s.name: s.polygon for s in self.slices if s.polygon}


class DriftConfig(Section):
    reference: str = Field("split IN ('train', 'val')", description="SQL predicate for the reference images")
    alpha: Share = Field(0.01, description="level of each test")
    permutations: int = Field(2000, gt=0)
    most_permutations: int = Field(100_000, ge=0, description="so many at most, to tell small p-values apart")
    unit: Literal["image", "patch"] = Field("image", description="vectors compared: of whole images, or of windows")
    regions: int = Field(8, ge=0, le=64, description="regions of embedding space that are told apart; 0: none")
    power: Target = Field(0.8, description="power at which the smallest shift that would be caught is told")
    alarm_rate: Target = Field(0.05, description="chance of any false alarm within `horizon` batches")
    horizon: int = Field(100, gt=0, description="batches that `alarm_rate` is spent on, in equal parts")

    @model_validator(mode="after")
    def _alarms_possible(self) -> DriftConfig:
        # Ten tests a batch share its part, and no p-value is below one in the number of permutations.
        needed = round(10 * self.horizon / self.alarm_rate)
        if max(self.permutations, self.most_permutations) < needed:
            raise ValueError(
                f"no alarm is possible with alarm_rate {self.alarm_rate:g} over {self.horizon} batches: "
                f"set most_permutations to {needed} or more, or a shorter horizon"
            )
        return self
