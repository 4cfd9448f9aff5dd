"""SQL predicates of project.yaml, asked of Arrow tables in memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import ConfigError, suggest


def matches(rows: pa.Table, where: str, place: str) -> NDArray[np.bool_]:
    """(n,) whether each row fulfils a SQL predicate; where the predicate is NULL, it does not.

    Args:
        rows: the table whose columns `where` may use; a map column m is asked as m['key'].
        place: the key of project.yaml that holds `where`, for errors.

    Raises:
        ConfigError: not a predicate, or it names an unknown column; the message names the nearest.
    """
    import duckdb

    # A predicate may only look at these rows: no files, no network, no extension.
    with duckdb.connect(":memory:", config={"enable_external_access": "false"}) as connection:
        connection.execute("SET threads = 1")  # keeps the order of rows
        connection.register("rows", rows)
        try:
            answer = connection.sql(f"SELECT ({where}\n) AS hit FROM rows").to_arrow_table()
        except duckdb.Error as error:
            first = str(error).strip().splitlines()[0]
            raise ConfigError(f"{place}: {where!r} is not a predicate: {first}", _remedy(str(error), rows)) from error
    if answer.num_columns != 1 or answer.num_rows != rows.num_rows or answer.schema.types[0] != pa.bool_():
        raise ConfigError(f"{place}: {where!r} is not true or false for each row", "compare, e.g. batch = 'a'")
    return np.asarray(answer.column(0).fill_null(False).to_numpy(zero_copy_only=False), bool)


def _remedy(message: str, rows: pa.Table) -> str:
    unknown = message.partition('column "')[2].partition('"')[0]
    return suggest(unknown, rows.column_names) if unknown else f"columns: {', '.join(rows.column_names)}"
