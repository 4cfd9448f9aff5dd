"""warehouse.duckdb: a DuckDB file of views over the Parquet tables, for anyone who speaks SQL.

The file holds no data. It is written under a temporary name and renamed, so that an analyst's open
session never blocks a run, and a run never blocks the analyst.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from pipeline import schema
from pipeline.errors import StoreError, suggest
from pipeline.files import replaced
from pipeline.store import Store

# Nothing may be downloaded behind the user's back; Parquet and JSON are built into DuckDB.
_SETTINGS: dict[str, Any] = {"autoinstall_known_extensions": "false"}
_ATTEMPTS = 6
_FIRST_PAUSE = 0.05  # seconds; doubled after each attempt: 1.6 s in all

_LABEL_LINEAGE = """
WITH parts AS (SELECT annotation_id, batch, unnest(parts) AS part FROM labels),
made AS (
    SELECT p.annotation_id, p.batch,
           list(d.producer ORDER BY d.score DESC, d.annotation_id) AS models,
           list(d.score ORDER BY d.score DESC, d.annotation_id) AS scores,
           list(v.prompts ORDER BY d.score DESC, d.annotation_id) AS prompts
    FROM parts p
    JOIN (SELECT annotation_id, batch, producer, class_name, score FROM detections
          UNION ALL SELECT annotation_id, batch, producer, class_name, probability FROM tags) d
      ON d.annotation_id = p.part AND d.batch = p.batch
    LEFT JOIN (SELECT producer, class_name, string_agg(prompt, '; ' ORDER BY prompt) AS prompts
               FROM vocabulary GROUP BY ALL) v USING (producer, class_name)
    GROUP BY ALL),
said AS (
    SELECT annotation_id, list(reviewer ORDER BY "at") AS people, list(verdict ORDER BY "at") AS verdicts,
           max("at") AS decided_at
    FROM (SELECT * FROM decisions WHERE verdict <> 'undo'
          AND decision_id NOT IN (SELECT withdraws FROM decisions WHERE withdraws IS NOT NULL)
          QUALIFY row_number() OVER (PARTITION BY annotation_id, reviewer ORDER BY "at" DESC, decision_id DESC) = 1)
    GROUP BY annotation_id),
signed AS (
    SELECT certificate, target, confidence, slice, units FROM trust WHERE certificate IS NOT NULL
    UNION ALL SELECT certificate, target, confidence, slice, units FROM verifier_trust WHERE certificate IS NOT NULL)
SELECT l.annotation_id, l.image_id, i.file_name, l.batch, l.class_name, l.status, l.decided_by, l.producer, l.score,
       coalesce(m.models, []) AS models, coalesce(m.scores, []) AS scores, coalesce(m.prompts, []) AS prompts,
       l.threshold, l.precision, l.certificate, t.target, t.confidence, t.slice AS certified_on, t.units AS gold_units,
       w.verifier, w.prompt AS verifier_prompt, w.answer AS verifier_answer, w.agreement AS verifier_agreement,
       w.words AS verifier_words,
       coalesce(s.people, []) AS people, coalesce(s.verdicts, []) AS verdicts, s.decided_at
FROM labels l
LEFT JOIN made m ON m.annotation_id = l.annotation_id AND m.batch = l.batch
LEFT JOIN said s ON s.annotation_id = l.annotation_id
LEFT JOIN signed t ON t.certificate = l.certificate
LEFT JOIN verifications w ON w.annotation_id = l.annotation_id AND w.batch = l.batch AND w.attempts > 0
LEFT JOIN images i ON i.image_id = l.image_id AND i.batch = l.batch
"""
_LATEST_COSTS = """
SELECT * FROM costs
QUALIFY row_number() OVER (PARTITION BY asset, batch, producer ORDER BY started_at DESC, entry_id) = 1
"""

_LABEL_PRICES = """
WITH bill AS (
    SELECT sum(money) AS money FROM (
        (SELECT money FROM costs WHERE asset IN
            ('embeddings', 'detections', 'tags', 'masks', 'trust', 'exchangeability', 'labels')
         QUALIFY row_number() OVER (PARTITION BY asset, batch, producer ORDER BY started_at DESC, entry_id) = 1)
        -- Answers are paid for once, whenever that was: all of it counts, not what the last run took.
        UNION ALL SELECT money FROM costs WHERE asset IN ('examinations', 'verifications'))),
list AS (
    SELECT max(price) FILTER (item = 'human_look') AS look, max(price) FILTER (item = 'human_box') AS box,
           max(price) FILTER (item = 'human_image') AS image, any_value(currency) AS currency FROM prices),
looks AS (SELECT annotation_id, count(*) AS looks FROM decisions WHERE verdict <> 'undo' GROUP BY annotation_id),
counted AS (
    SELECT l.class_name, count(*) FILTER (l.status = 'accepted') AS accepted,
           count(*) FILTER (l.status = 'verified') AS verified,
           count(*) FILTER (l.status = 'human' AND k.looks IS NOT NULL) AS confirmed,
           count(*) FILTER (l.status = 'needs_review') AS waiting, count(*) FILTER (l.status = 'rejected') AS rejected,
           count(*) FILTER (l.status <> 'human' OR k.looks IS NOT NULL) AS proposed,
           coalesce(sum(k.looks), 0) AS looks, count(DISTINCT l.image_id) AS images, count(*) AS labels,
           count(l.x1) > 0 AS boxed
    FROM labels l LEFT JOIN looks k USING (annotation_id) GROUP BY l.class_name)
SELECT class_name, accepted, verified, confirmed, waiting, rejected,
       bill.money * proposed / nullif(sum(proposed) OVER (), 0) AS machine_money, looks * list.look AS look_money,
       (machine_money + look_money) / nullif(accepted + verified + confirmed, 0) AS price_per_label,
       list.image * images / labels + CASE WHEN boxed THEN list.box ELSE 0 END AS by_hand_per_label, list.currency
FROM counted, bill, list ORDER BY class_name
"""
_TARGET_COSTS = """
WITH list AS (SELECT max(price) FILTER (item = 'human_look') AS look, any_value(currency) AS currency FROM prices),
proposed AS (
    SELECT l.producer, l.class_name, l.score FROM labels l WHERE l.status IN ('accepted', 'verified', 'needs_review')),
counted AS (
    SELECT t.target, t.class_name, t.producer, bool_or(t.certified) AS certified, any_value(t.more_gold) AS more_gold,
           count(p.score) AS proposed, count(*) FILTER (p.score >= t.threshold) AS accepted
    FROM targets t LEFT JOIN proposed p USING (producer, class_name) GROUP BY t.target, t.class_name, t.producer)
SELECT round(c.target::DOUBLE, 4) AS target, c.class_name, c.producer, c.certified, c.more_gold, c.proposed, c.accepted,
       c.proposed - c.accepted AS to_look_at, (c.proposed - c.accepted) * list.look AS money, list.currency
FROM counted c, list ORDER BY ALL
"""

# Views over views: name -> (what it is for, the tables it reads, its SQL).
EXTRAS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "label_lineage": (
        "each label in one row: its file, the models, prompts and scores behind it, certificate, verifier, and people",
        (
            *("labels", "detections", "tags", "vocabulary", "trust", "decisions", "images"),
            *("verifier_trust", "verifications"),
        ),
        _LABEL_LINEAGE,
    ),
    "label_prices": (
        "of each class: labels by status, and what one that can be used cost, beside its price by hand",
        ("labels", "decisions", "costs", "prices"),
        _LABEL_PRICES,
    ),
    "target_costs": (
        "of each class and precision target: what would be accepted, and what looking at the rest would cost",
        ("targets", "labels", "prices"),
        _TARGET_COSTS,
    ),
    "latest_costs": ("the last time that each piece of work was done", ("costs",), _LATEST_COSTS),
}


def location(store: Store) -> Path:
    """Where a project's warehouse lies: beside its tables, or in the local cache of an S3 store."""
    return store.folder(".") / "warehouse.duckdb"


def build(store: Store, path: Path | None = None) -> Path:
    """Write the views of `store` to `path` (default: `location(store)`), replacing the file whole.

    A table that has not been made yet becomes an empty view with its columns.

    Raises:
        StoreError: the store is on S3 and DuckDB's httpfs extension is not installed, or a stored
            table lacks a column of its schema.
    """
    path = path or location(store)
    with replaced(path) as made:
        try:
            with closing(_open(made, read_only=False)) as connection:
                if not _is_local(store):
                    _use_httpfs(connection)
                for name in schema.TABLES:
                    _create_view(connection, store, name)
                    _comment(connection, name)
                for name, (doc, _, sql) in EXTRAS.items():
                    connection.execute(f"CREATE VIEW {name} AS {sql}")
                    connection.execute(f"COMMENT ON VIEW {name} IS {_text(doc)}")
        finally:
            made.with_name(f"{made.name}.wal").unlink(missing_ok=True)
    # A log that a writing session left beside the old file does not belong to the new one.
    path.with_name(f"{path.name}.wal").unlink(missing_ok=True)
    return path


def query(path: Path, sql: str) -> pa.Table:
    """The result of `sql` over a warehouse file, opened read-only; works while a run writes.

    Raises:
        StoreError: no such file, it stays locked by a session that writes, or the SQL is wrong; for
            an unknown table or column the nearest known name is given.
    """
    import duckdb

    if not path.is_file():
        raise StoreError(f"there is no warehouse at {path}", "run: cvp run PROJECT")
    for attempt in range(_ATTEMPTS):
        try:
            connection = _open(path, read_only=True)
            try:
                return _answer(connection, sql)
            finally:
                connection.close()
        except (duckdb.IOException, duckdb.ConnectionException) as error:
            # The file is locked by a writer, or a table's file was swapped between plan and scan.
            if attempt == _ATTEMPTS - 1:
                raise StoreError(
                    f"cannot read {path}: {_first_line(error)}",
                    "close the session that writes to it, or open it there with read_only=True",
                ) from error
            time.sleep(_FIRST_PAUSE * 2**attempt)
    raise AssertionError("unreachable")


def query_store(store: Store, sql: str) -> pa.Table:
    """The result of `sql` over the tables as they are now, without a warehouse file.

    Needs no DuckDB extension: those tables on S3 that `sql` names are copied to the local cache first, as
    far as they have changed since the last time.

    Raises:
        StoreError: as in `query`.
    """
    import duckdb

    for attempt in range(_ATTEMPTS):
        connection = _open(None, read_only=False)
        try:
            for name in _mentioned(sql):
                _create_view(connection, store, name, copied=not _is_local(store))
            for name, (_, _, extra) in EXTRAS.items():
                if _names(name, sql):
                    connection.execute(f"CREATE VIEW {name} AS {extra}")
            return _answer(connection, sql)
        except duckdb.IOException as error:
            if attempt == _ATTEMPTS - 1:
                raise StoreError(f"cannot read {store.uri}: {_first_line(error)}", "try again") from error
            time.sleep(_FIRST_PAUSE * 2**attempt)
        finally:
            connection.close()
    raise AssertionError("unreachable")


# -- views ----------------------------------------------------------------------------------------


def _create_view(connection: Any, store: Store, name: str, copied: bool = False) -> None:
    import duckdb

    columns = schema.table(name).columns
    if store.exists(name):
        chosen = ", ".join(f'"{c.name}"' for c in columns)
        # An object of S3 that is replaced while DuckDB reads it in pieces would be a mixture: a copy cannot change.
        here = store.local_files(name) if copied else []
        files = f"[{', '.join(map(_text, here))}]" if copied else _text(_glob(store, name))
        # With hive_partitioning, DuckDB would read `batch=B` in the path as a second column `batch`.
        rows = f"SELECT * FROM read_parquet({files}, hive_partitioning = false, union_by_name = true)"
        # Files of an earlier version lack columns that are optional: some of a table's, or all.
        later = ", ".join(_null(c) for c in columns if c.optional)
        body = f"SELECT {chosen} FROM ({rows}{f' UNION ALL BY NAME SELECT {later} WHERE false' if later else ''})"
    else:
        body = f"SELECT {', '.join(map(_null, columns))} WHERE false"
    try:
        connection.execute(f"CREATE VIEW {name} AS {body}")
    except duckdb.BinderException as error:
        raise StoreError(
            f"the stored table {name!r} is not of today's schema: {_first_line(error)}",
            f"make it again: cvp run PROJECT --select {name}",
        ) from error


def _null(column: schema.Column) -> str:
    return f'CAST(NULL AS {sql_type(column.type)}) AS "{column.name}"'


def _glob(store: Store, name: str) -> str:
    file = "*/data.parquet" if schema.table(name).batched else "data.parquet"
    root = _escaped(store.root) if _is_local(store) else f"s3://{store.root}"
    return f"{root}/{name}/{file}"


def _escaped(path: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", path)


def _comment(connection: Any, name: str) -> None:
    table = schema.table(name)
    connection.execute(f"COMMENT ON VIEW {name} IS {_text(table.doc)}")
    for column in table.columns:
        connection.execute(f'COMMENT ON COLUMN {name}."{column.name}" IS {_text(column.doc)}')


def sql_type(type_: pa.DataType) -> str:
    """DuckDB's name of an Arrow type that occurs in the tables.

    Raises:
        StoreError: it has none here.
    """
    if pa.types.is_list(type_):
        return f"{sql_type(type_.value_type)}[]"
    if pa.types.is_map(type_):
        return f"MAP({sql_type(type_.key_type)}, {sql_type(type_.item_type)})"
    names = {
        pa.string(): "VARCHAR",
        pa.float32(): "FLOAT",
        pa.float64(): "DOUBLE",
        pa.int32(): "INTEGER",
        pa.int64(): "BIGINT",
        pa.bool_(): "BOOLEAN",
        pa.timestamp("us"): "TIMESTAMP",
        pa.timestamp("us", tz="UTC"): "TIMESTAMPTZ",
    }
    if type_ not in names:
        raise StoreError(f"the warehouse has no type for {type_}", "add it to pipeline/warehouse.py")
    return names[type_]


# -- DuckDB ---------------------------------------------------------------------------------------


def _open(path: Path | None, *, read_only: bool) -> Any:
    import duckdb

    connection = duckdb.connect(str(path or ":memory:"), read_only=read_only, config=_SETTINGS)
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _answer(connection: Any, sql: str) -> pa.Table:
    import duckdb

    try:
        result = connection.sql(sql)
        return result.to_arrow_table() if result is not None else pa.table({})
    except (duckdb.IOException, duckdb.ConnectionException):
        raise
    except duckdb.Error as error:
        raise StoreError(*_explained(str(error), sql)) from error


def _use_httpfs(connection: Any) -> None:
    import duckdb

    try:
        connection.execute("LOAD httpfs")
    except duckdb.Error as error:
        raise StoreError(
            f"a DuckDB file over S3 needs DuckDB's httpfs extension: {_first_line(error)}",
            "install it where there is a network (INSTALL httpfs), or ask with: cvp sql PROJECT, which needs none",
        ) from error
    connection.execute("CREATE SECRET (TYPE s3, PROVIDER credential_chain)")


def _explained(message: str, sql: str) -> tuple[str, str]:
    """What is wrong with `sql`, and the nearest name where one is unknown."""
    message = message.strip()
    if found := re.search(r"Table with name (\S+) does not exist", message):
        return f"there is no table {found[1]!r}", suggest(found[1], [*schema.TABLES, *EXTRAS])
    if found := re.search(r'Referenced column "([^"]+)" (?:was )?not found', message):
        tables = _mentioned(sql)
        return (
            f"there is no column {found[1]!r} in {', '.join(tables) or 'this query'}",
            suggest(found[1], _columns(tables)),
        )
    return f"the query is wrong: {message}", 'the tables: cvp sql PROJECT "SHOW TABLES"; columns: "DESCRIBE labels"'


def _mentioned(sql: str) -> list[str]:
    """Tables that `sql` names, itself or through a view over views; all of them if it asks for lists."""
    if re.search(r"\b(show|information_schema|duckdb_\w+|pragma)\b", sql, re.IGNORECASE):
        return list(schema.TABLES)
    wanted = {name for name in schema.TABLES if _names(name, sql)}
    for extra, (_, tables, _) in EXTRAS.items():
        wanted |= set(tables) if _names(extra, sql) else set()
    return [name for name in schema.TABLES if name in wanted]


def _names(name: str, sql: str) -> bool:
    return re.search(rf"\b{name}\b", sql, re.IGNORECASE) is not None


def _columns(tables: Iterable[str]) -> set[str]:
    return {column.name for name in tables for column in schema.table(name).columns}


def _is_local(store: Store) -> bool:
    return isinstance(store.fs, fs.LocalFileSystem)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
