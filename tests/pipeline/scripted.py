"""A witness for tests and benchmarks: it knows the truth and errs at known rates. It sees no pictures."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline import verify
from pipeline.config import ProjectConfig
from pipeline.models.vlm.verifier import identity


class Script:
    """Answers by question: right labels get a yes with chance `yes`, wrong ones with chance `slip`.

    Attempts at one question agree with each other more than chance has it: each repeats the first answer with
    chance `steady`.
    """

    def __init__(self, config: ProjectConfig, yes: float = 0.95, slip: float = 0.05, steady: float = 0.8) -> None:
        self._config = config
        self._rates = {True: yes, False: slip}
        self._steady = steady
        self._known: dict[str, dict[str, Any]] = {}

    def learn(self, labels: pa.Table, right: Mapping[str, bool], prompt: str | None = None) -> None:
        """Prepare answers about labels: annotation_id -> whether it is right."""
        for item in verify.about_labels(labels, self._config, prompt):
            truth = right[item.row["annotation_id"]]
            # Not by the question's key: it holds the server's address, which is another one in each run.
            name = f"{item.row['annotation_id']} {prompt}"
            first = self._says(truth, f"{name} first")
            for attempt in range(self._config.verification.attempts):
                key = item.question.key(identity(self._config.verification), attempt)
                again = random.Random(f"{name} {attempt}").random() < self._steady
                said = first if again else self._says(truth, f"{name} {attempt} anew")
                self._known[key] = {"seen": "as scripted", "answer": "yes" if said else "no"}

    def learn_counts(self, counts: list[dict[str, Any]], error: float = 0.1) -> None:
        """Prepare counts: those of `boxes`, or one more with chance `error`."""
        for item in verify.about_counts(counts, self._config):
            for attempt in range(self._config.verification.attempts):
                key = item.question.key(identity(self._config.verification), attempt)
                more = int(random.Random(f"{item.row['image_id']}{item.row['class_name']}").random() < error)
                self._known[key] = {"seen": "as scripted", "count": item.row["boxes"] + more}

    def __call__(self, key: str, body: dict[str, Any]) -> dict[str, Any]:
        if key not in self._known:
            raise AssertionError(f"nothing is known of this question: {body['messages'][0]['content'][0]['text']}")
        return self._known[key]

    def _says(self, right: bool, draw: str) -> bool:
        return random.Random(draw).random() < self._rates[right]
