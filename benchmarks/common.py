"""What every benchmark shares: two sides timed in turn, peak memory, and one line that the table is made of."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config import home

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Turn:
    """Medians over rounds of one side and the other, in core-seconds (CPU time of all threads)."""

    ours: float
    peer: float

    @property
    def ratio(self) -> float:
        return self.peer / self.ours


def in_turn(ours: Callable[[], A], peer: Callable[[], B], rounds: int = 3) -> tuple[Turn, A, B]:
    """Run both sides alternately, so that both see the same machine; returns times and the last results."""
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        start = time.process_time()
        mine = ours()
        middle = time.process_time()
        theirs = peer()
        spent[0].append(middle - start)
        spent[1].append(time.process_time() - middle)
    return Turn(*(statistics.median(s) for s in spent)), mine, theirs


def peak_memory(work: Callable[[], Any]) -> float:
    """MiB by which the resident memory of a forked process grew at its highest while doing `work`."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(work, send))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError as error:
        raise SystemExit("the measured process died: out of memory?") from error
    finally:
        process.join()


def own_environment(*packages: str) -> Path:
    """The Python of an environment, made once, with a peer whose pins would change the project's."""
    folder = home() / "peers" / packages[0].split("==")[0]
    python = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        uv = str(Path(sys.executable).with_name("uv"))
        environment = {**os.environ, "UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", "")}
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", str(python), *packages]
        subprocess.run(install, check=True, env=environment)
        (folder / ".ready").touch()
    return python


def _measure(work: Callable[[], Any], send: Any) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    work()
    send.send((status("VmHWM") - before) / 1024)


def status(key: str, pid: int | str = "self") -> int:
    """Of a process, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def report(
    row: str,
    ours: float,
    peer: float | None,
    *,
    peer_name: str,
    aim: float | str,
    agreement: str,
    unit: str = "core-s",
    more_is_better: bool = False,
    met: bool | None = None,
    note: str = "",
    memory: dict[str, float] | None = None,
) -> None:
    """Print both figures and their ratio for people, then one JSON line for `benchmarks/table.py`.

    Args:
        row: what was done, with its size. ours, peer: figures in `unit`; None: the peer cannot do it.
        aim: the least ratio, or words; with words, `met` says whether it is reached.
        agreement: how far the two results are equal, in words and figures.
        note: why an aim was missed, or what the figures leave out.
        memory: peak MiB by size, e.g. {"1x": 80, "10x": 610}.
    """
    ratio = None if peer is None else (ours / peer if more_is_better else peer / ours)
    if not isinstance(aim, str):
        met, aim = ratio is not None and ratio >= aim, f"{aim:g}x"
    line = {
        "row": row,
        "ours": _rounded(ours),
        "peer": _rounded(peer),
        "peer_name": peer_name,
        "unit": unit,
        "ratio": _rounded(ratio),
        "aim": aim,
        "met": None if met is None else bool(met),
        "agreement": agreement,
        "note": note,
        "memory_mib": {k: round(v) for k, v in (memory or {}).items()},
    }
    compared = f"; {peer_name} {peer:.4g} {unit}; ratio {ratio:.2f}" if peer is not None and ratio else ""
    print(f"{row}: ours {ours:.4g} {unit}{compared}; aim {aim}: {'met' if met else 'missed'}; {agreement}")
    print(json.dumps(line), flush=True)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
