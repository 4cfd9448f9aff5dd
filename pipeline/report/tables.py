"""What sections are told from, and what one is."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline.config import ProjectConfig
from pipeline.ids import producer_name
from pipeline.store import Store

Section = dict[str, Any] | None  # None: nothing has been made yet


class Tables:
    """The project's tables, each read once: of those with rows about every image only columns, or what is shown."""

    def __init__(self, config: ProjectConfig, store: Store) -> None:
        self.config = config
        self.store = store
        self._read: dict[tuple[str, ...], pa.Table] = {}

    def read(self, name: str, *columns: str) -> pa.Table:
        """All rows of a table, with all columns or these; none if it was never made."""
        if (name, *columns) not in self._read:
            self._read[name, *columns] = self.store.read_or_empty(name, columns=columns or None)
        return self._read[name, *columns]

    def about(self, name: str, image_ids: Iterable[str]) -> pa.Table:
        """The rows about these images."""
        return self.store.read_or_empty(name, images=image_ids)

    @cached_property
    def split(self) -> str:
        """The split that models are judged on: test, or val where there is no test."""
        found = set(self.read("evaluation").column("split").to_pylist())
        return "test" if "test" in found or not found else sorted(found)[0]

    @cached_property
    def models(self) -> list[str]:
        """Bare names of the models evaluated, sorted: the order of their colours."""
        return sorted({producer_name(m) for m in self.read("evaluation").column("model").to_pylist()})

    @cached_property
    def champion(self) -> str | None:
        """Producer of the model in charge."""
        found = self.read("champion").column("model").to_pylist()
        return str(found[0]) if found else None

    def judged(self, models: set[str]) -> str:
        """The one of `models` that the report looks at closely: the model in charge, if it is among them."""
        return self.champion if self.champion in models else sorted(models)[0]
