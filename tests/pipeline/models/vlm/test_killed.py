"""A thousand questions to a faulty endpoint, by a process that is killed again and again."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.models.vlm import Answers
from pipeline.models.vlm.verifier import identity
from pipeline.store import Store
from tests.pipeline.chat_server import SENT, WRITTEN, ChatServer
from tests.pipeline.verifier_world import KEY, VARIABLE, config, photos, questions, verifier

COUNT, KILLS, CONCURRENCY = 1000, 4, 16
# Of all first requests of a question, every fault; then some of the second ones, too.
FIRST = ("429:0.01", "429", "500", "503", "hang", "drop", "cut", "not_json", "truncated", "refusal", "wrong")


def faults(key: str, before: int) -> str:
    draw = random.Random(f"{key}{before}").random()
    return FIRST[int(draw * 55)] if before < 3 and draw < 0.2 else ""


def started(root: Path, server: ChatServer, tokens: int) -> subprocess.Popen[bytes]:
    arguments = [
        sys.executable,
        "-m",
        "tests.pipeline.models.vlm.asker",
        str(root),
        server.url,
        str(COUNT),
        str(tokens),
    ]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def killed_at(process: subprocess.Popen[bytes], server: ChatServer, answers: int) -> None:
    """Kill it once the server has charged so many answers."""
    while sum(server.charged.values()) < answers and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.communicate()


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(300)
@pytest.mark.parametrize("remembers", [True, False])
def test_none_lost_none_paid_twice_no_overshoot(
    remembers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    images = photos(tmp_path / "photos")
    asked = questions(images, COUNT)
    with ChatServer(faults=faults, remembers=remembers, pause=0.004, keep_bodies=False).running() as server:
        short, long = 300_000, 5_000_000
        draw = random.Random(5)
        for kill in range(KILLS):
            killed_at(started(tmp_path, server, short), server, (kill + 1) * 80 + draw.randrange(30))
            seen = Answers(Store(str(tmp_path / "store")))
            assert server.tokens <= seen.total.total <= short, "what was on its way is taken for spent"
        # The small budget ends before the questions do, and is not overshot.
        output, errors = started(tmp_path, server, short).communicate(timeout=120)
        assert b"the budget is spent" in output, errors
        spent = Answers(Store(str(tmp_path / "store"))).total
        assert server.tokens <= spent.total <= short
        # With more, killed in the middle once more, everything is answered in the end.
        killed_at(started(tmp_path, server, long), server, 700)
        output, errors = started(tmp_path, server, long).communicate(timeout=120)
        assert f"{COUNT} answered".encode() in output, errors
        spent = Answers(Store(str(tmp_path / "store"))).total
        assert server.tokens <= spent.total <= long
        project = config(server.url)
        keys = [q.key(identity(project.verification), 0) for q in asked]
        twice = sum(n - 1 for n in server.charged.values())
        lost_by_fault = sum(faults(k, b) in ("cut", "not_json") for k in keys for b in range(3))
        if remembers:
            assert twice == 0
        else:
            # Only what the network or a kill swallowed can be charged again: nobody could know of it.
            assert twice <= lost_by_fault + (KILLS + 1) * CONCURRENCY
        assert set(server.charged) == set(keys)
        # All of it is in the log, and asking once more sends nothing.
        came = sum(server.came.values())
        found = verifier(config(server.url), tmp_path).ask(asked, images)
        assert found.fresh == 0 and all(len(r) == 1 for r in found.replies) and sum(server.came.values()) == came
    states = [r[0].state for r in found.replies]
    print(
        f"{COUNT} questions, {KILLS + 1} kills, {sum(server.came.values())} requests, "
        f"{sum(server.charged.values())} charged ({twice} twice), {spent.total} of {long} tokens taken for spent, "
        f"{server.tokens} charged; {states.count('answered')} answered, {states.count('refused')} refused, "
        f"{states.count('malformed')} malformed"
    )
    assert states.count("answered") > 900 and {"refused", "malformed"} <= set(states)
    assert all(len(q) == 1 for q in found.replies) and SENT + WRITTEN == 540
