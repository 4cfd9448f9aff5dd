"""Many questions to one endpoint: side by side, at its pace, within the budget, and each paid for once."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.config import VerificationConfig
from pipeline.errors import PipelineError
from pipeline.images import Reader, UnusableImage
from pipeline.models.vlm import picture
from pipeline.models.vlm.answers import Answers, Purpose
from pipeline.models.vlm.budget import Budget, Tokens
from pipeline.models.vlm.endpoint import Endpoint, EndpointError, Fault
from pipeline.models.vlm.questions import Question, Reply

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts to send: doubled each time, and drawn below that
_HOPELESS = 5  # questions that may fail on their way, one after the other, before the endpoint is taken for dead
_EDGE = 1.0  # of a second, within which requests of one minute's share are spread


@dataclass(frozen=True)
class Slot:
    """One attempt at one question."""

    question: Question
    key: str


def run(work: Coroutine[Any, Any, str]) -> str:
    """The result of a coroutine, also where an event loop runs already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        busy = False
    else:
        busy = True
    if not busy:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


class Pictures:
    """Pictures of questions, each drawn once for all its attempts, one at a time, beside the waiting for answers."""

    def __init__(self, images: pa.Table, reader: Reader) -> None:
        self._rows = {row["image_id"]: row for row in images.to_pylist()}
        self._reader = reader
        self._lock = threading.Lock()
        self._last: tuple[Question, bytes] | None = None

    def draw(self, question: Question) -> bytes:
        with self._lock:
            if self._last is None or self._last[0] != question:
                pixels = [self._reader.read(self._rows[i]) for i in question.view.images]
                self._last = question, picture.draw(pixels, question.view)
            return self._last[1]


class Session:
    """One run of `ask`: workers that take slots in order until there are none, or a reason to stop."""

    def __init__(
        self, config: VerificationConfig, endpoint: Endpoint, answers: Answers, budget: Budget, purpose: Purpose
    ) -> None:
        self._config = config
        self._endpoint = endpoint
        self._answers = answers
        self._budget = budget
        self._purpose = purpose
        self._room = asyncio.Condition()
        self._next = 0.0  # when the next request may be sent
        self._stopped = ""
        self._dead: PipelineError | None = None
        self._failed = 0  # questions in a row
        self._lost: list[str] = []
        self._done = 0

    async def run(self, slots: Sequence[Slot], pictures: Pictures, tell: Callable[[int], None]) -> str:
        """Ask; returns why not all was asked, or ''."""
        waiting = iter(slots)

        async def work() -> None:
            for slot in waiting:
                if self._stopped or self._dead:
                    return
                try:
                    await self._ask(slot, pictures)
                except PipelineError as error:  # the log cannot be written: what cannot be kept is not asked
                    self._dead = self._dead or error
                self._done += 1
                tell(self._done)

        async with self._endpoint:
            await asyncio.gather(*(work() for _ in range(min(self._config.concurrency, len(slots)))))
        if self._dead:
            raise self._dead
        if self._lost:
            where = f"{len(self._lost)} of {len(slots)} requests to {self._config.base_url}"
            raise EndpointError(
                f"{where} got no answer: {self._lost[-1]}",
                "run again: what was answered is kept, and only these are asked",
            )
        return self._stopped

    async def _ask(self, slot: Slot, pictures: Pictures) -> None:
        try:
            shown = await asyncio.to_thread(pictures.draw, slot.question)
        except UnusableImage as error:
            self._answers.remember(slot.key, Reply("declined", None, f"{error.reason}: {error.what}", 0, 0, 0.0))
            return
        worst = self._endpoint.worst(slot.question)
        fault: Fault | None = None
        for attempt in range(self._config.retries + 1):
            if attempt:
                await asyncio.sleep(_pause(attempt))
            if self._dead or not await self._reserve(worst):
                return
            fault = await self._send(slot, shown, worst)
            if fault is None:
                return
            if fault.kind == "stop":
                break
        assert fault is not None
        self._give_up(fault)

    async def _send(self, slot: Slot, shown: bytes, worst: Tokens) -> Fault | None:
        """Send once, for whose cost there is room; None when the answer is in the log."""
        request = uuid.uuid4().hex[:16]
        await self._answers.sending(request, slot.key, self._purpose, worst)
        await self._turn()
        outcome = await self._endpoint.send(slot.question, shown, slot.key)
        if isinstance(outcome, Reply):
            await self._answers.received(request, slot.key, self._purpose, outcome)
            await self._settle(worst, Tokens(outcome.sent, outcome.written))
            self._look_at(outcome, worst)
            return None
        if outcome.charged:
            self._answers.lost(self._purpose, worst)
            await self._settle(worst, worst)
        else:
            await self._answers.returned(request)
            await self._settle(worst, Tokens())
        return outcome if outcome.wait is None else self._told_to_wait(outcome)

    def _told_to_wait(self, fault: Fault) -> Fault:
        assert fault.wait is not None
        if fault.wait > self._config.patience:
            words = f"{fault.words}; it asks to wait {fault.wait:.0f} s, longer than verification.patience"
            return Fault("stop", words)
        # All wait: the limit is the account's, not the question's.
        self._next = max(self._next, time.monotonic() + fault.wait)
        return fault

    async def _turn(self) -> None:
        """Wait for this request's place in the minute, and for the end of any pause."""
        every = 60 / self._config.per_minute if self._config.per_minute else 0.0
        while True:
            now = time.monotonic()
            if now >= self._next:
                self._next = max(self._next, now) + every if every else self._next
                return
            await asyncio.sleep(min(self._next - now, _EDGE))

    async def _reserve(self, worst: Tokens) -> bool:
        """Room for the dearest answer; False when there is none even after all that is on its way is settled."""
        async with self._room:
            while not self._budget.reserve(worst):
                if not self._budget.held.total:
                    self._stopped = self._stopped or f"the budget is spent: {self._budget.left()}"
                    return False
                await self._room.wait()
            return True

    async def _settle(self, worst: Tokens, used: Tokens) -> None:
        async with self._room:
            self._budget.settle(worst, used)
            self._room.notify_all()

    def _look_at(self, reply: Reply, worst: Tokens) -> None:
        """Whether an answer says that no other should be asked for."""
        if reply.state == "declined":
            # One may be the question's own fault; several in a row are the endpoint's.
            self._failed += 1
            if self._failed >= _HOPELESS:
                self._give_up(Fault("stop", reply.words))
            return
        self._failed = 0
        if reply.sent > worst.sent or reply.written > worst.written:
            counted = f"{reply.sent} tokens sent and {reply.written} written for one request"
            self._dead = self._dead or EndpointError(
                f"{self._config.base_url} counted {counted}, more than the {worst.sent} and {worst.written} set aside: "
                "so the budget cannot be kept",
                "raise verification.image_tokens or output_tokens; what was answered is kept",
            )

    def _give_up(self, fault: Fault) -> None:
        self._failed += 1
        if fault.kind == "stop" or self._failed >= _HOPELESS:
            self._dead = self._dead or EndpointError(
                f"{self._config.base_url} answers no question: {fault.words}",
                "see `verification` in project.yaml; what was answered is kept, and asking again goes on from there",
            )
        else:
            self._lost.append(fault.words)


def _pause(attempt: int) -> float:
    """Seconds before the next attempt: exponential, with full jitter, so that clients do not march in step."""
    return random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt))
