"""A process that asks so many questions and is meant to be killed: asker.py ROOT URL COUNT BUDGET_TOKENS."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.models.vlm import session
from tests.pipeline.verifier_world import config, photos, questions, verifier


def main() -> None:
    root, url, count, tokens = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    session._FIRST_PAUSE = 0.02
    images = photos(root / "photos")
    project = config(url, concurrency=16, retries=20, timeout=0.5, budget={"tokens": tokens})
    found = verifier(project, root).ask(questions(images, count), images)
    print(f"{sum(len(r) for r in found.replies)} answered, {found.fresh} now; {found.stopped}")


if __name__ == "__main__":
    main()
