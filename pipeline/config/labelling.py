"""Blocks of project.yaml about labels: models, labellers, trust, verification, people."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Section, Share, Target, checked_name
from pipeline.errors import suggest


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
        return checked_name(value)


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
            checked_name(name)
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


def is_private(host: str) -> bool:
    """Whether a host is this machine, or one that only its own network knows."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".lan"))
