"""Errors that a user can act on: each says what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PipelineError(Exception):
    """An expected failure. `what` says what is wrong and where; `remedy` says what to do."""

    exit_code = 1
    widespread = False
    """Whether it would meet every other batch as well."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n  -> {self.remedy}"


class ConfigError(PipelineError):
    """project.yaml or an environment variable is wrong."""

    exit_code = 2
    widespread = True


class DataError(PipelineError):
    """The data that came in cannot be used as it is."""

    exit_code = 3


class WeightsError(PipelineError):
    """A checkpoint is missing, damaged, or not what it claims to be."""

    exit_code = 4
    widespread = True


class ComputeError(PipelineError):
    """The machines that should work cannot be had."""

    widespread = True


class StoreError(PipelineError):
    """A table is missing or the store cannot be read or written."""

    exit_code = 5


class StoreUnavailable(StoreError):
    """The store, or the S3 where photos lie, does not answer, is full or may not be used: no one file's fault."""

    widespread = True


def suggest(name: str, known: Iterable[str]) -> str:
    """'did you mean …' for a mistyped `name`, or the list of `known` names."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(options)}"
