"""A store, some drawn photographs and a project whose verifier is a server on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config import ProjectConfig, parse_config
from pipeline.models.vlm import Question, Verifier, View, label_text
from pipeline.store import Store
from tests.pipeline.photo_rows import save, speckled

KEY = "sk-this-is-a-secret-0123456789"
VARIABLE = "CVP_TEST_KEY"


def config(url: str, **verification: Any) -> ProjectConfig:
    prices = verification.pop("prices", {"token_million": 10.0, "token_million_written": 30.0})
    settings = {"base_url": url, "model": "scripted", "key_variable": VARIABLE, "attempts": 1, "image_edge": 128}
    settings |= {"image_tokens": 800, "output_tokens": 100, "timeout": 0.6, "concurrency": 4}
    return parse_config(
        {
            "name": "p",
            "classes": {"cat": {}, "dog": {}},
            "source": {"uri": "."},
            "prices": prices,
            "verification": settings | verification,
        }
    )


def photos(folder: Path, count: int = 3) -> pa.Table:
    """Rows of `images` of photographs of 80 x 60 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    return save(folder, [speckled(k) for k in range(count)])


def questions(images: pa.Table, count: int) -> list[Question]:
    """Different questions about boxes of these images."""
    names = images.column("image_id").to_pylist()
    made = []
    for k in range(count):
        corner = (float(k % 40), float(k // 40 % 40))
        view = View((names[k % len(names)],), (*corner, corner[0] + 10, corner[1] + 10 + k // 1600), 128)
        made.append(Question("label", label_text(None, "cat", ["cat"], ["cat", "dog"], True), view))
    return made


def verifier(project: ProjectConfig, root: Path, more: float | None = None) -> Verifier:
    return Verifier(project, Store(str(root / "store")), ("verifications", "b"), more)
