from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import scaffold
from pipeline.config import ProjectConfig, Section, load_project, parse_config
from pipeline.errors import ConfigError


def keys(model: type[Section], at: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for key, field in model.model_fields.items():
        inner = field.annotation
        nested = isinstance(inner, type) and issubclass(inner, Section)
        found |= keys(inner, (*at, key)) if nested else {(*at, key)}  # type: ignore[arg-type]
    return found


def present(data: Any, place: tuple[str, ...]) -> bool:
    for key in place:
        if not isinstance(data, dict) or key not in data:
            return False
        data = data[key]
    return True


def test_every_key_is_there_with_its_default() -> None:
    data = yaml.safe_load(scaffold.project_yaml("mine", "s3://bucket/photos", ("cat", "dog")))
    assert not [place for place in keys(ProjectConfig) if not present(data, place)]
    minimal = {
        "name": "mine",
        "source": {"uri": "s3://bucket/photos"},
        "classes": {"cat": {"prompts": ["cat"]}, "dog": {"prompts": ["dog"]}},
        "labelling": {"labellers": [{"name": "compact", "kind": "profile"}]},
    }
    assert parse_config(data) == parse_config(minimal)


def test_every_description_is_a_comment() -> None:
    text = " ".join(
        line.strip().removeprefix("# ") for line in scaffold.project_yaml("mine").replace("  # ", "\n# ").splitlines()
    )

    def described(model: type[Section]) -> list[str]:
        found = []
        for field in model.model_fields.values():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, Section):
                found += described(inner)
            elif field.description:
                found.append(field.description)
        return found

    assert not [d for d in described(ProjectConfig) if d not in text]


def test_lines_stay_readable() -> None:
    assert max(map(len, scaffold.project_yaml("mine").splitlines())) <= 100


@given(st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True))
@settings(deadline=None)
def test_any_valid_name_gives_a_valid_file(name: str) -> None:
    assert parse_config(yaml.safe_load(scaffold.project_yaml(name))).name == name


@pytest.mark.parametrize("name", ["", "Trees", "my trees", "1st", "../up", "a\nb"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a project"):
        scaffold.project_yaml(name)


def test_create_writes_a_loadable_project_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVP_PROJECTS", str(tmp_path / "projects"))
    path = scaffold.create("mine", "photos", ("rose",))
    assert load_project(path).ontology.names == ["rose"]
    before = path.read_text()
    with pytest.raises(ConfigError, match="exists already"):
        scaffold.create("mine")
    assert path.read_text() == before
