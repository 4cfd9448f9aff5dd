"""`cvp look`: what a project's models see in photos that nobody has collected."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from pipeline.cli import show
from pipeline.errors import ConfigError

PROJECT = typer.Argument(metavar="PROJECT", help="A folder name under projects/, or the path of a project.yaml.")


def look(
    project: Annotated[str, PROJECT],
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTOS...", help="Photos, or folders of photos.")],
    labeller: Annotated[str, typer.Option("--labeller", "-l", help="Who draws boxes; default: the first.")] = "",
    vectors: Annotated[bool, typer.Option("--vectors", help="Also write each photo's vector.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file.")] = None,
) -> None:
    """Boxes, masks and tags of photos outside the tables, one line of JSON each, written as they come."""
    from pipeline.chain import Chain
    from pipeline.chain import photos as files_of
    from pipeline.config import find_project
    from pipeline.files import writing

    files = files_of(photos)
    chain = Chain.of(find_project(project), labeller)
    failed = 0
    try:
        out: Any = output.open("w", encoding="utf-8") if output is not None else nullcontext(sys.stdout)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error}", "choose another place") from error
    with out as file:
        for seen in chain.run(files):
            failed += bool(seen.error)
            with writing(output) if output is not None else nullcontext():
                _write(file, seen, chain.ontology.names, vectors)
    if output is not None:
        show.hint(f"{len(files)} photos, {failed} with errors: {output}")


def _write(file: TextIO, seen: Any, classes: Sequence[str], vectors: bool) -> None:
    line: dict[str, Any] = {"file": str(seen.path), "width": seen.width, "height": seen.height}
    if seen.error:
        line["error"] = seen.error
    masks = list(seen.segments.masks) + [None] * len(seen.detections.classes)
    line["objects"] = [
        {"class": name, "score": round(float(score), 4), "box": [round(float(v), 1) for v in box], "mask": mask}
        for name, score, box, mask in zip(
            seen.detections.classes, seen.detections.scores, seen.detections.boxes, masks, strict=False
        )
    ]
    if seen.tags is not None:
        line["tags"] = {name: round(float(p), 4) for name, p in zip(classes, seen.tags, strict=True)}
    if vectors and seen.vector is not None:
        line["vector"] = [float(v) for v in seen.vector]
    file.write(json.dumps(line) + "\n")
    file.flush()
