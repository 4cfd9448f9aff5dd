"""One self-contained HTML file a project: the verdict first, then everything it rests on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import ProjectConfig
from pipeline.files import replaced
from pipeline.images import Reader
from pipeline.report import form
from pipeline.report.gallery import Gallery
from pipeline.report.sections import SECTIONS
from pipeline.report.tables import Tables
from pipeline.store import Store


def location(store: Store) -> Path:
    """Where a project's report lies: beside its tables, or in the local cache of an S3 store."""
    return store.folder(".") / "report.html"


def render(
    config: ProjectConfig,
    store: Store,
    reader: Reader,
    path: Path | None = None,
) -> Path:
    """Write the report of a project's tables as they are now, and return its path.

    The file asks nothing of the network and runs no script; everything from the tables is escaped.
    Sections whose tables are missing or empty say so. Equal tables give an equal file.

    Args:
        path: default `location(store)`; replaced whole.
    """
    path = path or location(store)
    tables = Tables(config, store)
    gallery = Gallery(partial(tables.about, "images"), reader)
    sections = {name: build(tables, gallery) for name, build in SECTIONS.items()}
    page = _environment().get_template("report.html.j2").render(config=config, **sections)
    with replaced(path) as made:
        made.write_text(page, encoding="utf-8")
    return path


def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(form.FILTERS)
    return environment
