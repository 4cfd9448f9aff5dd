"""Workers for the tests of computing, in a module that a child process imports in no time."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataError


class Squares:
    """Squares a column, notes each batch it saw in `folder`, and fails or dies where it is told to."""

    def __init__(self, folder: str, fail_at: int = -1, die_at: int = -1, die_once_at: int = -1) -> None:
        self.folder, self.fail_at, self.die_at, self.die_once_at = Path(folder), fail_at, die_at, die_once_at

    def __call__(self, rows: pa.Table) -> pa.Table:
        numbers = rows.column("n").to_pylist()
        if self.fail_at in numbers:
            raise DataError(f"cannot do {self.fail_at}", "leave it out")
        if self.die_at in numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.die_once_at in numbers and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if numbers:
            with (self.folder / f"{numbers[0]:06d}").open("a") as file:
                file.write(f"{len(numbers)}\n")
        return pa.table({"n": rows.column("n"), "square": pc.multiply(rows.column("n"), rows.column("n"))})


class Dies:
    def __init__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows


class Unmade:
    def __init__(self) -> None:
        raise DataError("it cannot be made", "never mind")

    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows
