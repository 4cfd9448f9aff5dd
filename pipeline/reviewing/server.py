"""The page's web server: loopback only, for its own page only, and no decision is acknowledged unwritten."""

from __future__ import annotations

import hmac
import html
import json
import secrets
import signal
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pipeline.config import Project, home
from pipeline.errors import ConfigError, DataError, PipelineError
from pipeline.images import Reader, UnusableImage
from pipeline.journal import checked_reviewer
from pipeline.reviewing.items import Desk, described
from pipeline.reviewing.pictures import VIEWS, Pictures, window
from pipeline.store import Store

_HOST = "127.0.0.1"
_PORT = 8765  # a page that is still open finds the server again
_NAMES = ("127.0.0.1", "localhost")
_STATIC = Path(__file__).parent / "static"
_TYPES = {"app.js": "text/javascript; charset=utf-8", "app.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml"}
_MOST_BODY = 64 * 1024
_MOST_ITEMS = 100
_IDLE_SECONDS = 120
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_FOREVER = "private, max-age=604800, immutable"


class Refused(Exception):
    """A request that is answered with an error status."""

    def __init__(self, status: HTTPStatus, words: str) -> None:
        super().__init__(words)
        self.status = status


class ReviewServer(ThreadingHTTPServer):
    """Serves one desk on 127.0.0.1.

    Args:
        port: 0 for any that is free.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, desk: Desk, pictures: Pictures, port: int = 0) -> None:
        self.desk = desk
        self.pictures = pictures
        self.token = secrets.token_urlsafe(24)
        super().__init__((_HOST, port), _Handler)
        self.hosts = {f"{name}:{self.server_port}" for name in _NAMES}

    @property
    def url(self) -> str:
        return f"http://{_HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes a connection is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    server_version = "cvp-review"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, *_: Any) -> None:
        """The page shows what matters."""

    # -- who may ask -----------------------------------------------------------------------------

    def _admit(self) -> None:
        """Refuse what does not come from our own page: other hosts' names for this address (DNS rebinding),
        and pages of other origins."""
        host = self.headers.get("Host", "")
        if host not in self.server.hosts:
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to 127.0.0.1 only")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            raise Refused(HTTPStatus.FORBIDDEN, "requests of other sites are refused")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            raise Refused(HTTPStatus.FORBIDDEN, "requests of other origins are refused")

    def _check_token(self) -> None:
        given = self.headers.get("X-CVP-Token", "")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self.server.token.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "the page is out of date: load it again")

    # -- what is answered ------------------------------------------------------------------------

    def _answer(self, work: Callable[[str, dict[str, str]], None]) -> None:
        try:
            self._admit()
            parts = urlsplit(self.path)
            work(parts.path, {key: values[0] for key, values in parse_qs(parts.query).items()})
        except Refused as error:
            self._fail(error.status, str(error))
        except UnusableImage as error:
            self._fail(HTTPStatus.GONE, f"{error.reason.replace('_', ' ')}: {error.remedy}")
        except DataError as error:
            self._fail(HTTPStatus.UNPROCESSABLE_ENTITY, f"{error.what}: {error.remedy}")
        except PipelineError as error:
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error.what}: {error.remedy}")
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _get(self, path: str, query: dict[str, str]) -> None:
        parts = path.strip("/").split("/")
        match parts:
            case [""]:
                self.server.desk.refresh()
                self._send(self._page(), "text/html; charset=utf-8")
            case [name] if name in _TYPES:
                self._send((_STATIC / name).read_bytes(), _TYPES[name])
            case ["api", "session"]:
                self._check_token()
                self._json(self._session())
            case ["api", "items"]:
                self._check_token()
                self._json(self._items(query))
            case ["api", "others", key]:
                self._check_token()
                self._json(self.server.desk.others(self.server.desk.item(key)).to_pylist())
            case ["picture", key, view] if view in VIEWS:
                self._send(self.server.pictures.photo(self.server.desk.item(key), view), "image/jpeg", _FOREVER)
            case ["mask", key, view] if view in VIEWS:
                item = self.server.desk.item(key)
                if item.label["mask"] is None:
                    raise Refused(HTTPStatus.NOT_FOUND, "this label has no mask")
                self._send(self.server.pictures.mask(item, view), "image/png", _FOREVER)
            case _:
                raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _post(self, path: str, query: dict[str, str]) -> None:
        self._check_token()
        body = self._body()
        desk = self.server.desk
        if path == "/api/decisions":
            key, verdict = body.get("key"), body.get("verdict")
            if not isinstance(key, str) or not isinstance(verdict, str):
                raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "key and verdict are missing")
            name, box = body.get("class"), body.get("box")
            if not (name is None or isinstance(name, str)) or not (box is None or _is_box(box)):
                raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "class must be a name, and box four numbers")
            row = desk.decide(key, verdict, name, box)
            self._json({"decision_id": row["decision_id"], "verdict": row["verdict"], "progress": desk.progress()})
        elif path == "/api/undo":
            undone = desk.undo()
            self._json({"key": undone[0] if undone else None, "progress": desk.progress()})
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _body(self) -> dict[str, Any]:
        kind = self.headers.get("Content-Type", "").split(";")[0].strip().lower()
        length = self.headers.get("Content-Length", "")
        if kind != "application/json" or not length.isdecimal() or int(length) > _MOST_BODY:
            self.close_connection = True  # what it sends is not read
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send a small JSON object")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise Refused(HTTPStatus.BAD_REQUEST, f"not JSON: {error}") from error
        if not isinstance(body, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "not a JSON object")
        return body

    def _page(self) -> bytes:
        text = (_STATIC / "page.html").read_text(encoding="utf-8")
        for key, value in (("token", self.server.token), ("project", self.server.desk.project.name)):
            text = text.replace("{{ " + key + " }}", html.escape(value, quote=True))
        return text.encode()

    def _session(self) -> dict[str, Any]:
        desk = self.server.desk
        return {
            "project": desk.project.name,
            "reviewer": desk.reviewer,
            "task": desk.project.config.task,
            "classes": desk.project.ontology.names,
            "progress": desk.progress(),
        }

    def _items(self, query: dict[str, str]) -> dict[str, Any]:
        start, count = (query.get(key, "") for key in ("from", "count"))
        if not start.isdecimal() or not count.isdecimal():
            raise Refused(HTTPStatus.BAD_REQUEST, "from and count must be numbers")
        found = self.server.desk.items(int(start), min(int(count), _MOST_ITEMS))
        return {"items": [described(n, item, said, window(item, "near")) for n, item, said in found]}

    # -- how -------------------------------------------------------------------------------------

    def _json(self, content: Any) -> None:
        self._send(json.dumps(content, ensure_ascii=False).encode(), "application/json; charset=utf-8")

    def _fail(self, status: HTTPStatus, words: str) -> None:
        if self.command == "POST":
            self.close_connection = True  # its body may not have been read
        try:
            self._send(json.dumps({"error": words}).encode(), "application/json; charset=utf-8", status=status)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _send(self, data: bytes, kind: str, cache: str = "no-store", status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        headers = _HEADERS | {"Content-Type": kind, "Content-Length": str(len(data)), "Cache-Control": cache}
        if self.close_connection:
            headers["Connection"] = "close"
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _is_box(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 4
    return numbers and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)


def open_server(project: Project, reviewer: str, port: int | None = None) -> ReviewServer:
    """A server that is bound and not yet running.

    Args:
        port: None for 8765 or, where that is taken, any that is free; 0 for any that is free.

    Raises:
        DataError: the reviewer's name cannot be used. StoreError: there is no queue yet.
        ConfigError: the port is taken.
    """
    desk = Desk(project, Store(project.store_uri), checked_reviewer(reviewer), project.config.review.overlap)
    pictures = Pictures(Reader(project.config.source.max_pixels, keep=4), home() / "cache" / "review" / project.name)
    try:
        return ReviewServer(desk, pictures, _PORT if port is None else port)
    except (OSError, OverflowError) as error:
        if port is None:
            return ReviewServer(desk, pictures, 0)
        raise ConfigError(
            f"cannot listen on {_HOST}:{port}: {error}", "choose another --port, or leave it out"
        ) from error


def serve(project: Project, reviewer: str, port: int | None, ready: Callable[[ReviewServer], None]) -> dict[str, Any]:
    """Serve until interrupted; returns how far the person got.

    Args:
        ready: called once the address answers.
    """
    server = open_server(project, reviewer, port)
    stopping = threading.Event()

    def stop(*_: Any) -> None:
        if not stopping.is_set():
            stopping.set()
            threading.Thread(target=server.shutdown, daemon=True).start()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        ready(server)
        server.serve_forever(poll_interval=0.2)
    finally:
        server.socket.close()
        server.desk.close()
    return server.desk.progress()
