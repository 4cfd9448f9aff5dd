"""The HTTP API of a Label Studio server of one's own: tasks there, people's annotations back.

https://api.labelstud.io. Nothing is contacted unless project.yaml names a server. The token comes from the
environment variable LABEL_STUDIO_API_KEY: a personal access token, or a legacy token where these are on.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from pipeline.config import LabelStudioConfig, Project
from pipeline.errors import ConfigError, DataError, StoreError
from pipeline.exchange import sync, tasks
from pipeline.exchange.label_studio import MODEL, labeling_config, read_tasks, task_json
from pipeline.exchange.pictures import Pictures
from pipeline.ids import fingerprint
from pipeline.images import Reader, UnusableImage
from pipeline.store import Store

TOKEN = "LABEL_STUDIO_API_KEY"
SOURCE = "label-studio"
_TIMEOUT = 60  # seconds
_ACCESS_SECONDS = 240  # an access token lives for 5 minutes
_PAGE = 100
_UPLOAD_BYTES = 8_000_000
_MOST_BYTES = 2_000_000_000


@dataclass
class Pushed:
    """What a sync out came to: tasks by what was done with them."""

    project: int
    made: int = 0
    changed: int = 0
    unchanged: int = 0
    losses: list[tasks.Loss] = field(default_factory=list)


def push(project: Project, what: str) -> Pushed:
    """Put a project's queue or labels on its Label Studio server.

    A task is known by its image, so doing it again makes no task twice; where labels have changed since,
    the task's prediction is replaced. Annotations are never touched, and no task is removed.

    Raises:
        ConfigError: no server or token is configured, or it refuses the token.
        StoreError: the server cannot be reached or answers with an error.
    """
    config = project.config.review.label_studio
    server = _server(config)
    store = Store(project.store_uri)
    images, labels = sync.selection(store, project.config, what)
    number = _project(server, config.project or project.name, labeling_config(project.ontology.names))
    done = Pushed(number)
    there = {(t["data"].get("image_id"), t["data"].get("batch")): t for t in _tasks(server, number)}
    pictures = Pictures(images, Reader(project.config.source.max_pixels))
    waiting: list[dict[str, Any]] = []
    for task in tasks.tasks(images, labels):
        known = there.get((task.image_id, task.batch))
        try:
            shown = _shown(task, config, pictures, known)
        except UnusableImage as error:
            done.losses.append(tasks.Loss(f"picture {task.name}", f"{error.reason}: {error.what}"))
            continue
        body = task_json(task, shown)
        body["data"]["digest"] = fingerprint(body["predictions"])
        if known is None:
            waiting.append(body)
            done.made += 1
        elif known["data"].get("digest") == body["data"]["digest"]:
            done.unchanged += 1
        else:
            _replace(server, number, known, body)
            done.changed += 1
    for chunk in _chunks(waiting):
        server.call("POST", f"/api/projects/{number}/import?return_task_ids=true", chunk)
    return done


def pull(project: Project, reviewer: str) -> sync.Received:
    """Take over the annotations that people have submitted on the Label Studio server.

    Args:
        reviewer: who answered, where the server does not say.

    Raises:
        ConfigError, StoreError: as in `push`.
    """
    config = project.config.review.label_studio
    server = _server(config)
    title = config.project or project.name
    number = next((p["id"] for p in _projects(server, title) if p.get("title") == title), None)
    if number is None:
        raise DataError(f"{config.url} has no project {title!r}", "send it tasks first: cvp export … --server")
    content = server.call("GET", f"/api/projects/{number}/export?exportType=JSON")
    people = _people(server)
    for task in content if isinstance(content, list) else []:
        for entry in task.get("annotations") or []:
            if isinstance(entry.get("completed_by"), int):
                entry["completed_by"] = people.get(entry["completed_by"], entry["completed_by"])
    return sync.take(project, SOURCE, read_tasks(content, f"the export of project {number}"), reviewer)


# -- what is there -----------------------------------------------------------------------------------


def _server(config: LabelStudioConfig) -> Server:
    if not config.url:
        raise ConfigError(
            "no Label Studio server is configured", "set review.label_studio.url in project.yaml to your own server"
        )
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise ConfigError(f"{TOKEN} is not set", "make a token on the server's account page and export it there")
    return Server(config.url, token)


def _projects(server: Server, title: str) -> Iterator[dict[str, Any]]:
    yield from _pages(server, "/api/projects/", "results", {"title": title})


def _project(server: Server, title: str, interface: str) -> int:
    """The number of the project called `title`, made or given our labelling interface where need be."""
    found = next((p for p in _projects(server, title) if p.get("title") == title), None)
    if found is None:
        found = server.call("POST", "/api/projects/", {"title": title, "label_config": interface})
    elif found.get("label_config", "").strip() != interface.strip():
        server.call("PATCH", f"/api/projects/{int(found['id'])}/", {"label_config": interface})
    return int(found["id"])


def _tasks(server: Server, number: int) -> Iterator[dict[str, Any]]:
    yield from _pages(server, "/api/tasks/", "tasks", {"project": str(number), "fields": "all"})


def _pages(server: Server, path: str, key: str, query: dict[str, str]) -> Iterator[dict[str, Any]]:
    page, seen = 1, 0
    while True:
        content = server.call("GET", f"{path}?{urlencode(query | {'page': str(page), 'page_size': str(_PAGE)})}")
        items = content.get(key, []) if isinstance(content, dict) else content
        yield from items
        seen += len(items)
        stated = content.get("total") or content.get("count") if isinstance(content, dict) else None
        total = int(stated or seen)
        if not items or seen >= total:
            return
        page += 1


def _people(server: Server) -> dict[int, dict[str, Any]]:
    """Users by number; none where the token may not list them."""
    try:
        return {int(user["id"]): user for user in server.call("GET", "/api/users/")}
    except StoreError:
        return {}


def _shown(task: tasks.Task, config: LabelStudioConfig, pictures: Pictures, known: dict[str, Any] | None) -> str:
    if config.pictures:
        return f"{config.pictures}/{quote(task.name)}"
    if known is not None:
        return str(known["data"]["image"])
    return "data:image/jpeg;base64," + base64.b64encode(pictures.encoded(task)).decode("ascii")


def _replace(server: Server, number: int, known: dict[str, Any], body: dict[str, Any]) -> None:
    for prediction in known.get("predictions") or []:
        if prediction.get("model_version") == MODEL:
            server.call("DELETE", f"/api/predictions/{int(prediction['id'])}/")
    for prediction in body["predictions"]:
        server.call("POST", "/api/predictions/", prediction | {"task": known["id"], "project": number})
    # Last: the digest says that all of this has been done.
    server.call("PATCH", f"/api/tasks/{int(known['id'])}/", {"data": body["data"]})


def _chunks(bodies: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    size = 0
    for body in bodies:
        length = len(json.dumps(body))
        if chunk and size + length > _UPLOAD_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(body)
        size += length
    if chunk:
        yield chunk


# -- HTTP --------------------------------------------------------------------------------------------


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirect would take the token along to wherever it leads."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Server:
    """One Label Studio server and who we are there.

    Args:
        clock: seconds, for the age of access tokens.
    """

    def __init__(self, url: str, token: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._clock = clock
        self._access: tuple[str, float] | None = None
        handlers: list[Any] = [_Stay()]
        if _is_loopback(self._url):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON that the server answers with; None where it answers with nothing.

        Raises:
            ConfigError: it refuses the token. StoreError: it cannot be reached, or answers with an error.
        """
        return self._send(method, path, body, {"Authorization": self._authorization()})

    def _authorization(self) -> str:
        if self._token.count(".") != 2:
            return f"Token {self._token}"
        now = self._clock()
        if self._access is None or now - self._access[1] > _ACCESS_SECONDS:
            content = self._send("POST", "/api/token/refresh", {"refresh": self._token}, {})
            self._access = (str(content["access"]), now)
        return f"Bearer {self._access[0]}"

    def _send(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._url + path, data, {"Content-Type": "application/json", "Accept": "application/json", **headers}
        )
        request.method = method
        try:
            with self._opener.open(request, timeout=_TIMEOUT) as answer:
                text = answer.read(_MOST_BYTES)
            return json.loads(text) if text.strip() else None
        except urllib.error.HTTPError as error:
            words = error.read(2000).decode("utf-8", "replace")
            if error.code in (401, 403):
                raise ConfigError(
                    f"{self._url} refuses the token: {_first(words)}", f"make a new one there, and set {TOKEN}"
                ) from error
            raise StoreError(
                f"{self._url}{path.split('?')[0]} answers {error.code}: {_first(words)}", "look at that server's log"
            ) from error
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot talk to {self._url}: {error}", "check that it runs and answers there") from error


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _first(words: str) -> str:
    """What an error answer says, without its pages of detail."""
    try:
        content = json.loads(words)
        words = str(content.get("detail") or content) if isinstance(content, dict) else words
    except ValueError:
        pass
    return " ".join(words.split())[:300]
