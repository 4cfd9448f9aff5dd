"""The role `Verifier`: questions in, answers out; those that were paid for before come from the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline import ids, schema
from pipeline.config import ProjectConfig, VerificationConfig
from pipeline.images import Reader
from pipeline.models.vlm import picture
from pipeline.models.vlm.answers import Answers, Purpose, alone
from pipeline.models.vlm.budget import Budget, Tokens
from pipeline.models.vlm.endpoint import Endpoint
from pipeline.models.vlm.questions import WORDINGS, Question, Reply, Verdict, verdict
from pipeline.models.vlm.session import Pictures, Session, Slot, run
from pipeline.store import Store

VERSION = "1"

Progress = Callable[[int, int], None]  # questions done, questions in all


@dataclass(frozen=True)
class Asked:
    """What came of a number of questions.

    Attributes:
        replies: of each question, one an attempt; fewer where the budget ran out; none where it was not asked.
        stopped: why not all were asked, in words; '' if they were.
        paid: tokens that were spent now; what was in the log cost nothing. ever: and by the same purpose before.
        fresh: how many attempts were sent now.
    """

    replies: list[list[Reply]]
    attempts: list[int]
    stopped: str
    paid: Tokens
    ever: Tokens
    fresh: int

    def verdict(self, index: int, question: Question) -> Verdict | None:
        """What the attempts at one question say; None where it was not asked to the end."""
        said = self.replies[index]
        return verdict(question.kind, said) if len(said) == self.attempts[index] else None


class Verifier:
    """The vision-language model of a project, as a witness to be graded.

    Args:
        purpose: the asset and batch that ask, for the ledger.
        more: a further limit on money, of the stage that asks; None: none.

    Raises:
        ConfigError: the key is not in the environment.
    """

    def __init__(self, config: ProjectConfig, store: Store, purpose: Purpose, more: float | None = None) -> None:
        self._config = config.verification
        self._prices = config.prices
        self._pixels = config.source.max_pixels
        self._store = store
        self._purpose = purpose
        self._more = more
        self._endpoint = Endpoint(self._config)

    def ask(self, questions: Sequence[Question], images: pa.Table, progress: Progress | None = None) -> Asked:
        """Put every question `attempts` times (once for descriptions), in order, answers in the log first.

        Stops cleanly when the budget is spent: what was paid for is kept, and nothing is sent that could
        cost more than is left.

        Args:
            images: rows of `images` of all that the questions show.

        Raises:
            EndpointError: the endpoint refuses the key or the request, or cannot be reached. What it
                answered before is kept, so that asking again goes on from there.
            StoreError: the log of answers is damaged or cannot be written, or another run is asking.
        """
        slots = [list(self._slots(question)) for question in questions]
        answers = Answers(self._store)
        paid, fresh, stopped = Tokens(), 0, ""
        if _waiting(slots, answers):
            with alone(self._store):
                answers = Answers(self._store)  # whoever asked before may have added to it
                waiting, before = _waiting(slots, answers), answers.total
                stopped = self._send(waiting, sum(map(len, slots)), images, answers, progress)
                paid, fresh = answers.total - before, len(waiting) - len(_waiting([waiting], answers))
        replies = [[r for r in (answers.get(slot.key) for slot in some) if r is not None] for some in slots]
        ever = answers.spent.get(self._purpose, Tokens())
        return Asked(replies, [len(some) for some in slots], stopped, paid, ever, fresh)

    def _send(
        self, waiting: Sequence[Slot], total: int, images: pa.Table, answers: Answers, progress: Progress | None
    ) -> str:
        budget = Budget(self._config.budget, self._prices, answers.total, self._more)
        shown = {i for slot in waiting for i in slot.question.view.images}
        pictures = Pictures(schema.where_in(images, "image_id", shown), Reader(self._pixels))
        session = Session(self._config, self._endpoint, answers, budget, self._purpose)

        def tell(done: int) -> None:
            if progress:
                progress(total - len(waiting) + done, total)

        try:
            return run(session.run(waiting, pictures, tell))
        finally:
            answers.close()

    def _slots(self, question: Question) -> Iterator[Slot]:
        settings = identity(self._config)
        for attempt in range(1 if question.kind == "describe" else self._config.attempts):
            yield Slot(question, question.key(settings, attempt))


def _waiting(slots: Sequence[Sequence[Slot]], answers: Answers) -> list[Slot]:
    """Slots without an answer, each address once."""
    found = {slot.key: slot for some in slots for slot in some if answers.get(slot.key) is None}
    return list(found.values())


def identity(config: VerificationConfig) -> list[Any]:
    """Everything besides the question that an answer depends on."""
    return [
        config.base_url,
        config.model,
        config.temperature,
        config.structured,
        config.output_tokens,
        picture.VERSION,
    ]


def producer(config: VerificationConfig, prompt: str | None = None) -> str:
    """The verifier's name in every table; it changes with the model, the wording and the settings."""
    name = prompt or config.prompt
    shown = [config.attempts, config.image_edge, config.context]
    model = config.model.replace("@", "-").replace("#", "-")
    return ids.producer(model, VERSION, identity(config), shown, config.prompts.get(name), WORDINGS)
