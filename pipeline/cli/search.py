"""`cvp search`: photos like a text or like another photo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import show
from pipeline.errors import ConfigError

PROJECT = typer.Argument(metavar="PROJECT", help="A folder name under projects/, or the path of a project.yaml.")


def search(
    project: Annotated[str, PROJECT],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help='For example: "worker without a helmet".')] = None,
    image: Annotated[Path | None, typer.Option("--image", "-i", help="Search by this photo instead.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many photos.")] = 20,
    batch: Annotated[str | None, typer.Option("--batch", "-b", help="Only in this batch.")] = None,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Also write them as a picture (.png, .jpg).")] = None,
    form: Annotated[str, typer.Option("--format", "-f", help="table, csv, json or parquet.")] = "table",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file.")] = None,
) -> None:
    """Find photos by words or by another photo, nearest first, among all that is embedded."""
    if (text is None) == (image is None):
        raise ConfigError("search by a text or by a photo", 'cvp search PROJECT "a red car", or --image FILE')
    from pipeline import search as by
    from pipeline.cli import results
    from pipeline.config import find_project
    from pipeline.store import Store

    results.check(form)
    found = find_project(project)
    config, store = found.config, Store(found.store_uri)
    if text is not None:
        hits = by.by_text(config, store, text, limit, batch)
    else:
        assert image is not None
        hits = by.by_image(config, store, image, limit, batch)
    if sheet is not None:
        by.sheet(config, store, hits, sheet)
        show.hint(str(sheet))
    results.write(hits.drop(["image_id", "uri"]) if form == "table" and output is None else hits, form, output)
