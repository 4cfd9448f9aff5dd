"""Run the benchmarks; write docs/benchmarks.md, and a short table in the README, from the JSON lines that they print.

Run: python benchmarks/table.py [NAME ...]

With names (e.g. `evaluation`), only those scripts run, and the other rows stay as they were. Every row
names the machine that it was measured on. A script that fails keeps its old rows and makes this one fail.
The page is written after each script.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results.jsonl"
PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- made by make bench -->", "<!-- end of what make bench made -->"
REPORTS = re.compile(r"^\s*from common import .*\breport\b", re.MULTILINE)  # the others print tables of their own
HEAD = """# Benchmarks

Made by `make bench`: each script under `benchmarks/` runs us and a peer in turn on the same input in one
process and checks that the two agree. Times are core-seconds (CPU time), medians over rounds; a ratio above 1
means that we are faster, or better. Memory is the growth of resident memory at its peak, ours only.
"""


def machine() -> str:
    """Processor, cores and memory of this machine, and the versions that matter."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, Python {platform.python_version()}, " + (
        ", ".join(f"{name} {_version(name)}" for name in ("numpy", "pyarrow"))
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


def run(script: Path) -> list[dict[str, Any]] | None:
    """The rows that a script printed; None if it failed. Its output is passed on."""
    print(f"== {script.name}", flush=True)
    rows = []
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith('{"row"'):
                rows.append(json.loads(line))
    return None if process.returncode else rows


def page(rows: list[dict[str, Any]]) -> str:
    """The Markdown page."""
    machines = sorted({r["machine"] for r in rows})
    lines = [HEAD, "Machines: " + "; ".join(f"({i}) {m}" for i, m in enumerate(machines, 1)) + ".", ""]
    heads = ("what", "ours", "peer", "ratio", "aim", "", "agreement", "memory, MiB", "machine, day", "note")
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for r in rows:
        peer = "cannot" if r["peer"] is None else f"{r['peer']:g} ({r['peer_name']})"
        memory = ", ".join(f"{size}: {value}" for size, value in r["memory_mib"].items())
        where = f"({machines.index(r['machine']) + 1}) {r['day']}"
        cells = (
            f"{r['row']} [`{r['script']}`](../benchmarks/{r['script']}.py)",
            f"{r['ours']:g} {r['unit']}",
            peer,
            "" if r["ratio"] is None else f"{r['ratio']:g}",
            r["aim"],
            "met" if r["met"] else "**missed**",
            r["agreement"],
            memory,
            where,
            r["note"],
        )
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def short(rows: list[dict[str, Any]]) -> str:
    """The README's table: what, against whom, and the ratio, one line each."""
    lines = ["| what | peer | ratio | aim | |", "|---|---|---|---|---|"]
    for r in rows:
        if r["ratio"] is not None:
            cells = r["row"], r["peer_name"], f"{r['ratio']:.3g}", r["aim"], "met" if r["met"] else "**missed**"
            lines.append("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines)


def with_table(readme: str, rows: list[dict[str, Any]]) -> str:
    """The README with its table made anew between its two marks."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{short(rows)}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    scripts = sorted(p for p in HERE.glob("*.py") if REPORTS.search(p.read_text()))
    wanted = {name.removesuffix(".py") for name in sys.argv[1:]}
    unknown = wanted - {p.stem for p in scripts}
    if unknown:
        raise SystemExit(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(p.stem for p in scripts)}")
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    rows = [r for r in rows if r["script"] in {p.stem for p in scripts}]
    here, failed = machine(), []
    for script in scripts:
        if wanted and script.stem not in wanted:
            continue
        found = run(script)
        if found is None:
            failed.append(script.name)
            continue
        rows = [r for r in rows if r["script"] != script.stem]
        rows += [{"script": script.stem, "day": str(date.today()), "machine": here, **r} for r in found]
        rows.sort(key=lambda r: r["script"])
        RESULTS.write_text("".join(json.dumps(r) + "\n" for r in rows))
        PAGE.write_text(page(rows))
        README.write_text(with_table(README.read_text(), rows))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
