"""project.yaml: one user's task. Every key is documented by its `description`."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.errors import ConfigError, suggest
from pipeline.ids import config_hash
from pipeline.ontology import Class, Ontology

NAME = re.compile(r"^[a-z][a-z0-9_]*$")
Share = Annotated[float, Field(ge=0, le=1)]
Target = Annotated[float, Field(gt=0, lt=1)]  # 0 and 1 can be neither promised nor missed


class Section(BaseModel):
    """A block of project.yaml; keys that it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def hash(self) -> str:
        """Eight hex digits that change with any value in this block."""
        return config_hash(self.model_dump(mode="json"))


AnySection = TypeVar("AnySection", bound=Section)


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


def is_path(reference: str) -> bool:
    """Whether the `reference` of a checkpoint is a plain path: no URI, but a separator or a suffix of weights."""
    if "://" in reference or reference.startswith(("hf-hub:", "open_clip:")):
        return False
    return "/" in reference or Path(reference).suffix in (".pt", ".pth", ".bin", ".safetensors", ".npz")


class ModelConfig(Section):
    """A model of one role. In project.yaml, only the checkpoint's name may stand for all of it."""

    checkpoint: str = Field(description="a name of `cvp models list`, a URI, open_clip:MODEL/TAG or a path")
    architecture: str = Field("", description="what the file holds, where it does not say so itself, e.g. ViT-B-32")
    options: dict[str, Any] = Field({}, description="settings of the role's model, e.g. precision")

    @model_validator(mode="before")
    @classmethod
    def _named_only(cls, value: Any) -> Any:
        return {"checkpoint": value} if isinstance(value, str) else value

    def within(self, folder: Path) -> ModelConfig:
        """The same model, a relative path taken from `folder`."""
        if not is_path(self.checkpoint):
            return self
        return self.model_copy(update={"checkpoint": str((folder / Path(self.checkpoint).expanduser()).resolve())})


class ModelsConfig(Section):
    encoder: ModelConfig | None = Field(None, description="images and texts to vectors")
    detector: ModelConfig | None = Field(None, description="images and words to boxes")
    segmenter: ModelConfig | None = Field(None, description="images and boxes to masks")

    def chosen(self) -> dict[str, ModelConfig]:
        """The roles for which a model was chosen."""
        return {role: model for role in type(self).model_fields if (model := getattr(self, role)) is not None}

    def within(self, folder: Path) -> ModelsConfig:
        """The same models, relative paths taken from `folder`."""
        return self.model_copy(update={role: model.within(folder) for role, model in self.chosen().items()})


class LabellerConfig(Section):
    name: str = Field(description="its name in every table")
    kind: Literal["python", "profile"] = Field("python", description="a user's class, or the profile's detector")
    path: str = Field("", description="for python: FILE.py:CLASS, relative to project.yaml")
    options: dict[str, Any] = Field({}, description="keyword arguments of the class")

    @field_validator("name")
    @classmethod
    def _named(cls, value: str) -> str:
        return _checked_name(value)


class LabellingConfig(Section):
    labellers: list[LabellerConfig] = Field([], description="who draws boxes; each is graded on gold")
    masks: bool = Field(False, description="also segment boxes")
    mask_floor: Share = Field(0.3, description="boxes scored below this get no mask, since masks are dear")
    tags: bool = Field(True, description="also classify whole images by text, zero-shot")
    templates: list[str] = Field(["a photo of a {}"], description="text templates for zero-shot tags, averaged")
    nms_iou: Share = Field(0.5, description="boxes of one class that overlap more are fused")
    fusion: Literal["nms", "wbf"] = Field(
        "nms", description="of several labellers' boxes: the highest score wins, or weighted box fusion"
    )
    agreement: Literal["best", "vote", "dawid_skene"] = Field(
        "best", description="of several labellers' tags: the surest, the most votes, or by learnt skills"
    )


class TrustConfig(Section):
    target: Target = Field(0.9, description="precision asked of accepted labels")
    delta: Target = Field(0.1, description="accepted risk that a certificate is wrong")
    method: Literal["fixed_sequence", "holm"] = Field(
        "fixed_sequence", description="how many thresholds are tried on the same gold without losing the guarantee"
    )
    unit: Literal["box", "image", "location"] = Field(
        "image", description="what is independent: each box (optimistic), the boxes of an image, or of a location"
    )
    grid: int = Field(50, ge=1, le=1000, description="how many thresholds are tried")
    iou: Share = Field(0.5, description="a box is right when it overlaps a person's box this much")
    review_floor: Share = Field(0.05, description="labels scored below this are rejected, not reviewed")
    targets: list[Target] = Field([0.8, 0.9, 0.95, 0.98], description="other targets, to know what they would cost")
    audits: int = Field(20, ge=0, description="accepted labels of each batch that people look at again")


class TokenBudget(Section):
    tokens: int | None = Field(2_000_000, ge=0, description="most tokens in all, sent and written; null: no limit")
    money: float | None = Field(None, ge=0, description="most money in all, at `prices`; null: no limit")


class VerificationConfig(Section):
    base_url: str = Field("", description="an OpenAI-compatible endpoint, e.g. http://127.0.0.1:8000/v1; empty: none")
    model: str = Field("", description="the vision-language model, as the endpoint calls it")
    key_variable: str = Field("", description="environment variable that holds the key; empty: no key is sent")
    questions: list[Literal["label", "count", "describe"]] = Field(
        ["label"], description="is this label right; how many are there; what is to be seen in each slice"
    )
    attempts: int = Field(3, ge=1, le=15, description="how often each question is asked; the majority counts")
    prompt: str = Field("standard", description="wording of the label question: standard, or one of `prompts`")
    prompts: dict[str, str] = Field(
        {}, description="other wordings with {class_name}, {words} and {classes}; compared in prompt_evaluation"
    )
    gold: int = Field(600, ge=0, description="labels of gold images that it is asked about, to measure it")
    concurrency: int = Field(8, ge=1, le=256, description="requests on their way at a time")
    per_minute: float = Field(0, ge=0, description="requests a minute; 0: no limit")
    timeout: float = Field(60, gt=0, description="seconds until a request is given up")
    retries: int = Field(5, ge=0, description="how often a request that failed on its way is sent again")
    patience: float = Field(120, ge=0, description="longest wait in seconds that the endpoint may ask for")
    image_edge: int = Field(768, ge=64, description="pixels of the longer edge that pictures are shrunk to")
    context: float = Field(0.5, ge=0, description="how much of a box's sides is shown around it")
    temperature: float | None = Field(None, ge=0, le=2, description="null: the endpoint's own")
    structured: Literal["json_schema", "json_object", "none"] = Field(
        "json_schema", description="how the endpoint is made to answer in JSON"
    )
    limit_by: Literal["max_completion_tokens", "max_tokens"] = Field(
        "max_completion_tokens", description="the endpoint's name for the limit of tokens written"
    )
    image_tokens: int = Field(2000, ge=0, description="most tokens that the endpoint counts for one picture")
    output_tokens: int = Field(300, ge=16, description="most tokens that it may write a request")
    budget: TokenBudget = Field(default_factory=TokenBudget)

    @property
    def on(self) -> bool:
        """Whether there is a verifier; without one nothing is ever sent."""
        return bool(self.base_url)

    @field_validator("base_url")
    @classmethod
    def _is_endpoint(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("use https://HOST/v1, or http://HOST:PORT/v1 within your own network")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("no name, password or query in it: keys come from the environment")
        return value.rstrip("/")

    @field_validator("key_variable")
    @classmethod
    def _is_variable(cls, value: str) -> str:
        # The value is not told in the error: somebody may have put the key itself there.
        if value and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError("name an environment variable, e.g. VLM_KEY; the key itself never goes in this file")
        return value

    @field_validator("prompts")
    @classmethod
    def _fillable(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            _checked_name(name)
            if name == "standard":
                raise ValueError("'standard' is the built-in wording; give yours another name")
            if "{class_name}" not in text:
                raise ValueError(f"prompt {name!r} must say {{class_name}} where the class is named")
        return value

    @model_validator(mode="after")
    def _complete(self) -> VerificationConfig:
        if bool(self.base_url) != bool(self.model):
            raise ValueError("base_url and model go together")
        parts = urlsplit(self.base_url)
        if self.key_variable and parts.scheme == "http" and not is_private(parts.hostname or ""):
            raise ValueError("a key goes out over https only, except within your own network")
        if self.prompt != "standard" and self.prompt not in self.prompts:
            raise ValueError(f"prompt: {suggest(self.prompt, ['standard', *self.prompts])}")
        return self


class LabelStudioConfig(Section):
    url: str = Field("", description="your own Label Studio, e.g. http://127.0.0.1:8080; empty: none is ever contacted")
    project: str = Field("", description="title of its project, made if missing; empty: this project's name")
    pictures: str = Field("", description="URL prefix of exported pictures there; empty: they travel inside the tasks")

    @field_validator("url")
    @classmethod
    def _is_web_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc):
            raise ValueError("use http://HOST:PORT or https://HOST, without a name or password in it")
        return value.rstrip("/")


class ReviewConfig(Section):
    overlap: Share = Field(0.1, description="share of the queue that every reviewer is asked, to measure agreement")
    label_errors: int = Field(
        20, ge=0, description="suspected errors in people's labels that are asked about at a time, per batch; 0: none"
    )
    label_studio: LabelStudioConfig = Field(default_factory=LabelStudioConfig)


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


class PriceConfig(Section):
    currency: str = "USD"
    cpu_hour: float = Field(0.10, ge=0, description="one hour of this machine")
    gpu_hour: float = Field(2.50, ge=0, description="one GPU hour")
    human_box: float = Field(0.05, ge=0, description="a person draws one box")
    human_image: float = Field(0.03, ge=0, description="a person classifies or opens one image")
    human_look: float = Field(0.01, ge=0, description="a person says yes or no to one proposed label")
    token_million: float = Field(0.0, ge=0, description="a million tokens sent to the verifier")
    token_million_written: float | None = Field(
        None, ge=0, description="a million tokens that it writes; null: as those sent"
    )

    def tokens(self, sent: Any, written: Any) -> Any:
        """Price of so many tokens; of arrays, each."""
        each = self.token_million if self.token_million_written is None else self.token_million_written
        return (sent * self.token_million + written * each) / 1e6


class RayConfig(Section):
    cpus: float = Field(1, gt=0, description="CPUs of an actor: so many threads decode photos ahead of its model")
    gpus: float | None = Field(None, ge=0, description="GPUs of an actor, also below 1; null: 1 if the cluster has any")
    min_workers: int = Field(1, gt=0, description="actors that must be up before work begins; at most: workers")
    patience: float = Field(300, gt=0, description="seconds to wait for them: an autoscaler may start machines first")

    @field_validator("cpus", "gpus")
    @classmethod
    def _divisible(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError("a share below 1, or a whole number")
        return value


class BudgetConfig(Section):
    """What a stage or table may cost, by the ledger. Null: as much as it takes."""

    money: float | None = Field(None, ge=0, description="in the currency of the prices; null: no limit")
    hours: float | None = Field(None, ge=0, description="of machine time; null: no limit")
    days: float | None = Field(None, gt=0, description="only what was spent in the last days counts; null: all")


class ScheduleConfig(Section):
    new_data: str = Field("0 * * * *", description="cron: label what is new")
    training: str = Field("0 2 * * 0", description="cron: retrain and choose again")
    monitoring: str = Field("30 3 * * *", description="cron: drift, costs, report")
    sensor_seconds: int = Field(60, ge=5, description="how often the source is looked at")


class ProjectConfig(Section):
    """The whole of project.yaml."""

    name: str = Field(description="lower case; prefixes every asset")
    description: str = ""
    owners: list[str] = Field([], description="e-mail addresses, or team:NAME")
    task: Literal["detection", "classification"] = "detection"
    profile: Literal["compact", "foundation", "tiny"] = Field("compact", description="which models fill the roles")
    compute: str = Field("inline", description="inline, local, auto (a Ray on this machine) or ray://HOST:PORT")
    workers: int = Field(2, gt=0, description="processes or actors at most, unless inline")
    batch_size: int = Field(16, gt=0, description="images a model call")
    classes: dict[str, ClassConfig]
    source: SourceConfig
    models: ModelsConfig = Field(default_factory=ModelsConfig)
    curation: CurationConfig = Field(default_factory=CurationConfig)
    labelling: LabellingConfig = Field(default_factory=LabellingConfig)
    trust: TrustConfig = Field(default_factory=TrustConfig)
    verification: VerificationConfig = Field(default_factory=VerificationConfig)
    review: ReviewConfig = Field(default_factory=ReviewConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    drift: DriftConfig = Field(default_factory=DriftConfig)
    prices: PriceConfig = Field(default_factory=PriceConfig)
    budgets: dict[str, BudgetConfig] = Field({}, description="of stages or tables, by name: money, hours, days")
    schedules: ScheduleConfig = Field(default_factory=ScheduleConfig)
    ray: RayConfig = Field(default_factory=RayConfig)

    @field_validator("name")
    @classmethod
    def _named(cls, value: str) -> str:
        return _checked_name(value)

    @field_validator("compute")
    @classmethod
    def _computes(cls, value: str) -> str:
        if value not in ("inline", "local", "auto") and not value.startswith("ray://"):
            raise ValueError("must be inline, local, auto or ray://HOST:PORT")
        if value.startswith("ray://") and not _is_host_and_port(value):
            raise ValueError("name the cluster's head and its client port: ray://HOST:10001")
        return value

    @model_validator(mode="after")
    def _enough_workers(self) -> ProjectConfig:
        if self.ray.min_workers > self.workers:
            raise ValueError("ray.min_workers must not exceed workers")
        return self

    @field_validator("classes")
    @classmethod
    def _has_classes(cls, value: dict[str, ClassConfig]) -> dict[str, ClassConfig]:
        if not value:
            raise ValueError("name at least one class")
        return value

    @property
    def ontology(self) -> Ontology:
        return Ontology(
            tuple(
                Class(
                    name,
                    tuple(c.prompts or [name.replace("_", " ")]),
                    tuple(c.aliases),
                    tuple(c.negatives),
                    c.box_threshold,
                    c.text_threshold,
                )
                for name, c in self.classes.items()
            )
        )


def _is_host_and_port(address: str) -> bool:
    parts = urlsplit(address)
    try:
        return bool(parts.hostname and parts.port) and not parts.path.strip("/") and "@" not in parts.netloc
    except ValueError:  # the port is no number
        return False


def is_private(host: str) -> bool:
    """Whether a host is this machine, or one that only its own network knows."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".lan"))


def _checked_name(value: str) -> str:
    if not NAME.match(value):
        raise ValueError("use lower-case letters, digits and '_', beginning with a letter")
    return value


class Project:
    """A validated project.yaml and the folder it lies in."""

    def __init__(self, config: ProjectConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def ontology(self) -> Ontology:
        return self.config.ontology

    def with_training(self, epochs: float) -> Project:
        """The same project, trained `epochs` times as many steps as its project.yaml says."""
        training = self.config.training
        steps = max(1, round(training.steps * epochs))
        longer = training.model_copy(update={"steps": steps})
        return Project(self.config.model_copy(update={"training": longer}), self.folder)

    @property
    def source_uri(self) -> str:
        """The source with samples:// resolved and relative paths taken from project.yaml's folder."""
        uri = os.path.expandvars(self.config.source.uri)
        if uri.startswith("samples://"):
            return str(samples_root() / uri.removeprefix("samples://"))
        if "://" in uri:
            return uri
        return str((self.folder / Path(uri).expanduser()).resolve())

    @property
    def store_uri(self) -> str:
        return f"{store_root().rstrip('/')}/{self.name}"


def home() -> Path:
    """Where everything that is made lies: CVP_HOME, or .cvp in the working directory."""
    return Path(os.environ.get("CVP_HOME", ".cvp")).expanduser().resolve()


def store_root() -> str:
    """Root of all tables: CVP_STORE (a folder or s3://bucket/prefix), or CVP_HOME/store."""
    return os.environ.get("CVP_STORE") or str(home() / "store")


def samples_root() -> Path:
    return Path(os.environ.get("CVP_SAMPLES") or home() / "samples")


def weights_root() -> Path:
    return Path(os.environ.get("CVP_WEIGHTS") or home() / "weights")


def projects_root() -> Path:
    """Folder whose sub-folders hold a project.yaml each: CVP_PROJECTS, or projects/ beside this package."""
    return Path(os.environ.get("CVP_PROJECTS") or Path(__file__).parents[1] / "projects").resolve()


def load_project(path: Path) -> Project:
    """The project in `path`, a project.yaml or the folder that holds one.

    Raises:
        ConfigError: no such file, not YAML, or an unknown or wrong key, named with its place.
    """
    path = path / "project.yaml" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"no project file {path}", "make one with: cvp new NAME") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", "save it as UTF-8 text") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}", "check indentation and quotes there") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no keys", "start from the output of: cvp new NAME")
    config, folder = parse_config(data, str(path)), path.parent.resolve()
    own = {"models": config.models.within(folder), "training": config.training.within(folder)}
    return Project(config.model_copy(update=own), folder)


def parse_config(data: dict[str, Any], where: str = "project.yaml") -> ProjectConfig:
    """`data` validated; `where` names its file in errors."""
    try:
        return ProjectConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(*_explain(error, where)) from error


def parse_section(section: type[AnySection], data: Mapping[str, Any], where: str) -> AnySection:
    """A block of settings validated; `where` names its place in errors.

    Raises:
        ConfigError: a key is unknown or wrong.
    """
    try:
        return section.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(*_explain(error, where, section)) from error


def find_projects(root: Path | None = None) -> list[Path]:
    """Folders under `root` (default: CVP_PROJECTS) that hold a project.yaml, sorted."""
    return sorted(p.parent for p in (root or projects_root()).glob("*/project.yaml"))


def find_project(name: str) -> Project:
    """The project called `name`, or in the folder or file `name`.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name.endswith((".yaml", ".yml")) or Path(name).joinpath("project.yaml").is_file():
        return load_project(Path(name))
    folder = projects_root() / name
    if not folder.joinpath("project.yaml").is_file():
        known = [p.name for p in find_projects()]
        hint = suggest(name, known) if known else "make one with: cvp new NAME"
        raise ConfigError(f"no project {name!r} in {projects_root()}", hint)
    return load_project(folder)


def _explain(error: ValidationError, where: str, root: type[BaseModel] | None = None) -> tuple[str, str]:
    lines, remedies = [], []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"]) or "top level"
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {place!r}")
            remedies.append(suggest(str(item["loc"][-1]), _known_keys(item["loc"][:-1], root or ProjectConfig)))
        else:
            lines.append(f"{place}: {item['msg'].removeprefix('Value error, ')}")
    remedy = "; ".join(remedies) or "every key and its default: cvp new NAME --print"
    return f"{where}: " + "; ".join(lines), remedy


def _known_keys(location: tuple[str | int, ...], root: type[BaseModel]) -> list[str]:
    """Keys of the section at `location`, following the models' annotations."""
    node: Any = root
    for part in location:
        fields = getattr(node, "model_fields", {})
        if part in fields:
            node = _section_of(fields[str(part)].annotation)
        # a list index or a class name stays inside the section already found
    return list(getattr(node, "model_fields", {}))


def _section_of(annotation: Any) -> Any:
    """The Section inside an annotation such as `list[Section]` or `dict[str, Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_of(argument)
        if found is not None:
            return found
    return None
