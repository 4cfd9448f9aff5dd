"""Small tables, made by hand or at random, for the tests of evaluation and what follows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.config import ProjectConfig, parse_config
from pipeline.quality import MEASURES

Box = tuple[str, str, Sequence[float] | None, float]  # image, class, xyxy, score


class Tables:
    """Makers of tables; each row of `boxes` is (image, class, xyxy or None, score)."""

    @staticmethod
    def config(classes: Sequence[str] = ("cat",), **more: Any) -> ProjectConfig:
        return parse_config({"name": "p", "classes": {c: {} for c in classes}, "source": {"uri": "."}, **more})

    @staticmethod
    def boxes(rows: Sequence[Box], producer: str = "m@1#0", name: str = "detections", **extra: Any) -> pa.Table:
        boxed = [[np.nan] * 4 if r[2] is None else list(r[2]) for r in rows]
        whole = bool(rows) and rows[0][2] is None
        return schema.annotations(
            name,
            image_ids=[r[0] for r in rows],
            batch="b",
            producer=producer,
            classes=[r[1] for r in rows],
            boxes=None if whole else np.array(boxed, np.float32).reshape(-1, 4),
            scores=[r[3] for r in rows],
            **extra,
        )

    @classmethod
    def truth(cls, rows: Sequence[tuple[str, str, Sequence[float] | None]], **extra: Any) -> pa.Table:
        return cls.boxes([(*r, 1.0) for r in rows], "human", "ground_truth", **extra)

    @staticmethod
    def splits(ids: Sequence[str], split: str = "test", gold: bool = True) -> pa.Table:
        rows = [{"image_id": i, "batch": "b", "split": split, "location": i, "gold": gold} for i in ids]
        return schema.table("splits").from_rows(rows)

    @staticmethod
    def members(slices: dict[str, Sequence[str]]) -> pa.Table:
        pairs = [(name, image) for name, ids in slices.items() for image in ids]
        return pa.table(
            {
                "slice": pa.array([p[0] for p in pairs], pa.string()),
                "image_id": pa.array([p[1] for p in pairs], pa.string()),
            }
        )

    @staticmethod
    def images(ids: Sequence[str], attributes: Sequence[dict[str, str]] | None = None) -> pa.Table:
        rows = []
        for k, image in enumerate(ids):
            row: dict[str, Any] = {"image_id": image, "batch": "b", "uri": image, "file_name": image}
            row |= {"parent_id": image, "tile_x": 0, "tile_y": 0, "width": 100, "height": 100}
            row |= {"photo_width": 100, "photo_height": 100, "format": "PNG", "mode": "RGB", "orientation": 1}
            row |= {"bytes": 1, "location": image, "attributes": list((attributes or [{}] * len(ids))[k].items())}
            rows.append(row)
        return schema.table("images").from_rows(rows)

    @staticmethod
    def quality(ids: Sequence[str], brightness: Sequence[float], issues: Sequence[list[str]] | None = None) -> pa.Table:
        names = [n for n in MEASURES if n not in ("brightness", "phash")]
        rows = [
            {"image_id": i, "batch": "b", "brightness": b, "phash": 0, **dict.fromkeys(names, 0.5)}
            | {"issues": (issues or [[]] * len(ids))[k]}
            for k, (i, b) in enumerate(zip(ids, brightness, strict=True))
        ]
        return schema.table("quality").from_rows(rows)

    @staticmethod
    def trust(*rows: dict[str, Any]) -> pa.Table:
        """Rows of `trust`: certified where there is a threshold, and the rest as dull as can be."""
        dull = {"slice": "all", "target": 0.9, "confidence": 0.9, "gold": 9, "units": 9, "candidates": 9, "accepted": 9}
        dull |= {"unit": "image", "method": "", "note": ""}
        return schema.table("trust").from_rows([{**dull, "certified": bool(r.get("threshold")), **r} for r in rows])

    @staticmethod
    def metric(table: pa.Table, metric: str, **where: str) -> dict[str, Any]:
        """The one row of `evaluation` for a metric; slice, class and split default to all, all and test."""
        wanted = {"slice": "all", "class_name": "all", "split": "test", "metric": metric} | where
        rows = [r for r in table.to_pylist() if all(r[k] == v for k, v in wanted.items())]
        assert len(rows) == 1, (wanted, len(rows))
        return rows[0]


@pytest.fixture(scope="session")
def tables() -> type[Tables]:
    return Tables
