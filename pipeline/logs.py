"""What happens, as lines of JSON for machines: who (host, process), what (project, table, batch, shard), and when.

CVP_LOG=json in the environment, or `cvp --log json`, writes them to stderr: of `cvp run`, of Dagster's runs, of
local workers (which inherit it) and of Ray's actors (whose nodes need it set; Ray keeps their stderr with its logs).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import ConfigError

VARIABLE = "CVP_LOG"
FORMS = ("json", "off")
_ROOT = "pipeline"
_labels: ContextVar[dict[str, Any]] = ContextVar("labels")


@contextmanager
def labelled(**labels: Any) -> Iterator[None]:
    """Put `labels` (project, table, batch, shard) on every line of this thread while the context is open."""
    token = _labels.set({**_labels.get({}), **labels})
    try:
        yield
    finally:
        _labels.reset(token)


class JsonLines(logging.Formatter):
    """A record as one line of JSON: at, level, logger, message, host, pid, its labels, and its `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "host": socket.gethostname(),
            "pid": record.process,
            **_labels.get({}),
            **{k: v for k, v in record.__dict__.items() if k not in _STANDARD},
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


_STANDARD = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "dagster_meta"}


def set_up(form: str | None = None) -> None:
    """Have this process write its log as the environment says, once.

    Args:
        form: json or off; None: as CVP_LOG says, off where it says nothing.

    Raises:
        ConfigError: another form.
    """
    form = form if form is not None else os.environ.get(VARIABLE) or "off"
    if form not in FORMS:
        raise ConfigError(f"there is no log format {form!r}", f"{VARIABLE} may be {' or '.join(FORMS)}")
    os.environ[VARIABLE] = form  # for child processes
    logger = logging.getLogger(_ROOT)
    for handler in [h for h in logger.handlers if isinstance(h.formatter, JsonLines)]:
        logger.removeHandler(handler)
    if form == "json":
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
