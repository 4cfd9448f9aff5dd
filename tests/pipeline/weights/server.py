"""A file server on loopback that fails in the ways that servers fail."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """What a server holds, how it misbehaves, and what it was asked.

    Attributes:
        faults: how each of the next requests goes wrong: an int is a status; "cut:N" ends after N bytes.
    """

    files: dict[str, bytes]
    faults: list[int | str] = field(default_factory=list)
    ranges: bool = True
    tags: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    redirect: str = ""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    @property
    def spans(self) -> list[str]:
        """The Range header of each request, or nothing."""
        return [headers.get("Range", "") for _, headers in self.asked]


@contextmanager
def serving(files: dict[str, bytes], **how: object) -> Iterator[Served]:
    """`files` (path -> content) on 127.0.0.1, until the block ends."""
    served = Served(files, **how)  # type: ignore[arg-type]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append((self.path, dict(self.headers)))
            fault = served.faults.pop(0) if served.faults else ""
            if isinstance(fault, int):
                return self._say(fault, served.headers)
            if served.redirect:
                return self._say(302, {"Location": served.redirect + self.path})
            data = served.files.get(self.path.partition("?")[0])
            if data is None:
                return self._say(404, {})
            return self._send(data, int(fault.partition(":")[2]) if fault else None)

        def _send(self, data: bytes, cut: int | None) -> None:
            tag = f'"{hash(data)}"'
            span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if served.ranges else None
            if span and self.headers.get("If-Range", tag) != tag:
                span = None
            start = int(span[1]) if span else 0
            if span and start >= len(data):
                return self._say(416, {"Content-Range": f"bytes */{len(data)}"})
            self.send_response(206 if span else 200)
            if span:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            if served.tags:
                self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start : len(data) if cut is None else start + cut])
            return None

        def _say(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
