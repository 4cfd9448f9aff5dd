"""Blocks of project.yaml about images: classes, source, splits, quality, selection."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Section, Share, Target


class ClassConfig(Section):
    prompts: list[str] = Field([], description="words for text-prompted models; the class name when empty")
    aliases: list[str] = Field([], description="other names of the class in annotation files")
    negatives: list[str] = Field(
        [],
        description="prompts of things taken for it: where one is surer, its box suppresses the class's (foundation)",
    )
    box_threshold: Share | None = Field(
        None, description="lowest score of its boxes; null: the labeller's own (foundation)"
    )
    text_threshold: Share | None = Field(
        None, description="lowest mean score over a prompt's words; null: the labeller's own (foundation)"
    )


class TileConfig(Section):
    size: int = Field(0, ge=0, description="tile edge in pixels; 0 leaves photos whole")
    overlap: int = Field(0, ge=0, description="pixels that neighbouring tiles share")
    min_visible: Share = Field(0.25, description="a cut box counts when at least this share is visible")

    @model_validator(mode="after")
    def _overlap_fits(self) -> TileConfig:
        if self.size and self.overlap >= self.size:
            raise ValueError("overlap must be smaller than size")
        return self


class SourceConfig(Section):
    uri: str = Field(description="folder, s3://bucket/prefix or samples://NAME; one sub-folder is one batch")
    annotations: Literal[
        "auto", "none", "folders", "coco", "voc", "yolo", "csv", "labelme", "cvat", "label-studio", "imagefolder"
    ] = Field("auto", description="format of people's labels inside a batch; auto looks")
    ignored_classes: list[str] = Field([], description="names in annotation files that are not wanted")
    attributes: str = Field("", description="regex with named groups over 'batch/file_name'; groups become attributes")
    location: str = Field("", description="regex over 'batch/file_name'; its match names the location; empty: the file")
    tile: TileConfig = Field(default_factory=TileConfig)
    max_pixels: int = Field(200_000_000, gt=0, description="larger photos are rejected as decompression bombs")

    @field_validator("attributes", "location")
    @classmethod
    def _is_regex(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


class SplitRule(Section):
    split: Literal["train", "val", "test"]
    where: str = Field(description="SQL predicate over the columns of images")


class SplitConfig(Section):
    assign: list[SplitRule] = Field([], description="first rule that matches decides; the rest is drawn by location")
    val: Share = Field(0.2, description="share of locations drawn for val")
    test: Share = Field(0.2, description="share of locations drawn for test")
    stratify: bool = Field(
        False, description="deal out locations so that classes keep their shares; new images may then move others"
    )
    straddle: bool = Field(
        False, description="rules may divide a location, as a split by time does; test then says nothing of new places"
    )
    seed: int = 0

    @model_validator(mode="after")
    def _shares_fit(self) -> SplitConfig:
        if self.val + self.test > 1:
            raise ValueError("val and test together must not exceed 1")
        return self


Issue = Literal["blurry", "dark", "bright", "low_information", "near_uniform", "odd_size", "odd_aspect", "grayscale"]
Learned = Literal["blurry", "dark", "bright", "low_information", "odd_size", "odd_aspect"]


class QualityConfig(Section):
    blurry: float = Field(15.0, ge=0, description="variance of the Laplacian below which an image is blurry")
    blurry_thumbnail: Share = Field(0.29, description="cleanvision's blur score of a thumbnail below which it is, too")
    dark: Share = Field(0.12, description="mean luma below which it is dark")
    dark_highlights: Share = Field(0.32, description="luma of its brightest hundredth below which it is, too")
    bright: Share = Field(0.92, description="mean luma above which it is bright")
    bright_shadows: Share = Field(0.95, description="luma of its darkest twentieth above which it is, too")
    entropy: float = Field(3.0, ge=0, le=8, description="bits of the luma histogram below which it says little")
    near_uniform: Share = Field(0.02, description="standard deviation of luma below which all of it is one tone")
    shortest_edge: int = Field(32, ge=0, description="pixels below which its size is odd")
    aspect: float = Field(4.0, ge=1, description="width to height, or height to width, above which its shape is odd")
    grayscale: float = Field(0.5, ge=0, description="colourfulness below which it has no colour, however it is stored")
    learned: list[Learned] = Field(
        list(get_args(Learned)),
        description="flags that outliers get as well: limits learned from the batch and from the project",
    )
    outlier: float = Field(6.0, gt=0, description="robust deviations from the median that are odd")
    measured_edge: int = Field(
        512,
        ge=0,
        description="photos are halved, 1 to 3 times, to no fewer pixels than this; 0: measured in full",
    )


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SelectConfig(Section):
    """Which images to annotate next. In project.yaml, only the budget may stand for all of it."""

    budget: int = Field(20, ge=0, description="how many unlabelled images to propose for annotation")
    diversity: Weight = Field(1.0, description="weight of: unlike all that is labelled or chosen (k-center)")
    representativeness: Weight = Field(0.0, description="weight of: like many that nothing chosen is like")
    uncertainty: Weight = Field(0.0, description="weight of: labellers are undecided")
    rarity: Weight = Field(0.0, description="weight of: shows a class that few images show, by the labellers")
    slice_deficit: Weight = Field(
        0.0, description="weight of: from a slice, declared or confirmed as weak, of which few are labelled"
    )
    slice_target: int = Field(50, ge=1, description="labelled images that each slice should have")
    leave_out: list[Issue] = Field(
        ["blurry", "dark", "bright", "low_information", "near_uniform"],
        description="flags by the limits of curation.quality (not learned ones) whose images are not proposed",
    )

    @model_validator(mode="before")
    @classmethod
    def _budget_only(cls, value: Any) -> Any:
        return {"budget": value} if type(value) is int else value

    @model_validator(mode="after")
    def _something_counts(self) -> SelectConfig:
        if not any((self.diversity, self.representativeness, self.uncertainty, self.rarity, self.slice_deficit)):
            raise ValueError("give at least one criterion a weight above 0, e.g. diversity: 1")
        return self

    @property
    def asks_labellers(self) -> bool:
        """Whether labellers' answers are needed."""
        return self.uncertainty > 0 or self.rarity > 0


class CurationConfig(Section):
    embedding_duplicate: Share = Field(0.02, description="1 - cosine below which images are near-duplicates")
    hash_duplicate: int = Field(4, ge=0, description="Hamming bits of the perceptual hash below or at which they are")
    exact_up_to: int = Field(
        500_000, ge=0, description="so many images are all compared by vector; more only in cells, at the recall below"
    )
    recall: Target = Field(0.99, description="share of near-duplicates by vector that is to be found in cells")
    patches: int = Field(1, ge=1, le=8, description="g: also embed each image's g x g windows (1: none)")
    select: SelectConfig = Field(default_factory=SelectConfig)
    splits: SplitConfig = Field(default_factory=SplitConfig)
    quality: QualityConfig = Field(default_factory=QualityConfig)
