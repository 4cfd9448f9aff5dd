"""What a block of project.yaml is, and how what is wrong in one is told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ConfigError, suggest
from pipeline.ids import config_hash

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


def checked_name(value: str) -> str:
    """`value`, where it may name a project, a labeller or a wording.

    Raises:
        ValueError: it may not.
    """
    if not NAME.match(value):
        raise ValueError("use lower-case letters, digits and '_', beginning with a letter")
    return value


def parse_section(section: type[AnySection], data: Mapping[str, Any], where: str) -> AnySection:
    """A block of settings validated; `where` names its place in errors.

    Raises:
        ConfigError: a key is unknown or wrong.
    """
    try:
        return section.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(*explain(error, where, section)) from error


def explain(error: ValidationError, where: str, root: type[BaseModel]) -> tuple[str, str]:
    """What is wrong with a block of the form `root`, and the remedy; `where` names its place."""
    lines, remedies = [], []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"]) or "top level"
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {place!r}")
            remedies.append(suggest(str(item["loc"][-1]), _known_keys(item["loc"][:-1], root)))
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
            node = section_of(fields[str(part)].annotation)
        # a list index or a class name stays inside the section already found
    return list(getattr(node, "model_fields", {}))


def section_of(annotation: Any) -> Any:
    """The Section inside an annotation such as `list[Section]` or `dict[str, Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = section_of(argument)
        if found is not None:
            return found
    return None
