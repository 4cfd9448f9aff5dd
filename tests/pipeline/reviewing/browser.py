"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-port=0", "--remote-allow-origins=*",
)  # fmt: skip
_KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Escape": 27}


class Browser:
    """One page. `problems` are what the page logged as errors, and requests that left this machine."""

    def __init__(self, width: int = 1360, height: int = 860) -> None:
        program = next((p for p in ("chromium", "chromium-browser", "google-chrome") if shutil.which(p)), None)
        if program is None:
            pytest.skip("no Chromium on this machine")
        self._folder = tempfile.mkdtemp()
        command = [program, *_FLAGS, f"--user-data-dir={self._folder}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._number = 0
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._socket = self._connect()
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def _connect(self) -> ClientConnection:
        file = Path(self._folder) / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not file.is_file() or len(file.read_text().split()) < 2:
            if time.monotonic() > deadline:
                raise TimeoutError("Chromium did not start")
            time.sleep(0.05)
        port = file.read_text().split()[0]
        plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        pages = json.loads(plain.open(f"http://127.0.0.1:{port}/json/list").read())
        page = next(p for p in pages if p["type"] == "page")
        return connect(page["webSocketDebuggerUrl"], max_size=None, proxy=None)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        kind, said = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.problems.append(str(said["exceptionDetails"].get("exception", {}).get("description")))
        elif kind == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.problems.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
        elif kind == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])

    def resize(self, width: int, height: int, dense: int = 1) -> None:
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=dense, mobile=phone
        )

    def dark(self, on: bool = True) -> None:
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if on else "light"}])  # fmt: skip

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression; promises are awaited."""
        made = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in made, made["exceptionDetails"]
        return made["result"].get("value")

    def text(self, name: str) -> str:
        return str(self.run(f"document.getElementById({name!r}).innerText"))

    def await_(self, condition: str, seconds: float = 20) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(f"(() => {{ try {{ return Boolean({condition}) }} catch {{ return false }} }})()"):
            assert time.monotonic() < deadline, f"never: {condition}; {self.problems}"
            time.sleep(0.03)

    def key(self, key: str, modifiers: int = 0) -> None:
        code = _KEYS.get(key, ord(key[0].upper()))
        shared = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="rawKeyDown", **shared)
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        def mouse(kind: str, at: tuple[float, float]) -> None:
            more = {"button": "left", "buttons": 1, "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], **more)

        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        mouse("mousePressed", start)
        for at in (middle, end):
            mouse("mouseMoved", at)
        mouse("mouseReleased", end)

    def click(self, name: str) -> None:
        self.run(f"document.getElementById({name!r}).click()")

    def shot(self, path: Path) -> None:
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
