"""The review queue both ways: tasks with pre-annotations out, people's answers in.

One module knows one format. Each has `write(tasks, classes, folder) -> losses` and `read(path) -> Reading`.
What a file cannot hold is in the list of losses, item by item; everything else comes back as it left.
"""

from __future__ import annotations

from types import ModuleType

from pipeline.errors import ConfigError, suggest
from pipeline.exchange import coco, cvat, fiftyone, label_studio

FORMATS: dict[str, ModuleType] = {
    "label-studio": label_studio,
    "cvat": cvat,
    "coco": coco,
    "fiftyone": fiftyone,
}


def format_named(name: str) -> ModuleType:
    """The module of a format.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in FORMATS:
        raise ConfigError(f"there is no format {name!r}", suggest(name, FORMATS))
    return FORMATS[name]
