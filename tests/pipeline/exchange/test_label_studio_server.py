from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pipeline import decisions, journal, masks
from pipeline.config import Project
from pipeline.errors import ConfigError, DataError, StoreError
from pipeline.exchange import label_studio_server as api
from pipeline.exchange import tasks
from pipeline.store import Store
from tests.pipeline.exchange import made
from tests.pipeline.exchange.peers import peer
from tests.pipeline.review_world import BATCHES, HEIGHT, WIDTH, build


class Fake:
    """What we use of Label Studio's API, kept in memory; `calls` are (method, path, authorization)."""

    def __init__(self) -> None:
        self.projects: list[dict[str, Any]] = []
        self.tasks: list[dict[str, Any]] = []
        self.calls: list[tuple[str, str, str]] = []
        self.uploads: list[int] = []
        self.answer: Callable[[str, str], tuple[int, bytes, dict[str, str]] | None] = lambda method, path: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _do(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                data = self.rfile.read(length)
                path = urlsplit(self.path)
                outer.calls.append((self.command, path.path, self.headers.get("Authorization") or ""))
                made_up = outer.answer(self.command, path.path)
                status, body, headers = made_up or (200, b"", {})
                if made_up is None:
                    query = {k: v[0] for k, v in parse_qs(path.query).items()}
                    body = json.dumps(
                        outer.handle(self.command, path.path, query, json.loads(data or b"null"))
                    ).encode()
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PATCH = do_DELETE = _do

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def handle(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        parts = path.strip("/").split("/")[1:]
        match method, parts:
            case "POST", ["token", "refresh"]:
                return {"access": f"access-{len(self.calls)}"}
            case "GET", ["projects"]:
                return {"count": len(self.projects), "results": self._page(self.projects, query)}
            case "POST", ["projects"]:
                self.projects.append({"id": len(self.projects) + 1, **body})
                return self.projects[-1]
            case "PATCH", ["projects", number]:
                self.projects[int(number) - 1] |= body
            case "POST", ["projects", _, "import"]:
                self.uploads.append(len(body))
                for task in body:
                    name = len(self.tasks) + 1
                    said = [p | {"id": name * 100} for p in task["predictions"]]
                    self.tasks.append({"id": name, "data": task["data"], "predictions": said, "annotations": []})
            case "GET", ["tasks"]:
                return {"total": len(self.tasks), "tasks": self._page(self.tasks, query)}
            case "PATCH", ["tasks", number]:
                self.tasks[int(number) - 1] |= body
            case "DELETE", ["predictions", number]:
                self.tasks[int(number) // 100 - 1]["predictions"] = []
            case "POST", ["predictions"]:
                self.tasks[body["task"] - 1]["predictions"] = [body | {"id": body["task"] * 100}]
            case "GET", ["projects", _, "export"]:
                return [t for t in self.tasks if t["annotations"]]
            case "GET", ["users"]:
                return [{"id": 1, "email": "ann@x.org"}, {"id": 2, "email": "ben@x.org"}]
            case _:
                raise AssertionError((method, path))
        return None

    @staticmethod
    def _page(items: list[Any], query: dict[str, str]) -> list[Any]:
        size, page = 2, int(query["page"])  # smaller pages than were asked for are allowed
        return items[(page - 1) * size : page * size]


@pytest.fixture
def fake() -> Iterator[Fake]:
    made_up = Fake()
    yield made_up
    made_up.server.shutdown()
    made_up.server.server_close()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: Fake) -> Project:
    monkeypatch.setenv(api.TOKEN, "0123456789abcdef")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not be used for loopback
    return build(tmp_path, monkeypatch, review={"label_studio": {"url": fake.url}})


def counts(done: api.Pushed) -> tuple[int, int, int]:
    return done.made, done.changed, done.unchanged


def test_a_second_sync_makes_nothing(project: Project, fake: Fake) -> None:
    fake.projects.append({"id": 1, "title": "pets too", "label_config": ""})
    assert counts(api.push(project, "queue")) == (6, 0, 0)
    assert [p["title"] for p in fake.projects] == ["pets too", "pets"]
    before, calls = json.dumps(fake.tasks), len(fake.calls)
    assert counts(api.push(project, "queue")) == (0, 0, 6)
    assert json.dumps(fake.tasks) == before
    assert {method for method, _, _ in fake.calls[calls:]} == {"GET"}
    assert {who for _, _, who in fake.calls} == {"Token 0123456789abcdef"}
    assert fake.tasks[0]["data"]["image"].startswith("data:image/jpeg;base64,")


def test_changed_labels_replace_the_prediction_and_keep_annotations(project: Project, fake: Fake) -> None:
    api.push(project, "queue")
    task = fake.tasks[0]
    task["annotations"] = [{"result": task["predictions"][0]["result"][:1], "completed_by": 2}]
    picture = task["data"]["image"]
    received = api.pull(project, "ann")
    assert {(d.reviewer, d.verdict) for d in received.decisions} == {("ben@x.org", "yes"), ("ben@x.org", "no")}
    assert api.pull(project, "ann").decisions == []
    assert counts(api.push(project, "labels")) == (0, 1, 5)
    assert len(task["predictions"]) == 1 and len(task["predictions"][0]["result"]) == 1
    assert task["annotations"] and task["data"]["image"] == picture and task["data"]["shown"] == [
        task["predictions"][0]["result"][0]["id"]
    ]  # fmt: skip
    assert counts(api.push(project, "labels")) == (0, 0, 6)


def test_uploads_are_cut_into_pieces(project: Project, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_UPLOAD_BYTES", 40_000)
    api.push(project, "queue")
    assert sum(fake.uploads) == 6 and len(fake.uploads) > 1


def test_pictures_may_stay_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: Fake, project: Project
) -> None:
    other = build(
        tmp_path / "o", monkeypatch, review={"label_studio": {"url": fake.url, "pictures": "/data/local-files/?d=x"}}
    )
    api.push(other, "queue")
    assert fake.tasks[0]["data"]["image"] == f"/data/local-files/?d=x/{fake.tasks[0]['data']['name']}"


def test_one_bad_picture_fails_nothing(project: Project, fake: Fake) -> None:
    Path(Store(project.store_uri).read("images", BATCHES[0]).column("uri")[0].as_py()).write_bytes(b"x")
    done = api.push(project, "queue")
    assert done.made == 5 and "not_an_image" in done.losses[0].what


def test_a_personal_access_token_is_exchanged_and_renewed(fake: Fake) -> None:
    now = [0.0]
    server = api.Server(fake.url, "a.b.c", clock=lambda: now[0])
    for at in (0, 100, 300, 400):
        now[0] = at
        server.call("GET", "/api/users/")
    used = [who for _, path, who in fake.calls if path == "/api/users/"]
    assert used[0] == used[1] != used[2] == used[3] and used[0].startswith("Bearer access-")
    assert sum(path == "/api/token/refresh" for _, path, _ in fake.calls) == 2


def test_errors_are_told_with_what_to_do(project: Project, fake: Fake) -> None:
    fake.answer = lambda method, path: (401, b'{"detail": "no longer valid"}', {})
    with pytest.raises(ConfigError, match=r"(?s)refuses the token: no longer valid.*LABEL_STUDIO_API_KEY"):
        api.push(project, "queue")
    fake.answer = lambda method, path: (500, b"<html>" + b"x" * 5000, {})
    with pytest.raises(StoreError, match="answers 500"):
        api.push(project, "queue")
    fake.answer = lambda method, path: (200, b"<html>", {})
    with pytest.raises(StoreError, match="cannot talk to"):
        api.push(project, "queue")
    fake.answer = lambda method, path: None
    with pytest.raises(DataError, match="has no project 'pets'"):
        api.pull(project, "ann")


def test_the_token_is_not_carried_elsewhere(project: Project, fake: Fake) -> None:
    other = Fake()
    fake.answer = lambda method, path: (302, b"", {"Location": f"{other.url}/api/projects/"})
    with pytest.raises(StoreError, match="answers 302"):
        api.push(project, "queue")
    assert other.calls == []
    other.server.shutdown()


def test_nothing_is_contacted_unless_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build(tmp_path, monkeypatch)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("contacted")

    monkeypatch.setattr(socket, "create_connection", never)
    for work in (lambda: api.push(plain, "queue"), lambda: api.pull(plain, "ann")):
        with pytest.raises(ConfigError, match="no Label Studio server is configured"):
            work()
    monkeypatch.delenv(api.TOKEN, raising=False)
    named = build(tmp_path / "n", monkeypatch, review={"label_studio": {"url": "http://127.0.0.1:1"}})
    with pytest.raises(ConfigError, match="LABEL_STUDIO_API_KEY is not set"):
        api.push(named, "queue")


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:8080", "http://a:b@x", "http://", "file:///etc"])
def test_addresses_that_are_none(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"review\.label_studio\.url"):
        build(tmp_path, monkeypatch, review={"label_studio": {"url": url}})


# -- the real one ------------------------------------------------------------------------------------

_KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Label Studio on loopback, with a database of its own."""
    python = peer("label-studio==1.23.2")
    folder = tmp_path_factory.mktemp("label-studio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ, "LABEL_STUDIO_BASE_DATA_DIR": str(folder / "data"), "SENTRY_RATE": "0", "HOME": str(folder),
        "COLLECT_ANALYTICS": "false", "LATEST_VERSION_CHECK": "false", "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    }  # fmt: skip
    command = [
        str(python.with_name("label-studio")), "start", "--init", "first", "--no-browser", "--port", str(port),
        "--host", url, "--internal-host", "127.0.0.1", "--username", "ann@example.org", "--password", "Secret12345",
        "--user-token", _KEY,
    ]  # fmt: skip
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        _await(url, process, folder / "log")
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(240):
        if process.poll() is not None:
            pytest.fail(f"Label Studio stopped: {log.read_text()[-2000:]}")
        try:
            plain.open(f"{url}/health", timeout=5).read()
            return
        except OSError:
            time.sleep(1)
    pytest.fail(f"Label Studio did not start in 4 minutes: {log.read_text()[-2000:]}")


@pytest.mark.network
@pytest.mark.timeout(900)
def test_a_real_label_studio_there_and_back(label_studio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(api.TOKEN, _KEY)
    pets = build(tmp_path, monkeypatch, images=6, boxes=5, review={"label_studio": {"url": label_studio}})
    done = api.push(pets, "queue")
    assert counts(done) == (12, 0, 0) and done.losses == []
    assert counts(api.push(pets, "queue")) == (0, 0, 12)
    server = api.Server(label_studio, _KEY)
    there = list(api._tasks(server, done.project))
    assert len(there) == 12
    # What the server holds is what we sent, label by label.
    made.equal(
        tasks.rows(api.read_tasks([t | {"annotations": []} for t in there], "server")),
        decisions.current(Store(pets.store_uri), pets.config),
    )
    expected = {}
    for k, task in enumerate(sorted(there, key=lambda t: t["id"])):
        result = task["predictions"][0]["result"]
        boxes = [r for r in result if r["type"] == "rectanglelabels"]
        if k % 3 == 1:  # move the first box by 3 pixels, call the second a dog, delete the third with its mask
            boxes[0]["value"]["x"] += 3 / WIDTH * 100
            boxes[1]["value"]["rectanglelabels"] = ["cat" if boxes[1]["value"]["rectanglelabels"] == ["dog"] else "dog"]
            result = [r for r in result if not r["id"].startswith(boxes[2]["id"])]
            expected |= {boxes[0]["id"]: "fix", boxes[1]["id"]: "fix", boxes[2]["id"]: "no"}
        if k % 3 == 2:  # draw another
            value = {"x": 60, "y": 60, "width": 10, "height": 10, "rotation": 0, "rectanglelabels": ["dog"]}
            result = [*result, boxes[0] | {"id": f"new{k}", "value": value, "meta": {}}]
        if k % 3:
            expected = {r["id"]: "yes" for r in boxes if r["id"] not in expected} | expected
            server.call("POST", f"/api/tasks/{task['id']}/annotations/", {"result": result})
    received = api.pull(pets, "nobody")
    assert received.losses == [] and {d.reviewer for d in received.decisions} == {"ann@example.org"}
    said = {d.annotation_id: d for d in received.decisions if d.verdict != "add"}
    assert {name: d.verdict for name, d in said.items()} == expected
    added = [d for d in received.decisions if d.verdict == "add"]
    assert len(added) == 4 and all(d.box == pytest.approx((96, 72, 112, 84)) for d in added)
    moved = [d for d in said.values() if d.verdict == "fix" and d.class_name == d.asked_class]
    assert all(d.box[0] == pytest.approx(d.asked_box[0] + 3, abs=0.01) for d in moved if d.box and d.asked_box)
    masked = [d for d in said.values() if d.mask]
    assert masked and all(masks.decode(d.mask, HEIGHT, WIDTH).sum() == 18 * 23 for d in masked if d.mask)
    assert api.pull(pets, "nobody").decisions == []
    held = sum(journal.read(Store(pets.store_uri), b).num_rows for b in BATCHES)
    assert held == len(received.decisions)
    api.push(pets, "queue")
    assert len(list(api._tasks(server, done.project))) == 12
