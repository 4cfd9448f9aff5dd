"""A commented project.yaml in which every key and its default is visible, made from the models."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.config import NAME, ProjectConfig, Section, load_project, projects_root
from pipeline.errors import ConfigError

_WIDTH = 100
_HEADER = """\
# {name}: {question}
#
# Every key is here with its default and may be deleted. Secrets never go in this file.
# Check it with: cvp status {name}   Run it with: cvp run {name}
"""
_QUESTION = "can models label this, or must people annotate and a model be trained?"


def project_yaml(name: str, source: str = "photos", classes: tuple[str, ...] = ("thing",)) -> str:
    """The text of a project.yaml with all defaults, each key commented by what it means.

    Args:
        source: folder, s3://bucket/prefix or samples://NAME.

    Raises:
        ConfigError: the name is not usable.
    """
    if not NAME.match(name):
        raise ConfigError(
            f"{name!r} cannot name a project", "use lower-case letters, digits and '_', beginning with a letter"
        )
    given = {
        ("name",): name,
        ("source", "uri"): source,
        ("classes",): {c: {"prompts": [c.replace("_", " ")], "aliases": []} for c in classes},
        # Without a labeller nothing would draw boxes; the profile's own is where everybody begins.
        ("labelling", "labellers"): [{"name": "compact", "kind": "profile"}],
    }
    lines = _section(ProjectConfig, given, ())
    return _HEADER.format(name=name, question=_QUESTION) + "\n".join(lines) + "\n"


def create(name: str, source: str = "photos", classes: tuple[str, ...] = ("thing",)) -> Path:
    """Write `NAME/project.yaml` under the projects folder and return its path.

    Raises:
        ConfigError: the name is not usable, or the project exists.
    """
    text = project_yaml(name, source, classes)
    folder = projects_root() / name
    path = folder / "project.yaml"
    if path.exists():
        raise ConfigError(f"{path} exists already", "choose another name, or edit that file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error}", "set CVP_PROJECTS to a folder that you may write to"
        ) from error
    load_project(path)
    return Path(os.path.relpath(path)) if path.is_relative_to(Path.cwd()) else path


def _section(model: type[Section], given: dict[tuple[str, ...], Any], at: tuple[str, ...]) -> list[str]:
    lines: list[str] = []
    pad = "  " * len(at)
    for key, field in model.model_fields.items():
        place = (*at, key)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            lines += ["", f"{pad}{key}:"] if not at else [f"{pad}{key}:"]
            lines += _section(inner, given, place)
            continue
        if place == ("classes",):
            lines += ["", f"{pad}# class: the words that models are asked with, and other names in annotation files"]
        value = given[place] if place in given else _default(field)
        lines += _entry(key, value, _comment(field), pad)
    return lines


def _entry(key: str, value: Any, comment: str, pad: str) -> list[str]:
    """A key with its comment behind it where that fits, else above it."""
    text = f"{pad}{key}: {_inline(value)}" if not isinstance(value, dict) or not value else ""
    if not text:
        rows = yaml.safe_dump({key: value}, sort_keys=False, default_flow_style=None, allow_unicode=True, width=_WIDTH)
        return [pad + row for row in rows.splitlines()]
    if not comment:
        return [text]
    if len(text) + len(comment) + 4 <= _WIDTH:
        return [f"{text}  # {comment}"]
    above = textwrap.wrap(comment, _WIDTH, initial_indent=f"{pad}# ", subsequent_indent=f"{pad}# ")
    return [*above, text]


def _inline(value: Any) -> str:
    """A value on one line of YAML that reads back as itself."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).strip()
    return text.removesuffix("...").strip()


def _comment(field: FieldInfo) -> str:
    """What the key means, the values it may take, and what the items of a list look like."""
    parts = [field.description or ""]
    options = _literals(field.annotation)
    if options:
        parts.append("one of " + ", ".join(options))
    item = _listed(field.annotation)
    if item is not None:
        parts.append("each {" + ", ".join(item.model_fields) + "}")
    return "; ".join(p for p in parts if p)


def _literals(annotation: Any) -> list[str]:
    return [str(a) for a in get_args(annotation)] if get_origin(annotation) is Literal else []


def _listed(annotation: Any) -> type[Section] | None:
    """The Section that a list holds, if it holds one."""
    arguments = get_args(annotation)
    if get_origin(annotation) is list and arguments and isinstance(arguments[0], type):
        return arguments[0] if issubclass(arguments[0], Section) else None
    return None


def _default(field: FieldInfo) -> Any:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        raise ConfigError("a required key has no example", "give it one in pipeline/scaffold.py")
    return list(value) if isinstance(value, tuple) else value
