"""Proposals as rows of a table: kept, so that only what has not been asked yet is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.models.dino_questions import Questions
from pipeline.models.settle import Proposals

TABLE = "proposals"


def rows_of(found: Proposals, images: Sequence[dict[str, Any]], questions: Questions) -> pa.Table:
    """Rows of `proposals`; `found.image` points into `images`, of which `image_id` and `batch` are read."""
    keys = np.array([caption.key for caption in questions.captions], object)
    owner = np.array([i for i, _ in questions.prompts], np.int64)
    text = np.array([prompt for _, prompt in questions.prompts], object)
    order = np.lexsort((-found.scores, found.prompt, found.image))
    image, prompt = found.image[order], found.prompt[order]
    new = np.r_[True, (np.diff(image) != 0) | (np.diff(prompt) != 0)] if len(order) else np.zeros(0, bool)
    first = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    corners = found.boxes[order].astype(np.float32)
    return schema.table(TABLE).from_columns(
        {
            "image_id": pa.array([images[i]["image_id"] for i in image.tolist()], pa.string()),
            "batch": pa.array([images[i]["batch"] for i in image.tolist()], pa.string()),
            "producer": pa.array([questions.model] * len(order), pa.string()),
            "caption": pa.array(keys[owner[prompt]].tolist(), pa.string()),
            "prompt": pa.array(text[prompt].tolist(), pa.string()),
            "rank": pa.array(np.arange(len(order)) - first, pa.int32()),
            **{name: pa.array(corners[:, k]) for k, name in enumerate(("x1", "y1", "x2", "y2"))},
            "score": pa.array(found.scores[order], pa.float32()),
            "text_score": pa.array(found.text[order], pa.float32()),
        }
    )


def answers(rows: pa.Table, questions: Questions) -> pa.ChunkedArray:
    """Which rows answer `questions`: those of its network to its captions."""
    keys = pa.array([caption.key for caption in questions.captions], pa.string())
    return pc.and_(pc.equal(rows["producer"], questions.model), pc.is_in(rows["caption"], keys))


def unasked(rows: pa.Table, image_ids: Sequence[str], questions: Questions) -> list[list[int]]:
    """For each image, the positions of the captions of which `rows` has no answer."""
    answered = rows.filter(answers(rows, questions)).group_by(["image_id", "caption"]).aggregate([])
    seen = set(zip(answered["image_id"].to_pylist(), answered["caption"].to_pylist(), strict=True))
    keys = [caption.key for caption in questions.captions]
    return [[i for i, key in enumerate(keys) if (image, key) not in seen] for image in image_ids]


def read_back(rows: pa.Table, image_ids: Sequence[str], questions: Questions) -> Proposals:
    """The answers to `questions` among rows; `image` points into `image_ids`, and other images' are left out."""
    kept = rows.filter(answers(rows, questions))
    kept = kept.filter(pc.is_in(kept["image_id"], pa.array(image_ids, pa.string())))
    names = [f"{questions.captions[i].key}\x1f{prompt}" for i, prompt in questions.prompts]
    asked = pc.binary_join_element_wise(kept["caption"], kept["prompt"], "\x1f")
    prompt = pc.index_in(asked, pa.array(names, pa.string())).to_numpy(zero_copy_only=False)
    image = pc.index_in(kept["image_id"], pa.array(image_ids, pa.string())).to_numpy(zero_copy_only=False)
    order = np.lexsort((kept["rank"].to_numpy(), prompt, image))
    corners = np.stack([kept[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], axis=1)
    return Proposals(
        image[order].astype(np.int64),
        prompt[order].astype(np.int64),
        corners[order].astype(np.float64),
        kept["score"].to_numpy()[order],
        kept["text_score"].to_numpy()[order],
    )
