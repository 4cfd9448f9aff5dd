"""A server on loopback that speaks the chat-completions protocol, with faults, and counts what it charges.

For tests and benchmarks only: its answers are scripted, it knows nothing of pictures.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SENT, WRITTEN = 500, 40  # tokens that every answer is charged with

Answer = Callable[[str, dict[str, Any]], dict[str, Any]]  # (idempotency key, body) -> the answer's JSON
Faults = Callable[[str, int], str]  # (idempotency key, how often it came before) -> name of a fault, or ''


@dataclass
class ChatServer:
    """What the server does and what it saw.

    Attributes:
        charged: idempotency key -> how often an answer was charged. With `remembers`, an answer that was charged
            is given again for nothing, as some gateways do.
    """

    answer: Answer = lambda key, body: {"seen": "a thing", "answer": "yes"}
    faults: Faults = lambda key, before: ""
    remembers: bool = False
    usage: Mapping[str, int] | None = field(
        default_factory=lambda: {"prompt_tokens": SENT, "completion_tokens": WRITTEN, "total_tokens": SENT + WRITTEN}
    )
    pause: float = 0.0
    charged: Counter[str] = field(default_factory=Counter)
    came: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    busiest: int = 0
    url: str = ""
    keep_bodies: bool = True

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.busy = 0

    @property
    def tokens(self) -> int:
        return sum(self.charged.values()) * (SENT + WRITTEN)

    @contextmanager
    def running(self) -> Iterator[ChatServer]:
        httpd = _Quiet(("127.0.0.1", 0), _handler(self))
        httpd.daemon_threads = True
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
        try:
            yield self
        finally:
            self.closing.set()
            httpd.shutdown()
            httpd.server_close()

    def begin(self, key: str, headers: dict[str, str], body: dict[str, Any], path: str) -> int:
        with self.lock:
            before = self.came[key]
            self.came[key] += 1
            self.headers.append(headers)
            self.paths.append(path)
            if self.keep_bodies:
                self.bodies.append(body)
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
            return before

    def charge(self, key: str) -> None:
        with self.lock:
            if not (self.remembers and self.charged[key]):
                self.charged[key] += 1


class _Quiet(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """Clients that were killed leave broken connections, which is what is tested."""


def completion(content: str | None, usage: Mapping[str, int] | None, **message: Any) -> dict[str, Any]:
    """A chat completion as the protocol has it."""
    finish = message.pop("finish_reason", "stop")
    found: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "scripted",
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
        ],
    }
    return found if usage is None else found | {"usage": usage}


def _handler(server: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            key = self.headers.get("Idempotency-Key", "")
            before = server.begin(key, {k.lower(): v for k, v in self.headers.items()}, body, self.path)
            try:
                self._answer(key, body, server.faults(key, before))
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                with server.lock:
                    server.busy -= 1

        do_GET = do_POST

        def _answer(self, key: str, body: dict[str, Any], fault: str) -> None:
            server.closing.wait(server.pause)
            kind, _, detail = fault.partition(":")
            if kind.isdigit():
                more = {"Location": "/v1/elsewhere"} if kind.startswith("3") else {}
                if detail:
                    more["Retry-After"] = detail
                echo = f"no, {self.headers.get('Authorization')}"
                self._send(int(kind), {"error": {"message": echo, "code": None}}, more)
            elif kind == "hang":
                server.closing.wait(30)
            elif kind == "drop":
                self.connection.close()
            elif kind == "not_json":
                server.charge(key)
                self._raw(200, b"<html>gateway</html>")
            elif kind == "cut":
                server.charge(key)
                whole = json.dumps(completion("{}", server.usage)).encode()
                self._raw(200, whole[:40], length=len(whole))
                self.close_connection = True
            else:
                server.charge(key)
                self._send(200, self._completion(key, body, kind))

        def _completion(self, key: str, body: dict[str, Any], kind: str) -> dict[str, Any]:
            text = json.dumps(server.answer(key, body))
            if kind == "truncated":
                return completion(text[: len(text) // 2], server.usage, finish_reason="length")
            if kind == "refusal":
                return completion(None, server.usage, refusal="I cannot help with that.")
            if kind == "wrong":
                return completion('{"verdict": "probably"}', server.usage)
            if kind == "fenced":
                return completion(f"```json\n{text}\n```", server.usage)
            return completion(text, server.usage)

        def _send(self, status: int, content: Any, more: Mapping[str, str] | None = None) -> None:
            self._raw(status, json.dumps(content).encode(), more=more or {})

        def _raw(
            self, status: int, data: bytes, length: int | None = None, more: Mapping[str, str] | None = None
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data) if length is None else length))
            for name, value in (more or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
