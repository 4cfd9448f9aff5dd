"""A user's own labeller: a class in a Python file beside project.yaml, held to the `Detector` role.

The class is made with `ontology=` and the options of project.yaml. It needs one method, `detect(images)`,
that gives one `Detections` an image; `vocabulary()` and a `version` are optional.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import ids
from pipeline.errors import ConfigError, DataError, suggest
from pipeline.images import Pixels
from pipeline.models.roles import Detections, Term
from pipeline.ontology import Ontology


class UserLabeller:
    """Fills the `Detector` role with a user's class, and checks all that it returns.

    Args:
        name: the labeller's name in every table.
        path: FILE.py:CLASS, relative to `folder`.
        options: keyword arguments of the class, after `ontology`.

    Raises:
        ConfigError: no such file or class, it cannot be imported or made, or it has no `detect`.
    """

    def __init__(self, name: str, path: str, folder: Path, ontology: Ontology, options: dict[str, Any]) -> None:
        self.name, self.path = name, path
        self._ontology = ontology
        found = load_class(path, folder)
        self.producer = _producer(name, found, path, folder, ontology, options)
        try:
            self._labeller = found(ontology=ontology, **options)
        except Exception as error:  # whatever the user's own code raises
            raise ConfigError(
                f"labeller {name!r}: {path} cannot be made: {type(error).__name__}: {error}",
                "its __init__ must take ontology= and the options in project.yaml",
            ) from error

    def vocabulary(self) -> list[Term]:
        """The class's own, or every prompt as understood."""
        if hasattr(self._labeller, "vocabulary"):
            return list(self._labeller.vocabulary())
        return [Term(name, prompt, prompt, 1.0) for name, prompt in self._ontology.prompts()]

    def detect(self, images: Sequence[Pixels]) -> list[Detections]:
        """What the class finds in n images.

        Raises:
            DataError: it raised, or returned something that is not n valid `Detections`.
        """
        try:
            found = list(self._labeller.detect(images))
        except Exception as error:  # whatever the user's own code raises
            raise self._wrong(f"failed: {type(error).__name__}: {error}") from error
        if len(found) != len(images):
            raise self._wrong(f"returned {len(found)} results for {len(images)} images")
        return [self._checked(item) for item in found]

    def _checked(self, found: Any) -> Detections:
        if not isinstance(found, Detections):
            raise self._wrong(f"returned {type(found).__name__}, not Detections")
        try:
            boxes = np.asarray(found.boxes, np.float32).reshape(-1, 4)
            scores = np.asarray(found.scores, np.float32).reshape(-1)
        except (TypeError, ValueError) as error:
            raise self._wrong(f"returned boxes or scores that are not numbers: {error}") from error
        if not len(boxes) == len(scores) == len(found.classes):
            counts = f"{len(boxes)} boxes, {len(scores)} scores and {len(found.classes)} classes"
            raise self._wrong(f"returned {counts} for one image")
        if not np.isfinite(boxes).all() or not ((scores >= 0) & (scores <= 1)).all():
            raise self._wrong("returned a box that is not finite or a score outside [0, 1]")
        unknown = sorted(set(found.classes) - set(self._ontology.names))
        if unknown:
            raise DataError(
                f"labeller {self.name!r} ({self.path}) returned the class {unknown[0]!r}",
                suggest(unknown[0], self._ontology.names),
            )
        return Detections(boxes, scores, tuple(found.classes))

    def _wrong(self, what: str) -> DataError:
        return DataError(
            f"labeller {self.name!r} ({self.path}) {what}",
            "correct its detect(images): one pipeline.models.roles.Detections an image",
        )


def producer(name: str, path: str, folder: Path, ontology: Ontology, options: dict[str, Any]) -> str:
    """The labeller's name in every table: it changes with the file's text, the options and the prompts.

    Raises:
        ConfigError: no such file or class.
    """
    return _producer(name, load_class(path, folder), path, folder, ontology, options)


def _producer(name: str, found: type[Any], path: str, folder: Path, ontology: Ontology, options: dict[str, Any]) -> str:
    text = _file(path, folder).read_text(encoding="utf-8")
    classes = [(c.name, c.prompts) for c in ontology]
    return ids.producer(name, str(getattr(found, "version", "1")), path.rpartition(":")[2], text, options, classes)


def load_class(path: str, folder: Path) -> type[Any]:
    """The class that `FILE.py:CLASS` names, imported from the file as it is now.

    Raises:
        ConfigError: no such file or class, the file cannot be imported, or the class has no `detect`.
    """
    file, class_name = _file(path, folder), path.rpartition(":")[2]
    module = _module(file)
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        classes = [name for name, value in vars(module).items() if isinstance(value, type)]
        raise ConfigError(f"{file} has no class {class_name!r}", suggest(class_name, classes))
    if not callable(getattr(found, "detect", None)):
        raise ConfigError(
            f"{class_name} in {file} is no labeller: it has no detect(images)",
            "give it one that returns one pipeline.models.roles.Detections an image",
        )
    return found


def _file(path: str, folder: Path) -> Path:
    name, separator, class_name = path.rpartition(":")
    if not separator or not name or not class_name:
        raise ConfigError(f"labeller path {path!r} is not FILE.py:CLASS", "for example: labellers.py:Crowns")
    file = (folder / name).resolve()
    if not file.is_file():
        there = sorted(p.name for p in folder.glob("*.py"))
        raise ConfigError(f"there is no labeller file {file}", suggest(name, there) if there else f"put it in {folder}")
    return file


def _module(file: Path) -> Any:
    # Named by its text, so that an edited file is imported anew.
    name = f"cvp_user_{file.stem}_{ids.fingerprint(str(file), file.read_text(encoding='utf-8'))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} is not a Python file", "its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's own file raises
        del sys.modules[name]
        raise ConfigError(
            f"{file} cannot be imported: {type(error).__name__}: {error}", "correct the file and try again"
        ) from error
    return module
