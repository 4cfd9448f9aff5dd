"""Faults of what the work needs from outside: S3, Ray's nodes, an endpoint that is paid, and Dagster's process."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import yaml
from ray_nodes import Nodes
from work import END_SECONDS, PHOTOS, SHARD, Try

from pipeline import schema
from pipeline.store import Store
from tests.assets.conftest import add_batch, settings
from tests.pipeline import verifier_world
from tests.pipeline.chat_server import ChatServer
from tests.weed import Weed

QUESTIONS, ATTEMPTS = 40, 2
HANGS = 0.3  # share of requests that get no answer the first time

# -- S3 -------------------------------------------------------------------------------------------


def kill_server(work: Try, chance: random.Random, server: Weed) -> None:
    """SIGKILL of the S3 server at a random moment, once in a write; it is started again. The run must go on."""
    driver = work.start(**server.environment)
    work.wait(driver, chance.randrange(PHOTOS + SHARD))
    time.sleep(chance.uniform(0, 0.05))
    server.kill()
    time.sleep(chance.uniform(0, 1))
    server.start()
    if driver.wait(END_SECONDS):
        raise SystemExit(f"the server's death ended the run: {work.log()}")


# -- Ray ------------------------------------------------------------------------------------------


def lose_node(work: Try, chance: random.Random, cluster: Nodes) -> None:
    """SIGKILL of all processes of one of two nodes, at a random moment: the run must go on on the other."""
    driver = work.start(**cluster.environment)
    work.wait(driver, chance.randrange(PHOTOS - SHARD))
    cluster.kill(chance.choice(cluster.workers))
    if driver.wait(END_SECONDS):
        raise SystemExit(f"a lost node ended the run: {work.log()}")
    cluster.add()  # for the next try


# -- an endpoint ----------------------------------------------------------------------------------


def ask(folder: Path) -> None:
    """In the process that is hurt: put all questions, until the first error."""
    os.environ[verifier_world.VARIABLE] = verifier_world.KEY
    told = json.loads((folder / "asked.json").read_text())
    project = verifier_world.config(told["url"], attempts=ATTEMPTS)
    images = verifier_world.photos(folder / "photos")
    asked = verifier_world.verifier(project, folder).ask(verifier_world.questions(images, QUESTIONS), images)
    answers = [[reply.state for reply in replies] for replies in asked.replies]
    (folder / "answers.json").write_text(json.dumps(answers))


def hang(folder: Path, chance: random.Random) -> tuple[int, int, int]:
    """Requests that hang, and the asking process killed among them: answers lost, doubled, and paid for twice."""
    folder.mkdir()
    hung: dict[str, str] = {}
    draw = random.Random(chance.random())

    def faults(key: str, before: int) -> str:
        return hung.setdefault(key, "hang" if draw.random() < HANGS else "") if not before else ""

    with ChatServer(faults=faults, remembers=True, keep_bodies=False).running() as server:
        (folder / "asked.json").write_text(json.dumps({"url": server.url}))
        process = _start("ask", folder)
        wanted, end = chance.randrange(QUESTIONS * ATTEMPTS), time.monotonic() + END_SECONDS
        while process.poll() is None and server.charged.total() < wanted and time.monotonic() < end:
            time.sleep(0.005)
        process.kill()
        process.wait()
        while not (folder / "answers.json").exists():  # what a user does: run again, until nothing is missing
            if time.monotonic() > end:
                raise SystemExit("questions stayed without an answer: " + (folder / "log").read_text()[-2000:])
            _start("ask", folder).wait(END_SECONDS)
        answers = json.loads((folder / "answers.json").read_text())
    got = Counter(state for states in answers for state in states)
    twice = sum(times - 1 for times in server.charged.values())
    lost = QUESTIONS * ATTEMPTS - got["answered"]
    return lost, max(0, sum(got.values()) - QUESTIONS * ATTEMPTS), twice


# -- Dagster --------------------------------------------------------------------------------------

ASSETS = "collection,curation,detections,tags,masks"


class Graph:
    """A project of drawn pictures in two batches, run through Dagster's instance in a process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        project = root / "projects" / "squares"
        project.mkdir(parents=True)
        (project / "project.yaml").write_text(yaml.safe_dump(settings()))
        add_batch(root / "photos", "a", 8, seed=0)
        add_batch(root / "photos", "c", 6, seed=200)

    def run(self, home: Path, after: float | None = None) -> tuple[bool, float]:
        """Run; SIGKILL it `after` seconds of work. Whether it ended by itself, and the seconds it worked."""
        home.mkdir(parents=True, exist_ok=True)
        (home / "begun").unlink(missing_ok=True)
        places = {"CVP_HOME": str(home), "CVP_PROJECTS": str(self.root / "projects"), "CVP_STORE": ""}
        process = _start("run", home, DAGSTER_HOME="", **places)
        while process.poll() is None and not (home / "begun").exists():
            time.sleep(0.01)
        start = time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS if after is None else after)
        took = time.monotonic() - start
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        if process.wait() not in (0, -signal.SIGKILL):
            raise SystemExit("the run failed: " + (home / "log").read_text()[-3000:])
        return process.returncode == 0, took

    def tables(self, home: Path) -> list[pa.Table]:
        store = Store(str(home / "store" / "squares"))
        names = [name for name in schema.TABLES if name != "costs" and store.exists(name)]
        return [store.read(name) for name in names]

    def repeated(self, home: Path) -> int:
        """Tables of a batch that were made more than once."""
        rows = Store(str(home / "store" / "squares")).read_ledger().to_pylist()
        made = Counter((row["asset"], row["batch"]) for row in rows)
        return sum(times - 1 for times in made.values())


def run(home: Path) -> None:
    """In the process that is hurt."""
    from assets import launch

    (home / "begun").touch()
    outcome = launch.run("squares", select=ASSETS)
    if not outcome.success:
        raise SystemExit(outcome.failure)


def _start(what: str, folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    given = {name: value for name, value in (os.environ | environment).items() if value}
    with (folder / "log").open("ab") as log:
        command = [sys.executable, __file__, what, str(folder)]
        return subprocess.Popen(command, env=given, stdout=log, stderr=log, start_new_session=True)


@contextmanager
def serving(folder: Path) -> Iterator[Weed]:
    """An S3 server of our own, whose settings this process has."""
    from tests.weed import serving as started

    with started(folder) as server:
        os.environ.update(server.environment)
        yield server


if __name__ == "__main__":
    {"ask": ask, "run": run}[sys.argv[1]](Path(sys.argv[2]))
