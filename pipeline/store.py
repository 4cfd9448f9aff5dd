"""Parquet is the truth: ROOT/TABLE/batch=B/data.parquet, written whole and swapped in atomically.

Each file carries a receipt in its footer: the fingerprint of the work that made it and the hash of
its content. Equal fingerprints mean that the work need not be done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as fs
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.ahead import ahead
from pipeline.errors import StoreError, StoreUnavailable
from pipeline.files import Entry, LocalFiles, open_files, writing
from pipeline.ids import content_hash

_RECEIPT = b"cvp"
_FILE = "data.parquet"
_SHARD, _MARK, _FAILURES = ".parquet", ".begun", ".failures"  # files of a staging folder
_ROWS_PER_GROUP = 64 * 1024
# What the Parquet reader raises on damaged files: ArrowInvalid and bad UTF-8 are ValueErrors.
_DAMAGE = (ValueError, OSError)
_READ_AT_ONCE = 16
_HOW: dict[str, Any] = {"pre_buffer": True, "page_checksum_verification": True}
_KNOWN_AT_MOST = 500_000
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Receipt:
    """What a stored table says of itself."""

    fingerprint: str
    content: str
    rows: int
    written_by: dict[str, Any]


# Of files that this process has seen: a stamp changes whenever a file is written again.
_KNOWN: dict[tuple[str, str, str], Receipt | None] = {}


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Arrow's file system of a folder or an s3:// URI, and the path inside it.

    Raises:
        StoreError: another scheme.
    """
    files, root = open_files(uri)
    return files.fs, root


class Store:
    """The tables of one project under one root.

    Args:
        uri: a folder or s3://bucket/prefix.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.files, self.root = open_files(self.uri)
        self.fs = self.files.fs
        self._local = isinstance(self.fs, fs.LocalFileSystem)
        self._remembered: dict[str, dict[str, Receipt | None]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["uri"])  # type: ignore[misc]

    # -- tables ---------------------------------------------------------------------------------

    def path(self, name: str, batch: str | None = None) -> str:
        """Path of a table's file inside `self.fs`."""
        table = schema.table(name)
        if table.batched != (batch is not None):
            kind = "needs a batch" if table.batched else "is not split into batches"
            raise StoreError(f"table {name!r} {kind}", "this is a bug; please report it")
        folder = f"{self.root}/{name}"
        return f"{folder}/batch={quote(batch, safe='')}/{_FILE}" if batch is not None else f"{folder}/{_FILE}"

    def read(
        self,
        name: str,
        batches: str | Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        images: Iterable[str] | None = None,
    ) -> pa.Table:
        """The rows of a table, of the given `batches` or of all, batch after batch.

        Args:
            images: only rows about these `image_id`s; one file at a time is in memory with all of its rows. `columns`
                must have their `image_id`.

        Raises:
            StoreError: the table has not been made yet, or a file is damaged or of an older version.
        """
        parts = list(self._files(name, batches))
        if not parts:
            raise StoreError(f"table {name!r} has not been made yet in {self.uri}", "run: cvp run PROJECT")
        return self._rows(name, parts, columns, images)

    def _rows(
        self, name: str, parts: list[str], columns: Sequence[str] | None = None, images: Iterable[str] | None = None
    ) -> pa.Table:
        spec = schema.table(name)
        wanted = None if columns is None else list(columns)
        about = None if images is None else pa.array(images, pa.string())

        def read(path: str) -> pa.Table:
            rows = spec.upgraded(self._read_file(path, wanted), wanted, path)
            return rows if about is None else rows.filter(pc.is_in(rows.column("image_id"), about))

        return pa.concat_tables(self._side_by_side(read, parts)).replace_schema_metadata(None)

    def read_or_empty(
        self,
        name: str,
        batches: str | Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        images: Iterable[str] | None = None,
    ) -> pa.Table:
        """Like `read`, but a table that was never made has no rows."""
        parts = list(self._files(name, batches))
        if parts:
            return self._rows(name, parts, columns, images)
        empty = schema.table(name).empty()
        return empty if columns is None else empty.select(list(columns))

    def write(
        self,
        name: str,
        rows: pa.Table,
        batch: str | None = None,
        *,
        fingerprint: str = "",
        written_by: dict[str, Any] | None = None,
        over: str | None = "any",
    ) -> Receipt:
        """Replace a table (or one batch of it) by `rows`, atomically, and return its receipt.

        Args:
            over: 'any', or the `version` that `rows` were made from: another run's later rows stay.

        Raises:
            Superseded: the table is no longer of that version.
        """
        spec = schema.table(name)
        rows = spec.conform(rows)
        repeated = spec.duplicate_keys(rows)
        if repeated:
            raise StoreError(
                f"{repeated} rows of {name!r} repeat a key ({', '.join(spec.key)})",
                "this is a bug; please report it",
            )
        receipt = Receipt(fingerprint, content_hash(rows), rows.num_rows, written_by or {})
        payload = json.dumps(receipt.__dict__).encode()
        stamped = rows.replace_schema_metadata({_RECEIPT: payload})
        self._swap_in(self.path(name, batch), stamped, over)
        return receipt

    def version(self, name: str, batch: str | None = None) -> str | None:
        """Changes whenever the table is written, be it with equal rows; None while there is none."""
        return self.files.stamp(self.path(name, batch))

    def receipt(self, name: str, batch: str | None = None) -> Receipt | None:
        """What the stored file says of itself; None when it was never written (or is damaged)."""
        path = self.path(name, batch)
        if self._remembered is not None:
            return self._all_receipts(name).get(path)
        stamp = self.files.stamp(path)
        return self._receipt_in(Entry(path, 0, stamp)) if stamp is not None else None

    def remembering(self) -> Store:
        """This store as it is now: each table is listed once, in pages of a thousand files, and receipts
        are read side by side. For questions about thousands of batches."""
        store = Store(self.uri)
        store._remembered = {}
        return store

    def _all_receipts(self, name: str) -> dict[str, Receipt | None]:
        """Receipts of a table by path, as of when they were first asked for."""
        assert self._remembered is not None
        if name not in self._remembered:
            entries = self._entries(name)
            found = self._side_by_side(self._receipt_in, entries)
            self._remembered[name] = {e.path: r for e, r in zip(entries, found, strict=True)}
        return self._remembered[name]

    def _receipt_in(self, entry: Entry) -> Receipt | None:
        key = self.uri, entry.path, entry.stamp
        if key not in _KNOWN:
            try:
                footer = self._footer(entry.path)
                found = Receipt(**json.loads(footer[_RECEIPT])) if _RECEIPT in footer else None
            except (*_DAMAGE, TypeError):
                return None
            if len(_KNOWN) >= _KNOWN_AT_MOST:
                _KNOWN.clear()
            _KNOWN[key] = found
        return _KNOWN[key]

    def _footer(self, path: str) -> dict[bytes, bytes]:
        with self.files.open_end(path) as end:
            try:
                return pq.read_metadata(end).metadata or {}
            except ValueError:  # longer than what was read
                with self.files.open(path) as file:
                    return pq.read_metadata(file).metadata or {}

    def batches(self, name: str) -> list[str]:
        """Batches that a table has, sorted."""
        if self._remembered is not None:
            found = [path.split("/")[-2] for path in self._all_receipts(name)]
        else:
            found = self.files.folders(f"{self.root}/{name}")
        return sorted(unquote(b.removeprefix("batch=")) for b in found if b.startswith("batch="))

    def exists(self, name: str) -> bool:
        """Whether any row group of the table was ever written."""
        return any(self.files.stamp(path) is not None for path in self._candidates(name, None))

    def delete(self, name: str, batch: str | None = None) -> None:
        """Remove one file of a table, if it is there."""
        self.files.delete([self.path(name, batch)])

    # -- other files ----------------------------------------------------------------------------

    def folder(self, name: str) -> Path:
        """A local folder for checkpoints and exports. On S3 it is a cache under CVP_HOME.

        Raises:
            StoreUnavailable: it cannot be made.
        """
        from pipeline.config import home

        base = Path(self.root) if self._local else home() / "cache" / quote(self.root, safe="")
        path = base / "files" / name
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, name: str, path: Path) -> None:
        """Put a finished file of `folder(name)` where all machines find it; on a disk it is there already."""
        if not self._local:
            self.files.put(f"{self.root}/files/{name}/{path.name}", path.read_bytes())

    def file(self, name: str, file_name: str) -> Path:
        """Path of a published file of `folder(name)` on this machine, which fetches it if it has none."""
        path = self.folder(name) / file_name
        if not self._local and not path.is_file():
            with suppress(FileNotFoundError), self.files.open(f"{self.root}/files/{name}/{file_name}") as f:
                LocalFiles().put(str(path), f.read_buffer())
        return path

    def file_uri(self, name: str, file_name: str) -> str:
        """Where `open_files` finds such a file of the store itself, on whatever machine."""
        return f"{'' if self._local else 's3://'}{self.root}/files/{name}/{file_name}"

    def local_files(self, name: str) -> list[str]:
        """A table's files on this disk, as they are now. Those of S3 are copied into the cache, one version of each."""
        entries = self._entries(name)
        if self._local:
            return sorted(entry.path for entry in entries)
        return sorted(self._side_by_side(self._copy, entries))

    def _copy(self, entry: Entry) -> str:
        folder = self.folder("tables") / quote(entry.path[len(self.root) + 1 :], safe="")
        copy = folder / f"{quote(entry.stamp, safe='')}.parquet"
        if not copy.is_file():
            old = list(folder.glob("*.parquet"))
            with self.files.open(entry.path) as file:
                LocalFiles().put(str(copy), file.read_buffer())
            for path in old:
                path.unlink(missing_ok=True)
        return str(copy)

    def staging(self, name: str, batch: str | None, fingerprint: str) -> Staging:
        """Where distributed workers put the finished shards of one table's batch."""
        part = quote(batch, safe="") if batch is not None else "all"
        return Staging(self.uri, f"_staging/{name}/{part}/{fingerprint}")

    def append_ledger(self, entry: pa.Table) -> None:
        """Add one row of `costs` to the ledger; the `costs` asset compacts them."""
        name = entry.column("entry_id")[0].as_py()
        self._swap_in(f"{self.root}/_ledger/{name}.parquet", schema.table("costs").conform(entry))

    def ledger(self) -> list[str]:
        """Ids of the ledger entries that lie uncompacted, sorted."""
        return sorted(path.rsplit("/", 1)[1].removesuffix(".parquet") for path in self._ledger_files())

    def read_ledger(self) -> pa.Table:
        """The uncompacted ledger entries."""
        spec = schema.table("costs")
        parts = [schema.table("costs").empty()]
        for path in self._ledger_files():
            try:
                parts.append(spec.upgraded(self._read_file(path, None), path=path))
            except StoreError as error:
                if not isinstance(error.__cause__, FileNotFoundError):  # another run has it in `costs` for good
                    raise
        return pa.concat_tables(parts).replace_schema_metadata(None)

    def drop_ledger(self, entry_ids: Iterable[str]) -> None:
        """Delete ledger entries that are in the `costs` table for good."""
        gone = set(entry_ids)
        self.files.delete(p for p in self._ledger_files() if p.rsplit("/", 1)[1].removesuffix(".parquet") in gone)

    def _ledger_files(self) -> list[str]:
        return sorted(e.path for e in self.files.entries(f"{self.root}/_ledger") if e.path.endswith(".parquet"))

    # -- how ------------------------------------------------------------------------------------

    def _entries(self, name: str) -> list[Entry]:
        return [e for e in self.files.entries(f"{self.root}/{name}") if e.path.endswith(f"/{_FILE}")]

    def _candidates(self, name: str, batches: str | Sequence[str] | None) -> list[str]:
        if not schema.table(name).batched:
            return [self.path(name)]
        wanted = [batches] if isinstance(batches, str) else batches
        return [self.path(name, b) for b in (self.batches(name) if wanted is None else wanted)]

    def _files(self, name: str, batches: str | Sequence[str] | None) -> Iterator[str]:
        candidates = self._candidates(name, batches)
        stamps = self._side_by_side(self.files.stamp, candidates)
        return (path for path, stamp in zip(candidates, stamps, strict=True) if stamp is not None)

    def _side_by_side(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function` of each item, in order; many at a time on S3, where each waits for an answer."""
        if self._local:
            return map(function, items)
        calls = ((copy_context(), item) for item in items)  # the caller may be in a hurry, see `s3.hurried`
        return ahead(lambda call: call[0].run(function, call[1]), calls, 2 * _READ_AT_ONCE, _READ_AT_ONCE)

    def _read_file(self, path: str, columns: list[str] | None) -> pa.Table:
        try:
            # Not `read_table`: the data set that it makes takes as long as a small file.
            with self.files.open(path) as file, pq.ParquetFile(file, **_HOW) as stored:
                if columns is None:
                    return stored.read()
                there = [name for name in columns if name in stored.schema_arrow.names]  # an earlier version lacks some
                return stored.read(there).select(there)
        except _DAMAGE as error:
            raise StoreError(f"{path} is damaged or unreadable: {error}", "delete that file and run again") from error

    def _swap_in(self, path: str, rows: pa.Table, over: str | None = "any") -> None:
        made = pa.BufferOutputStream()
        pq.write_table(rows, made, compression="zstd", row_group_size=_ROWS_PER_GROUP, write_page_checksum=True)
        self.files.put(path, made.getvalue(), over)


class Staging:
    """Finished shards of one piece of work, under a prefix that names its fingerprint.

    A shard's name says which rows it was made from, so that no other rows are taken for those.
    """

    def __init__(self, store_uri: str, prefix: str) -> None:
        self.store_uri = store_uri
        self.prefix = prefix
        self._store = Store(store_uri)

    def __getstate__(self) -> dict[str, Any]:
        return {"store_uri": self.store_uri, "prefix": self.prefix}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def labels(self) -> dict[str, str]:
        """Project, table and batch, for logs."""
        _, table, batch, _ = self.prefix.split("/")
        return {"project": self.store_uri.rsplit("/", 1)[-1], "table": table, "batch": unquote(batch)}

    @property
    def _folder(self) -> str:
        return f"{self._store.root}/{self.prefix}"

    def finished(self) -> set[str]:
        """Names of the shards that are there."""
        return self._names(_SHARD)

    def is_whole(self, shard: str) -> bool:
        """Whether a shard can be read to its end; a damaged one is removed, to be done again."""
        try:
            self.get(shard)
        except StoreUnavailable:
            raise
        except StoreError:
            self._store.files.delete([self._path(shard)])
            return False
        return True

    def put(self, shard: str, rows: pa.Table) -> None:
        """Write a shard whole."""
        self._store._swap_in(self._path(shard), rows)

    def get(self, shard: str) -> pa.Table:
        """A shard's rows.

        Raises:
            StoreError: it is missing, or damaged.
        """
        return self._store._read_file(self._path(shard), None)

    @contextmanager
    def beginning(self, shard: str) -> Iterator[None]:
        """Leaves a mark if this process does not survive what is done inside; an exception is no such death."""
        mark = self._path(shard, _MARK)
        self._store.files.put(mark, b"")
        try:
            yield
        finally:
            self._store.files.delete([mark])

    def begun(self) -> set[str]:
        """Names of the shards over which a process died."""
        return self._names(_MARK)

    def note_failures(self, shard: str, rows: pa.Table) -> None:
        """Keep which rows of a shard could not be done; its shard is `put` without them."""
        self._store._swap_in(self._path(shard, _FAILURES), rows)

    def forget_failures(self, shards: Iterable[str]) -> None:
        """Remove what was noted of shards that are to be done again."""
        noted = self._names(_FAILURES)
        self._store.files.delete([self._path(s, _FAILURES) for s in shards if s in noted])

    def failures(self, shards: Iterable[str]) -> pa.Table | None:
        """The rows of these shards that could not be done, if there are any."""
        noted = self._names(_FAILURES)
        tables = [self._store._read_file(self._path(s, _FAILURES), None) for s in shards if s in noted]
        return pa.concat_tables(tables).replace_schema_metadata(None) if tables else None

    def clear(self) -> None:
        """Remove this work's shards and those of every older fingerprint of the same batch.

        Another run that is at work there does again what it misses.
        """
        self._store.files.clear(self._folder.rsplit("/", 1)[0])

    def _names(self, ending: str) -> set[str]:
        names = (entry.path.rsplit("/", 1)[1] for entry in self._store.files.entries(self._folder))
        return {name.removesuffix(ending) for name in names if name.endswith(ending)}

    def _path(self, shard: str, ending: str = _SHARD) -> str:
        return f"{self._folder}/{shard}{ending}"
