"""Errors at the command line: what and remedy for expected ones, no trace unless it is asked for."""

from __future__ import annotations

import os
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from pipeline.errors import PipelineError

STOPPED, UNEXPECTED = 130, 70  # as shells say SIGINT, and as sysexits says "internal error"


class Commands(TyperGroup):
    """The commands, with errors told in the user's terms."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; the exit code is that of the error."""
        from pipeline.cli import show

        try:
            return super().invoke(ctx)
        except PipelineError as error:
            show.error(error.what, error.remedy)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            show.error("stopped", "run the same command again: finished work is kept")
            raise typer.Exit(STOPPED) from None
        except BrokenPipeError:
            # The reader of our output (`| head`) has gone; Python must not complain at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except Exception as error:
            if ctx.params.get("debug") or type(error).__module__.startswith(("typer", "click")):
                raise
            trace = _keep(error)
            words = str(error).strip().splitlines() or [""]
            show.error(
                f"unexpected {type(error).__name__}: {words[0]}",
                f"this is a bug; the full trace is in {trace} (or use: cvp --debug …)",
            )
            raise typer.Exit(UNEXPECTED) from None


def _keep(error: Exception) -> Path:
    """Write the trace of `error` under CVP_HOME, or into the system's temporary folder."""
    import tempfile

    from pipeline.config import home

    name = f"error-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.txt"
    text = "".join(traceback.format_exception(error))
    try:
        path = home() / "logs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError:
        path = Path(tempfile.gettempdir()) / name
        path.write_text(text, encoding="utf-8")
    return path
