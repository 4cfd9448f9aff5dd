"""The client against a server that speaks the protocol, with its faults."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import ConfigError, StoreError
from pipeline.models.vlm import Answers, EndpointError, Question, Tokens, View, session
from pipeline.models.vlm.verifier import producer
from pipeline.store import Store
from tests.pipeline.chat_server import SENT, WRITTEN, ChatServer
from tests.pipeline.verifier_world import KEY, VARIABLE, config, photos, questions, verifier


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_FIRST_PAUSE", 0.01)
    monkeypatch.setenv(VARIABLE, KEY)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer().running() as running:
        yield running


@pytest.fixture
def images(tmp_path: Path) -> pa.Table:
    return photos(tmp_path / "photos")


def texts(root: Path) -> str:
    """Everything that was written under a folder."""
    return "\n".join(p.read_bytes().decode("latin-1") for p in root.rglob("*") if p.is_file() and p.suffix != ".png")


def test_answers_are_counted_kept_and_replayed_for_nothing(
    server: ChatServer, images: pa.Table, tmp_path: Path
) -> None:
    project, asked = config(server.url, attempts=3), questions(images, 7)
    first = verifier(project, tmp_path).ask(asked, images)
    assert first.stopped == "" and first.fresh == 21 and first.paid == Tokens(21 * SENT, 21 * WRITTEN)
    said = first.verdict(0, asked[0])
    assert said is not None and (said.answer, said.agreement, said.words) == ("yes", 1.0, "a thing")
    again = verifier(project, tmp_path).ask(asked, images)
    assert again.replies == first.replies and again.fresh == 0 and again.paid == Tokens()
    assert sum(server.charged.values()) == len(server.charged) == 21
    # Another wording, model or picture is another question.
    verifier(config(server.url, attempts=3, model="other"), tmp_path).ask(asked[:1], images)
    verifier(project, tmp_path).ask([Question("label", asked[0].text, View(asked[0].view.images, None, 64))], images)
    assert len(server.charged) == 27
    assert Answers(Store(str(tmp_path / "store"))).spent == {("verifications", "b"): Tokens(27 * SENT, 27 * WRITTEN)}


def test_the_same_question_twice_is_paid_once(server: ChatServer, images: pa.Table, tmp_path: Path) -> None:
    asked = questions(images, 1) * 5
    found = verifier(config(server.url, attempts=2), tmp_path).ask(asked, images)
    assert sum(server.charged.values()) == 2 and all(len(r) == 2 for r in found.replies)


def test_what_is_sent(server: ChatServer, images: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-other")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-other")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-account")
    verifier(config(server.url, temperature=0.5), tmp_path).ask(questions(images, 1), images)
    (body,), (headers,) = server.bodies, server.headers
    assert server.paths == ["/v1/chat/completions"]
    assert body["model"] == "scripted" and body["max_completion_tokens"] == 100 and body["temperature"] == 0.5
    form = body["response_format"]["json_schema"]
    assert form["strict"] and form["schema"]["required"] == ["seen", "answer"]
    assert form["schema"]["additionalProperties"] is False
    text, picture = body["messages"][0]["content"]
    assert '"cat"' in text["text"] and picture["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert headers["authorization"] == f"Bearer {KEY}" and "other" not in json.dumps(headers)
    verifier(config(server.url, key_variable="", structured="none", limit_by="max_tokens"), tmp_path).ask(
        questions(images, 1), images
    )
    assert "authorization" not in server.headers[1] and "response_format" not in server.bodies[1]
    assert (
        server.bodies[1]["max_tokens"] == 100 and "JSON object" in server.bodies[1]["messages"][0]["content"][0]["text"]
    )


@pytest.mark.parametrize("fault", ["500", "503", "429:0.05", "429", "drop", "cut", "not_json", "hang", "502"])
def test_a_passing_fault_costs_no_answer(fault: str, images: pa.Table, tmp_path: Path) -> None:
    with ChatServer(faults=lambda key, before: fault if before == 0 else "").running() as server:
        found = verifier(config(server.url), tmp_path).ask(questions(images, 6), images)
    assert [r[0].value for r in found.replies] == ["yes"] * 6
    lost = 6 if fault in ("drop", "cut", "not_json", "hang", "502") else 0
    # What may have been charged for nothing is taken for spent, at the most it can have cost.
    assert found.paid.written == 6 * WRITTEN + lost * 100
    assert server.tokens <= found.paid.total
    spent = Answers(Store(str(tmp_path / "store"))).total
    assert spent == found.paid


@pytest.mark.parametrize(
    ("fault", "state", "words"),
    [
        ("truncated", "malformed", "cut off at output_tokens"),
        ("wrong", "malformed", "probably"),
        ("refusal", "refused", "I cannot help with that."),
        ("400", "declined", "status 400"),
    ],
)
def test_what_is_no_answer_is_recorded_and_not_asked_again(
    fault: str, state: str, words: str, images: pa.Table, tmp_path: Path
) -> None:
    chosen = questions(images, 3)[1].key
    with ChatServer().running() as server:
        project = config(server.url)
        from pipeline.models.vlm.verifier import identity

        key = chosen(identity(project.verification), 0)
        server.faults = lambda k, before: fault if k == key else ""
        found = verifier(project, tmp_path).ask(questions(images, 3), images)
        assert [r[0].state for r in found.replies] == ["answered", state, "answered"]
        assert words in found.replies[1][0].words and found.replies[1][0].value is None
        again = verifier(project, tmp_path).ask(questions(images, 3), images)
    if state == "declined":
        assert again.fresh == 1 and found.replies[1][0].sent == 0  # it cost nothing, and may be taken next time
    else:
        assert again.fresh == 0 and again.replies == found.replies


def test_a_fenced_answer_is_an_answer(images: pa.Table, tmp_path: Path) -> None:
    with ChatServer(faults=lambda key, before: "fenced").running() as server:
        found = verifier(config(server.url, structured="none"), tmp_path).ask(questions(images, 2), images)
    assert [r[0].value for r in found.replies] == ["yes", "yes"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [("401", "status 401"), ("404", "status 404"), ("302", "leads elsewhere"), ("307", "leads elsewhere"),
     ("400", "status 400"), ("429:999", "asks to wait 999 s"), ("500", "status 500"), ("hang", "no answer within")],
)  # fmt: skip
def test_a_lasting_fault_stops_and_tells_no_secret(
    fault: str, words: str, images: pa.Table, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with ChatServer(faults=lambda key, before: fault).running() as server:
        with pytest.raises(EndpointError) as caught:
            verifier(config(server.url, retries=1, timeout=0.2), tmp_path).ask(questions(images, 40), images)
        assert not [p for p in server.paths if "elsewhere" in p]
        assert sum(server.came.values()) <= 40, "it stops soon"
    assert words in caught.value.what and not server.charged
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + texts(tmp_path)
    assert KEY not in shown
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_some_that_get_no_answer_are_told_and_only_they_are_asked_again(images: pa.Table, tmp_path: Path) -> None:
    asked = questions(images, 20)
    with ChatServer().running() as server:
        project = config(server.url, retries=1)
        from pipeline.models.vlm.verifier import identity

        bad = {asked[k].key(identity(project.verification), 0) for k in (3, 11)}
        server.faults = lambda key, before: "503" if key in bad else ""
        with pytest.raises(EndpointError, match="2 of 20 requests"):
            verifier(project, tmp_path).ask(asked, images)
        server.faults = lambda key, before: ""
        found = verifier(project, tmp_path).ask(asked, images)
    assert found.fresh == 2 and all(len(r) == 1 for r in found.replies)
    assert max(server.charged.values()) == 1 and len(server.charged) == 20


def test_retry_after_holds_everybody(images: pa.Table, tmp_path: Path) -> None:
    told: list[float] = []

    def faults(key: str, before: int) -> str:
        told.append(time.monotonic())
        return "429:0.4" if len(told) == 1 else ""

    with ChatServer(faults=faults).running() as server:
        verifier(config(server.url, concurrency=1), tmp_path).ask(questions(images, 4), images)
    assert told[1] - told[0] >= 0.4 and told[4] - told[1] < 0.4


def test_retry_after_as_a_date() -> None:
    from pipeline.models.vlm.endpoint import _retry_after

    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28 <= (_retry_after({"retry-after": later}) or 0) <= 30
    assert _retry_after({"retry-after-ms": "250"}) == 0.25 and _retry_after({}) is None
    assert _retry_after({"retry-after": "soon"}) is None and _retry_after({"retry-after": "-3"}) is None


def test_concurrency_and_rate_are_kept(images: pa.Table, tmp_path: Path) -> None:
    with ChatServer(pause=0.05).running() as server:
        verifier(config(server.url, concurrency=5), tmp_path / "a").ask(questions(images, 25), images)
        assert 2 <= server.busiest <= 5
        start = time.monotonic()
        verifier(config(server.url, per_minute=600), tmp_path / "b").ask(questions(images, 9), images)
        assert time.monotonic() - start >= 0.8


@pytest.mark.parametrize("limit", [{"tokens": 12_345}, {"money": 0.1234}])
@pytest.mark.parametrize("usage", [True, False])
def test_the_budget_stops_cleanly_and_is_never_overshot(
    limit: dict[str, float], usage: bool, images: pa.Table, tmp_path: Path
) -> None:
    asked = questions(images, 60)
    with ChatServer(faults=lambda key, before: "hang" if before == 0 and key < "1" else "").running() as server:
        server.usage = server.usage if usage else None
        project = config(server.url, budget={"tokens": None, **limit}, concurrency=16, timeout=0.3)
        found = verifier(project, tmp_path).ask(asked, images)
        assert "the budget is spent" in found.stopped
        spent = Answers(Store(str(tmp_path / "store"))).total
        money = project.prices.tokens(spent.sent, spent.written)
        assert (
            spent.total <= limit.get("tokens", 1e9)
            and money <= limit.get("money", 1e9)
            and server.tokens <= spent.total
        )
        done = sum(len(r) for r in found.replies)
        assert 0 < done < 60 and found.verdict(59, asked[59]) is None
        # Nothing is left that another question would fit in, and asking again sends nothing.
        again = verifier(project, tmp_path).ask(asked, images)
        assert again.replies == found.replies and again.paid == Tokens()
        # More money goes on where it stopped.
        project = config(server.url, budget={"tokens": None, "money": None}, timeout=0.3)
        whole = verifier(project, tmp_path).ask(asked, images)
    assert whole.stopped == "" and whole.fresh == 60 - done and max(server.charged.values()) == 1


def test_the_stages_own_limit_counts_only_what_comes_now(server: ChatServer, images: pa.Table, tmp_path: Path) -> None:
    project = config(server.url, prices={"token_million": 1000.0})
    each = (SENT + WRITTEN) / 1000
    verifier(project, tmp_path).ask(questions(images, 10), images)
    found = verifier(project, tmp_path, more=6 * each).ask(questions(images, 40), images)
    assert "left to its stage" in found.stopped and 0 < found.fresh <= 6


def test_an_endpoint_that_counts_more_than_was_set_aside(images: pa.Table, tmp_path: Path) -> None:
    with ChatServer().running() as server:
        server.usage = {"prompt_tokens": 5000, "completion_tokens": 10}
        with pytest.raises(EndpointError, match="counted 5000 tokens") as caught:
            verifier(config(server.url), tmp_path).ask(questions(images, 50), images)
    assert "image_tokens" in caught.value.remedy and sum(server.charged.values()) <= 8


def test_a_picture_that_is_gone_fails_nothing(server: ChatServer, images: pa.Table, tmp_path: Path) -> None:
    Path(images.column("uri")[1].as_py()).unlink()
    found = verifier(config(server.url), tmp_path).ask(questions(images, 6), images)
    assert [r[0].state for r in found.replies] == ["answered", "declined", "answered"] * 2
    assert "unreadable" in found.replies[1][0].words


def test_no_key_is_an_error_before_anything_is_sent(
    server: ChatServer, images: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ConfigError, match=VARIABLE):
        verifier(config(server.url), tmp_path)
    assert not server.came


def test_two_runs_do_not_spend_one_budget_twice(server: ChatServer, images: pa.Table, tmp_path: Path) -> None:
    from pipeline.models.vlm.answers import alone

    store = Store(str(tmp_path / "store"))
    verifier(config(server.url), tmp_path).ask(questions(images, 1), images)
    with alone(store), pytest.raises(StoreError, match="another run"):
        verifier(config(server.url), tmp_path).ask(questions(images, 2), images)
    with alone(store):  # what is in the log needs no lock
        assert verifier(config(server.url), tmp_path).ask(questions(images, 1), images).fresh == 0


def test_a_log_that_cannot_be_written_stops_the_asking(
    server: ChatServer, images: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.lines.Lines._append_file", full)
    with pytest.raises(StoreError, match="No space left"):
        verifier(config(server.url), tmp_path).ask(questions(images, 9), images)
    assert not server.came, "what cannot be kept is not asked"


def test_a_damaged_log_is_named(server: ChatServer, images: pa.Table, tmp_path: Path) -> None:
    verifier(config(server.url), tmp_path).ask(questions(images, 2), images)
    (path,) = (tmp_path / "store" / "_answers").glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"yes"', b'"no"', 1))
    with pytest.raises(StoreError, match="damaged"):
        verifier(config(server.url), tmp_path).ask(questions(images, 2), images)


def test_in_a_notebook(server: ChatServer, images: pa.Table, tmp_path: Path) -> None:
    """Where an event loop runs already."""
    import asyncio

    async def cell() -> int:
        return verifier(config(server.url), tmp_path).ask(questions(images, 2), images).fresh

    assert asyncio.run(cell()) == 2


def test_the_producer_changes_with_what_answers_depend_on(server: ChatServer) -> None:
    changes = [{"model": "m2"}, {"attempts": 5}, {"image_edge": 200}, {"temperature": 1.0}, {"context": 0.1}]
    changes += [{"prompt": "strict", "prompts": {"strict": "is it a {class_name}, certainly?"}}]
    known = [producer(config(server.url, **c).verification) for c in [{}, *changes]]
    assert len(set(known)) == len(known) and all(name.count("@") == 1 for name in known)
    assert producer(config(server.url, concurrency=2).verification) == known[0]
