"""The local review page: quick yes, no or fix over a project's queue, each decision on disk at once."""

from __future__ import annotations

from pipeline.reviewing.server import serve

__all__ = ["serve"]
