"""The whole of project.yaml: every key is documented by its `description`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.config.data import ClassConfig, CurationConfig, SourceConfig
from pipeline.config.labelling import LabellingConfig, ModelsConfig, ReviewConfig, TrustConfig, VerificationConfig
from pipeline.config.learning import DriftConfig, EvaluationConfig, TrainingConfig
from pipeline.config.places import projects_root, samples_root, store_root
from pipeline.config.running import BudgetConfig, PriceConfig, RayConfig, ScheduleConfig
from pipeline.config.section import Section, checked_name, explain
from pipeline.errors import ConfigError, suggest
from pipeline.ontology import Class, Ontology


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
        return checked_name(value)

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
        raise ConfigError(*explain(error, where, ProjectConfig)) from error


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
