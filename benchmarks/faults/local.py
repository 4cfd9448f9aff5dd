"""Faults of processes and of a disk: each function does one disturbed run of the work, and then what a user does."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from work import END_SECONDS, PHOTOS, SHARD, Process, Try

from tests.pipeline.exchange.peers import peer

_CLOCK = "libfaketime==3.0.1"


def _disturbed(work: Try, chance: random.Random) -> Process:
    """The work, at a random moment."""
    driver = work.start()
    work.wait(driver, chance.randrange(PHOTOS - SHARD))
    return driver


def _recovered(work: Try, driver: Process) -> None:
    if driver.wait(END_SECONDS):
        work.again()


def kill_worker(work: Try, chance: random.Random) -> None:
    """SIGKILL of one of the two workers: the run itself must go on."""
    driver = _disturbed(work, chance)
    alive = [pid for pid in work.workers() if Path(f"/proc/{pid}").exists()]
    if alive:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(alive), signal.SIGKILL)
    if driver.wait(END_SECONDS):
        raise SystemExit(f"a killed worker ended the run: {work.log()}")


def kill_driver(work: Try, chance: random.Random) -> None:
    """SIGKILL of the process that gives out the shards; its workers are left to notice."""
    driver = _disturbed(work, chance)
    driver.kill()
    _recovered(work, driver)


def kill_run(work: Try, chance: random.Random) -> None:
    """SIGKILL of the driver with its workers, as when a machine goes down."""
    driver = _disturbed(work, chance)
    with suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)
    _recovered(work, driver)


def cut_shard(work: Try, chance: random.Random) -> None:
    """The run is killed, and a finished shard loses its end."""
    driver = _disturbed(work, chance)
    with suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    shards = sorted((work.folder / "store" / "_staging").rglob("*.parquet"))
    if shards:
        shard = chance.choice(shards)
        os.truncate(shard, chance.randrange(shard.stat().st_size))
    work.again()


def crash_natively(work: Try, chance: random.Random) -> None:
    """One photo is fatal (SIGSEGV): the run must end without it, and name it."""
    if work.start().wait(END_SECONDS):
        raise SystemExit(f"a fatal photo ended the run: {work.log()}")
    named = json.loads((work.folder / "failed.json").read_text())
    assert named == [work.told["poison"]], named


def fill_disk(work: Try, chance: random.Random) -> None:
    """No space left, somewhere between the first file and the last; later there is some."""
    with _small_disk(work.folder / "store", chance) as enlarge:
        driver = work.start()
        code = driver.wait(END_SECONDS)
        assert code and "cannot write" in work.log(), f"no word of a full disk ({code}): {work.log()}"
        enlarge()
        work.again()
        _keep(work)


def jump_clock(work: Try, chance: random.Random) -> None:
    """The clock jumps by more than a year, ahead or back, while the work goes on, and the run is killed then."""
    clock = work.folder / "clock"
    clock.write_text("+0")
    library = next(peer(_CLOCK).parents[1].rglob("libfaketime.so.1"))
    environment = {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    environment |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    driver = work.start(**environment)
    work.wait(driver, chance.randrange(PHOTOS // 2))
    clock.with_suffix(".new").write_text(f"{chance.choice('+-')}{chance.randrange(400, 800)}d")
    clock.with_suffix(".new").replace(clock)
    work.wait(driver, chance.randrange(PHOTOS // 2, PHOTOS + SHARD))
    with suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)
    _recovered(work, driver)


@contextmanager
def _small_disk(place: Path, chance: random.Random) -> Iterator[Callable[[], object]]:
    """A tmpfs with room for some of the work at `place`; gives a function that makes it large enough."""
    place.mkdir()
    size = chance.randrange(8, 56)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)], check=True)
    enlarge = ["mount", "-o", "remount,size=64m", str(place)]
    try:
        yield lambda: subprocess.run(enlarge, check=True)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _keep(work: Try) -> None:
    """Copy the store out of the disk that is about to go, to be looked at."""
    kept = work.folder / "kept"
    subprocess.run(["cp", "-a", str(work.folder / "store"), str(kept)], check=True)
    (work.folder / "work.json").write_text(json.dumps(work.told | {"store": str(kept)}))


def may_mount() -> bool:
    """Whether this user may make small disks."""
    return os.geteuid() == 0 and resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
