"""A real Postgres server on loopback, as a process of its own."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_UP = 60.0  # seconds to start


def binary(name: str) -> Path:
    """A program of Postgres, as Debian installs it; skips the test where there is none."""
    known = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (known[-1] if known else None)
    if found is None:
        pytest.skip(f"no Postgres server here ({name}): apt-get install postgresql")
    return Path(found)


@contextmanager
def serving() -> Iterator[dict[str, str]]:
    """A running server with a password; yields the variables of docs/production/dagster-postgres.yaml."""
    user = None
    if os.geteuid() == 0:  # which Postgres refuses to run as
        user = "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"
    password, port = secrets.token_hex(16), _free_port()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        if user:
            shutil.chown(folder, user)
        (folder / "password").write_text(password)
        (folder / "password").chmod(0o644)
        how = ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--username=dagster", "--encoding=UTF8"]
        run = {"user": user, "cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}}
        made = subprocess.run([binary("initdb"), "-D", folder / "data", *how], **run, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        command = [binary("postgres"), "-D", folder / "data", "-p", str(port), "-k", folder, "-h", "127.0.0.1"]
        with (folder.parent / f"{folder.name}.log").open("wb") as log:
            server = subprocess.Popen([*command, "-c", "fsync=off"], stdout=log, stderr=log, **run)
        try:
            _until_open(port, server)
            yield {
                "DAGSTER_PG_HOST": "127.0.0.1",
                "DAGSTER_PG_PORT": str(port),
                "DAGSTER_PG_DB": "postgres",
                "DAGSTER_PG_USER": "dagster",
                "DAGSTER_PG_PASSWORD": password,
            }
        finally:
            server.terminate()
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{folder.name}.log").unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def _until_open(port: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _UP
    while time.monotonic() < end and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("Postgres did not come up")
