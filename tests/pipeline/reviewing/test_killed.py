"""The process killed while decisions stream in: every one that was acknowledged is there."""

from __future__ import annotations

import http.client
import json
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from pipeline import journal
from pipeline.store import Store
from tests.pipeline.review_world import BATCHES, build
from tests.pipeline.reviewing.process import forked, started

KILLS = 50
SENDERS = 3


class Sender(threading.Thread):
    """Decides on one label after another, as fast as it is answered, until the server is gone."""

    def __init__(self, port: int, token: str, keys: list[str], seed: int) -> None:
        super().__init__(daemon=True)
        self.acknowledged: list[str] = []
        self._port, self._token, self._keys, self._draw = port, token, keys, random.Random(seed)

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        headers = {"X-CVP-Token": self._token, "Content-Type": "application/json"}
        try:
            while True:
                draw = self._draw.random()
                body = {"key": self._draw.choice(self._keys), "verdict": "yes" if draw < 0.5 else "no"}
                connection.request("POST", "/api/decisions", json.dumps(body), headers)
                answer = connection.getresponse()
                content = json.loads(answer.read())
                assert answer.status == 200, content
                self.acknowledged.append(content["decision_id"])
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            return


def keys_of(port: int, token: str) -> list[str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/api/items?from=0&count=100", headers={"X-CVP-Token": token})
    return [item["key"] for item in json.loads(connection.getresponse().read())["items"]]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_acknowledged_decision_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = build(tmp_path, monkeypatch)
    draw = random.Random(7)
    acknowledged: list[str] = []
    for round_ in range(KILLS):
        process, port, token = forked(project)
        keys = keys_of(port, token)
        senders = [Sender(port, token, keys, 100 * round_ + k) for k in range(SENDERS)]
        for sender in senders:
            sender.start()
        time.sleep(draw.uniform(0.05, 0.6))
        process.kill()
        process.join()
        for sender in senders:
            sender.join(20)
        acknowledged += [name for sender in senders for name in sender.acknowledged]
    store = Store(project.store_uri)
    there = {name for b in BATCHES for name in journal.read(store, b).column("decision_id").to_pylist()}
    assert set(acknowledged) <= there
    assert len(acknowledged) > KILLS
    # What is there beyond these was on its way to be acknowledged: at most one for each sender and kill.
    assert len(there) - len(set(acknowledged)) <= KILLS * SENDERS
    print(f"{KILLS} kills, {len(acknowledged)} acknowledged, {len(there)} there")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_person_it_says_how_far_they_got(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    process, _, _ = started(build(tmp_path, monkeypatch))
    process.send_signal(number)
    assert process.wait(20) == 0
