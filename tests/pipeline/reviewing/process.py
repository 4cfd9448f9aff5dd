"""`cvp review` in a process of its own."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from pipeline.config import Project
from pipeline.reviewing import serve

_FORKS = get_context("forkserver")  # a process whose imports are done, for tests that kill many
_FORKS.set_forkserver_preload(["pipeline.reviewing", __name__])
_CVP = (sys.executable, "-c", "from pipeline.cli import main; main()")


def started(project: Project, port: int = 0) -> tuple[subprocess.Popen[str], int, str]:
    """The process, its port and the token of its page, once it answers."""
    command = [*_CVP, "review", str(project.folder), "--reviewer", "ann", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ)
    assert process.stdout is not None
    found = re.search(r":(\d+)/", process.stdout.readline())
    assert found
    connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=10)
    connection.request("GET", "/")
    token = re.search(r'cvp-token" content="([^"]+)"', connection.getresponse().read().decode())
    connection.close()
    assert token
    return process, int(found[1]), token[1]


def forked(project: Project) -> tuple[BaseProcess, int, str]:
    """As `started`, without the command line and the time that imports take."""
    ours, theirs = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=_serve, args=(project, dict(os.environ), theirs))
    process.start()
    theirs.close()
    return process, *ours.recv()


def _serve(project: Project, environment: dict[str, str], said: Connection) -> None:
    os.environ.update(environment)
    serve(project, "ann", 0, lambda server: said.send((server.server_port, server.token)))
