"""A source that kills who reads it, in a module that a child process imports in no time."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from pipeline.sources import FolderSource, SourceFile


class Fatal(FolderSource):
    """Notes each file that is read in `notes`; one of them kills the process, once or always."""

    def __init__(self, uri: str, notes: Path, killer: str, once: bool) -> None:
        super().__init__(uri)
        self.notes, self.killer, self.once = notes, killer, once

    def read(self, file: SourceFile) -> bytes:
        with (self.notes / file.name).open("a") as note:
            note.write("read\n")
        if file.name == self.killer and not (self.once and (self.notes / "died").exists()):
            (self.notes / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(file)
