"""What a table's function is given, and everything about making its tables but the running of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import dagster as dg
import pyarrow as pa
from dagster_aws.s3 import S3Resource

from assets.resources import source_of
from pipeline import logs, pulse, schema
from pipeline.compute import Compute, Worker, in_order, map_batches, without
from pipeline.config import Project, ProjectConfig
from pipeline.ids import fingerprint
from pipeline.pulse import Beat
from pipeline.sources import Source
from pipeline.store import Receipt, Staging, Store
from pipeline.vectors import Vectors

Outputs: TypeAlias = pa.Table | Mapping[str, pa.Table]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Finding:
    """What a check found. `passed` with a sentence for people."""

    passed: bool
    why: str = ""


@dataclass(frozen=True)
class Check:
    """A fact that must hold of a table's new rows. A blocking one keeps them from being committed."""

    name: str
    test: Callable[["Work", Mapping[str, pa.Table]], Finding]
    blocking: bool = False

    @property
    def description(self) -> str:
        return (self.test.__doc__ or "").strip().split("\n")[0]


@dataclass(frozen=True)
class Recipe:
    """How tables are made: everything but the running of it."""

    project: Project
    stage: str
    outputs: tuple[str, ...]
    make: Callable[["Work"], Outputs]
    inputs: tuple[str, ...] = ()
    code: str = "1"
    config: Callable[[Project], Any] = lambda project: None
    external: Callable[["Work"], Any] = lambda work: None
    checks: tuple[Check, ...] = ()
    consumes: bool = False
    """Whether making the tables uses up what `external` names, so that afterwards nothing is left of it."""
    ledger: bool = True
    pool: str | None = None
    condition: dg.AutomationCondition | None = None
    kinds: tuple[str, ...] = ("parquet",)

    @property
    def name(self) -> str:
        return self.outputs[0]

    @property
    def batched(self) -> bool:
        return schema.table(self.name).batched

    @cached_property
    def code_version(self) -> str:
        """Changes with the code's own version, the tables' columns, and the configuration it reads."""
        return fingerprint(*self._own, self.config(self.project))

    @cached_property
    def own_version(self) -> str:
        """As `code_version`, without the configuration: for rows whose producer tells all that they depend on of it."""
        return fingerprint(*self._own)

    @property
    def _own(self) -> tuple[str, list[str]]:
        return self.code, [str(schema.table(name).schema) for name in self.outputs]

    def key(self, table: str) -> dg.AssetKey:
        return dg.AssetKey([self.project.name, table])

    def fingerprint(self, work: "Work") -> str | None:
        """Identity of this piece of work; None while an input is missing."""
        parts: list[Any] = []
        for name in self.inputs:
            contents = work.contents(name)
            if contents is None:
                return None
            parts.append([name, contents])
        return fingerprint(self.name, self.code_version, parts, self.external(work))

    def stamp(self, work: "Work", mark: str) -> str:
        """The fingerprint that finished work carries."""
        if not self.consumes:
            return mark
        after = replace(self, external=lambda _: self.external(work)[:0])
        return after.fingerprint(work) or mark

    def receipts(self, work: "Work", mark: str | None) -> list[Receipt] | None:
        """Receipts of the outputs if they were all made by the work `mark`, else None."""
        found = [work.store.receipt(name, work.batch) for name in self.outputs]
        fresh = mark is not None and all(r is not None and r.fingerprint == mark for r in found)
        return [r for r in found if r is not None] if fresh else None


@dataclass
class Work:
    """What a table's function gets: its project, its batch, and ways to read and compute."""

    project: Project
    store: Store
    compute: Compute
    s3: S3Resource
    batch: str | None
    fingerprint: str = ""
    code: str = ""
    """The recipe's `code_version`: what decides rows besides inputs."""
    own: str = ""
    """The recipe's `own_version`."""
    metadata: dict[str, Any] = field(default_factory=dict)
    images: int | None = None
    """That were worked on; None where nothing counts them."""
    device: str = "cpu"
    tokens: int = 0
    tokens_written: int = 0
    took: dict[str, float] = field(default_factory=dict)
    """Seconds that each producer took, where several share the work: each then has an entry in the ledger."""
    failed: list[pa.Table] = field(default_factory=list)
    """Rows that no process survived, each with the reason: left out of the table, and shown on its page."""
    over: dict[str, str | None] = field(default_factory=dict)
    """Table -> the `version` that its new rows are made from: they are not written over any other."""
    sources: Callable[[], Mapping[str, str]] = dict
    """Fingerprints of the source's batches, where they are known already."""
    kept: dict[Any, Any] = field(default_factory=dict)
    """What was read once for all batches of a run."""
    beat: Beat | None = None
    """Tells `cvp status` how the work goes."""
    _vectors: Vectors | None = None

    def __post_init__(self) -> None:
        self.compute = replace(self.compute, failed=self.failed.append)

    @contextmanager
    def watched(self, table: str) -> Iterator[None]:
        """While the context is open, logs and `cvp status` know what is being made."""
        listener = self.compute.progress
        with (
            logs.labelled(project=self.project.name, table=table, batch=self.batch or ""),
            pulse.beating(self.store, table, self.batch, self.compute.mode) as self.beat,
        ):
            beat = self.beat

            def progress(done: int, total: int) -> None:
                beat.progress(done, total)
                if listener:
                    listener(done, total)

            self.compute = replace(self.compute, progress=progress, load=beat.load)
            yield

    @property
    def config(self) -> ProjectConfig:
        return self.project.config

    @property
    def source(self) -> Source:
        return source_of(self.project, self.s3)

    def source_fingerprint(self) -> str:
        """Changes with any file of this batch in the source."""
        batch = self.batch or ""
        return self.sources().get(batch) or self.source.fingerprint(batch)

    @property
    def vectors(self) -> Vectors:
        if self._vectors is None:
            self._vectors = Vectors(self.store.uri)
        return self._vectors

    def read(self, name: str, columns: Sequence[str] | None = None, images: Iterable[str] | None = None) -> pa.Table:
        """A table's rows: those of this batch, or all where the work or the table has no batches.

        Args:
            images: only rows about these: of a million images and more, little that is wanted is in memory then.
        """
        mine = self.batch if schema.table(name).batched else None
        return self.store.read(name, mine, columns, images)

    def once(self, key: Any, read: Callable[[], Result]) -> Result:
        """What `read` gives, called for the first of a run's batches only."""
        if key not in self.kept:
            self.kept[key] = read()
        found: Result = self.kept[key]
        return found

    def known(self, name: str, by_producer: bool = False) -> pa.Table:
        """This batch's rows of the last time, if the same code, configuration and models made them; else none.

        An image's id is the hash of its content: while it is there, its rows are what would be made again.

        Args:
            by_producer: whatever the configuration was then: which rows still hold is told by their producers.
        """
        receipt = self.store.receipt(name, self.batch)
        key, now = ("own", self.own) if by_producer else ("code", self.code)
        same = receipt is not None and receipt.written_by.get(key) == now
        return self.store.read(name, self.batch) if same else schema.table(name).empty()

    def read_all(self, name: str) -> pa.Table:
        """A batched table's rows of every batch, none if it was never made."""
        return self.store.read_or_empty(name)

    def contents(self, name: str) -> Any:
        """Content hashes of what `read` would give; None if it is not there."""
        if not schema.table(name).batched:
            receipt = self.store.receipt(name)
            return receipt.content if receipt else None
        found = [self.batch] if self.batch is not None else self.store.batches(name)
        receipts = {b: self.store.receipt(name, b) for b in found}
        if not receipts or any(r is None for r in receipts.values()):
            return None
        return {b: r.content for b, r in receipts.items() if r is not None}

    def map(
        self,
        table: str,
        worker: Callable[..., Worker],
        options: dict[str, Any],
        rows: pa.Table,
        part: str = "",
        known: pa.Table | None = None,
    ) -> pa.Table:
        """Run a worker over `rows`, resuming where an interrupted run of this work stopped.

        Args:
            part: of the table, where several workers see the same rows: each has shards of its own.
            known: what the worker gave for some images at an earlier time: they are not given to it again, and what
                comes out is in the order of `rows` all the same.
        """
        new = rows if known is None else without(rows, known)
        self.images = max(self.images or 0, new.num_rows)
        if known is None:
            return map_batches(worker, options, new, self.compute, self.staging(table, part))
        found = [known]
        if new.num_rows or not known.num_rows:
            found.append(map_batches(worker, options, new, self.compute, self.staging(table, part)))
        return in_order(
            pa.concat_tables([one.select(found[-1].column_names).cast(found[-1].schema) for one in found]), rows
        )

    def staging(self, table: str, part: str = "") -> Staging:
        """Where the shards of this work lie."""
        return self.store.staging(table, self.batch, fingerprint(self.fingerprint, part) if part else self.fingerprint)

    def show(self, **metadata: Any) -> None:
        """Put more on the asset's page."""
        self.metadata.update(metadata)
