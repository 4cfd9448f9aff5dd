"""project.yaml: one user's task, and where its things lie.

Every key is documented by its `description`. `section` says what a block is, one module a group of stages declares
theirs, `project` puts them together and reads files, `places` reads the environment.
"""

from pipeline.config.data import (
    CurationConfig,
    Issue,
    QualityConfig,
    SelectConfig,
    SourceConfig,
    SplitConfig,
    TileConfig,
)
from pipeline.config.labelling import (
    LabellerConfig,
    LabelStudioConfig,
    TokenBudget,
    TrustConfig,
    VerificationConfig,
    is_path,
    is_private,
)
from pipeline.config.learning import DriftConfig, EvaluationConfig, SliceConfig, TrainingConfig
from pipeline.config.places import home, projects_root, samples_root, store_root, weights_root
from pipeline.config.project import Project, ProjectConfig, find_project, find_projects, load_project, parse_config
from pipeline.config.running import BudgetConfig, PriceConfig
from pipeline.config.section import NAME, Section, Share, parse_section

__all__ = [
    "NAME",
    "BudgetConfig",
    "CurationConfig",
    "DriftConfig",
    "EvaluationConfig",
    "Issue",
    "LabelStudioConfig",
    "LabellerConfig",
    "PriceConfig",
    "Project",
    "ProjectConfig",
    "QualityConfig",
    "Section",
    "SelectConfig",
    "Share",
    "SliceConfig",
    "SourceConfig",
    "SplitConfig",
    "TileConfig",
    "TokenBudget",
    "TrainingConfig",
    "TrustConfig",
    "VerificationConfig",
    "find_project",
    "find_projects",
    "home",
    "is_path",
    "is_private",
    "load_project",
    "parse_config",
    "parse_section",
    "projects_root",
    "samples_root",
    "store_root",
    "weights_root",
]
