"""The classes of a project and the words that describe them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Class:
    """One class: its name in every table, and the prompts that models are asked with.

    Attributes:
        negatives: prompts of what it is taken for; text-prompted detectors ask for these, too.
        box_threshold, text_threshold: see `ClassConfig`; None leaves the labeller's own.
    """

    name: str
    prompts: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    box_threshold: float | None = None
    text_threshold: float | None = None


@dataclass(frozen=True)
class Ontology:
    """Classes in their declared order. Names and aliases are matched without regard to case."""

    classes: tuple[Class, ...]
    _by_alias: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        lookup = {alias.casefold(): c.name for c in reversed(self.classes) for alias in c.aliases}
        lookup |= {c.name.casefold(): c.name for c in self.classes}  # a name beats another class's alias
        object.__setattr__(self, "_by_alias", lookup)

    @property
    def names(self) -> list[str]:
        return [c.name for c in self.classes]

    def __iter__(self) -> Iterator[Class]:
        return iter(self.classes)

    def __len__(self) -> int:
        return len(self.classes)

    def resolve(self, word: str) -> str | None:
        """The class that people's `word` stands for, or None."""
        return self._by_alias.get(word.strip().casefold())

    def prompts(self) -> list[tuple[str, str]]:
        """(class name, prompt) pairs, in order."""
        return [(c.name, prompt) for c in self.classes for prompt in c.prompts]
