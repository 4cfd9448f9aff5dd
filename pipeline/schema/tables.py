"""All tables by name."""

from __future__ import annotations

from pipeline.errors import DataError, suggest
from pipeline.schema import choice, collection, curation, evaluation, labelling, monitoring, training
from pipeline.schema.form import Table

ROOMS = (collection, curation, labelling, training, evaluation, choice, monitoring)  # in the order of the stages
TABLES: dict[str, Table] = {table.name: table for room in ROOMS for table in room.TABLES}


def table(name: str) -> Table:
    """The table called `name`.

    Raises:
        DataError: there is none; the message names the nearest.
    """
    if name not in TABLES:
        raise DataError(f"there is no table {name!r}", suggest(name, TABLES))
    return TABLES[name]
