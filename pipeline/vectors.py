"""LanceDB holds the embeddings, keyed by (image_id, batch, encoder, patch).

The batch is part of the key because one photo can arrive in two batches: replacing the vectors of one
must not take those of the other.

A batch is added as one commit, streamed, under a generation above those there are; older generations are deleted
afterwards. An upsert (`merge_insert`) would be one commit, but holds all of a batch in memory and joins it with the
keys of the whole table: 100,000 vectors of 256 took 2.7 times as long and 4 times the memory.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import s3
from pipeline.errors import PipelineError, StoreError, StoreUnavailable

_PREFIX = "vectors_"
_GENERATION = pa.field("generation", pa.int64(), nullable=False)
_NAMED_AT_MOST = 2000  # ids in one filter; beyond, reading all vectors of the encoder is faster
_LOOSE_AT_MOST = 32  # small fragments before they are compacted
_KEPT = timedelta(minutes=10)  # old versions, for readers that are still at them
_READ_AT_ONCE = 1024  # rows; LanceDB reads 16 such pieces ahead
_LOOKED_UP = 16 * 1024  # rows at a time, or more


def vector_schema(dimensions: int, dtype: str = "float32") -> pa.Schema:
    """Rows of the vector table: unit vectors of fixed length, float32 or float16."""
    number = {"float32": pa.float32(), "float16": pa.float16()}[dtype]
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("batch", pa.string(), nullable=False),
            pa.field("encoder", pa.string(), nullable=False),
            pa.field("patch", pa.int32(), nullable=False),
            pa.field("vector", pa.list_(number, dimensions), nullable=False),
        ]
    )


class Vectors:
    """The vectors of one project. One LanceDB table holds those of one length and type.

    Args:
        store_uri: the project's store; vectors lie in its `_vectors` folder.
    """

    def __init__(self, store_uri: str) -> None:
        import lancedb

        self._uri = store_uri
        options = s3.lance() if store_uri.startswith("s3://") else None
        self._db: Any = lancedb.connect(f"{store_uri.rstrip('/')}/_vectors", storage_options=options)

    def replace_batch(self, batch: str, encoder: str, parts: Iterable[pa.Table]) -> None:
        """Make the rows of `parts` (`vector_schema`) all that `encoder` has for `batch`.

        The parts are written as they come: one is in memory at a time. Readers see the old vectors or the new
        ones, never a part. Of runs that do so at the same time, one wins whole. What one that was killed leaves
        is replaced by the next.

        Args:
            parts: at least one, be it empty: it says how long vectors are.

        Raises:
            StoreError: a row is of another batch or encoder; no space, no permission, no answer.
        """
        coming = iter(parts)
        first = next(coming)
        rows = _filled(_checked(chain([first], coming), batch, encoder))
        mine = _owned(batch, encoder)
        with _worded(self._uri):
            table = self._table(first.schema)
            newest = _newest(table, mine)
            some = next(rows, None)
            if some is None:
                table.delete(f"{mine} AND generation <= {newest}")
                return
            _add(table, chain([some], rows), _after(newest))
            # Not below our own: another run may have begun after us, and then it is ours that must go.
            newest = _newest(table, mine)
            if table.count_rows(f"{mine} AND generation < {newest}"):
                table.delete(f"{mine} AND generation < {newest}")
            _compact(table)

    def tidy(self) -> None:
        """Compact, and drop versions that no reader can still be at, also where no commit follows that would.

        Raises:
            StoreError: no space, no permission, no answer.
        """
        with _worded(self._uri):
            for name in self._db.list_tables().tables:
                if name.startswith(_PREFIX):
                    _tidy(self._db.open_table(name))

    def counts(self, batch: str, encoder: str) -> dict[str, int]:
        """How many vectors each image of a batch has."""
        found: Counter[str] = Counter()
        for rows in self._rows(batch, encoder, ["image_id"]):
            found.update(rows.column("image_id").to_pylist())
        return found

    def of_batch(self, batch: str, encoder: str, image_ids: pa.Array) -> Iterator[pa.Table]:
        """Rows (`vector_schema`) of these images of a batch, in parts, in any order."""
        for rows in self._rows(batch, encoder, ["image_id", "batch", "encoder", "patch", "vector"]):
            mine = rows.filter(pc.is_in(rows.column("image_id"), image_ids))
            vectors = mine.schema.field("vector").type
            dtype = "float16" if vectors.value_type == pa.float16() else "float32"
            yield pa.Table.from_batches([mine]).cast(vector_schema(vectors.list_size, dtype))

    def _rows(self, batch: str, encoder: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Of the newest generation, as it is now."""
        try:
            table = self._table_of(encoder)
        except StoreError:
            return
        mine = _owned(batch, encoder)
        query = table.search().where(f"{mine} AND generation = {_newest(table, mine)}").select(columns).limit(None)
        yield from query.to_batches(batch_size=_READ_AT_ONCE)

    def furthest_from_unit(self, batch: str, encoder: str) -> float:
        """Largest | |v| - 1 | of a batch's vectors; 0 if it has none.

        Raises:
            StoreError: nothing was embedded with this encoder.
        """
        query = self._table_of(encoder).search().where(_owned(batch, encoder)).select(["vector"]).limit(None)
        worst = 0.0
        for rows in query.to_batches(batch_size=_READ_AT_ONCE):
            vectors = _matrix(rows.column("vector"))
            worst = max(worst, float(np.abs(np.linalg.norm(vectors, axis=1) - 1).max(initial=0)))
        return worst

    def fetch(
        self, image_ids: Sequence[str], encoder: str, patch: int | None = 0, batch: str | None = None
    ) -> tuple[list[str], NDArray[np.float32]]:
        """Vectors of one encoder, in the order of `image_ids` (then of patch).

        Args:
            image_ids: repeated ones count once, at their first place.
            patch: 0 for whole images; None for every window (patch > 0).
            batch: the one they are all of, which is quicker where there are many.

        Returns:
            ids (repeated once a window, if `patch` is None) and (n, d) float32 unit vectors. Images
            that have no vector are left out; one that arrived in several batches comes once.

        Raises:
            StoreError: nothing was embedded with this encoder.
        """
        if not len(image_ids):
            return [], np.zeros((0, 0), np.float32)
        wanted = pa.array(image_ids, pa.string()).unique()
        table = self._table_of(encoder)
        where = _owned(batch, encoder) + " AND " + ("patch > 0" if patch is None else f"patch = {int(patch)}")
        if len(wanted) <= _NAMED_AT_MOST:
            where += f" AND image_id IN ({', '.join(_text(i) for i in wanted.to_pylist())})"
        query = table.search().where(where).select([*_SORTED, "vector"]).limit(None)
        parts = list(_placed(query.to_batches(batch_size=_READ_AT_ONCE), wanted))
        return _in_order(parts, table.schema.field("vector").type.list_size)

    def search(self, vector: NDArray[np.float32], encoder: str, limit: int, batch: str | None = None) -> pa.Table:
        """The `limit` nearest whole images by cosine, exactly, best first: image_id, batch, similarity.

        An image that arrived in several batches comes once. `batch` narrows the search to one.

        Raises:
            StoreError: nothing was embedded with this encoder.
        """
        table = self._table_of(encoder)
        where = f"{_owned(batch, encoder)} AND patch = 0"
        asked = limit
        while True:
            query = table.search(vector.tolist()).distance_type("cosine").bypass_vector_index()
            found = query.where(where, prefilter=True).limit(asked).to_arrow()
            similarity = pc.subtract(pa.scalar(1.0, pa.float32()), found.column("_distance"))
            nearest = found.select(["image_id", "batch"]).append_column("similarity", similarity)
            nearest = nearest.sort_by([("similarity", "descending"), ("image_id", "ascending"), ("batch", "ascending")])
            nearest = nearest.take(np.sort(np.unique(nearest.column("image_id").to_numpy(), return_index=True)[1]))
            if nearest.num_rows >= limit or found.num_rows < asked:
                return nearest.slice(0, limit)
            asked *= 2

    def _table(self, layout: pa.Schema) -> Any:
        """The table for vectors of this length and type, made if need be."""
        of = layout.field("vector").type
        half = of.value_type == pa.float16()
        name = f"{_PREFIX}{of.list_size}{'_half' if half else ''}"
        made = vector_schema(of.list_size, "float16" if half else "float32").append(_GENERATION)
        return self._db.create_table(name, schema=made, exist_ok=True)

    def _table_of(self, encoder: str) -> Any:
        for name in self._db.list_tables().tables:
            if name.startswith(_PREFIX):
                table = self._db.open_table(name)
                if table.search().where(f"encoder = {_text(encoder)}").select(["patch"]).limit(1).to_arrow().num_rows:
                    return table
        raise StoreError(f"no vectors of {encoder}", "run: cvp run PROJECT --select images,embeddings")


# -- writing --------------------------------------------------------------------------------------


@contextmanager
def _worded(uri: str) -> Iterator[None]:
    """LanceDB's errors in our words."""
    try:
        yield
    except PipelineError:
        raise
    except (RuntimeError, OSError, ValueError) as error:  # as LanceDB happens to raise them
        what = str(error).strip().splitlines()[0]
        raise StoreUnavailable(
            f"cannot write vectors in {uri}: {what}", "check free space and permissions there"
        ) from error


def _checked(parts: Iterable[pa.Table], batch: str, encoder: str) -> Iterator[pa.Table]:
    for rows in parts:
        for column, owner in (("batch", batch), ("encoder", encoder)):
            others = set(rows.column(column).unique().to_pylist()) - {owner}
            if others:
                raise StoreError(f"vectors of {column} {min(others)!r} among those of {owner!r}", "give those of one")
        yield rows


def _filled(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    return (rows for rows in parts if rows.num_rows)


def _add(table: Any, parts: Iterable[pa.Table], generation: int) -> None:
    """Add rows in one commit, as they come."""
    layout, raised = table.schema, list[BaseException]()

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for rows in parts:
                stamped = rows.append_column(_GENERATION, pa.repeat(pa.scalar(generation, pa.int64()), rows.num_rows))
                yield from stamped.cast(layout).to_batches()
        except BaseException as error:  # LanceDB would give it back as words
            raised.append(error)
            raise

    try:
        table.add(pa.RecordBatchReader.from_batches(layout, batches()))
    except RuntimeError:
        if raised:
            raise raised[0] from None
        raise


def _newest(table: Any, mine: str) -> int:
    """The highest generation among rows, 0 where there are none."""
    query = table.search().where(mine).select(["generation"]).limit(None)
    found = (pc.max(rows.column("generation")).as_py() for rows in query.to_batches(batch_size=_READ_AT_ONCE))
    return max((generation for generation in found if generation is not None), default=0)


def _after(generation: int) -> int:
    """A later generation. The lower half is drawn, so that two runs which begin together have two."""
    return ((generation >> 32) + 1 << 32) | random.SystemRandom().getrandbits(32)


def _compact(table: Any) -> None:
    if table.stats()["fragment_stats"]["num_small_fragments"] > _LOOSE_AT_MOST:
        _tidy(table)


def _tidy(table: Any) -> None:
    """Few fragments, no old versions, and an index by which a batch is found without a look at all rows."""
    from lancedb.index import Bitmap

    try:
        table.optimize(cleanup_older_than=_KEPT)
        if not list(table.list_indices()):
            table.create_index("batch", config=Bitmap())
    except (RuntimeError, OSError, ValueError) as error:
        if "conflict" not in str(error).lower():  # another run is at the same: it will be done
            raise


# -- reading --------------------------------------------------------------------------------------

_SORTED = ["image_id", "patch", "batch", "generation"]


def _placed(batches: Iterable[pa.RecordBatch], wanted: pa.Array) -> Iterator[pa.Table]:
    """The rows whose image is `wanted`, with its place there, an eighth as many at a time: each look-up first hashes
    all that is wanted."""
    waiting: list[pa.RecordBatch] = []
    for rows in chain(batches, [None]):
        waiting += [] if rows is None else [rows]
        many = sum(part.num_rows for part in waiting) >= max(_LOOKED_UP, len(wanted) // 8)
        if waiting and (many or rows is None):
            some = pa.Table.from_batches(waiting)
            place = pc.index_in(some.column("image_id"), wanted)
            yield some.append_column("place", place).filter(pc.is_valid(place))
            waiting = []


def _in_order(parts: list[pa.Table], length: int) -> tuple[list[str], NDArray[np.float32]]:
    """Ids and vectors by place, then by patch; one batch's where there are several. `parts` are used up on the way.

    Of two generations, which are there while a batch is replaced, the newer one.
    """
    if not parts:
        return [], np.zeros((0, length), np.float32)
    directions = {"place": "ascending", "patch": "ascending", "batch": "ascending", "generation": "descending"}
    keys = pa.concat_tables([part.drop_columns("vector") for part in parts]).combine_chunks()
    order = pc.sort_indices(keys, list(directions.items())).to_numpy()
    places, patches = (keys.column(c).to_numpy()[order] for c in ("place", "patch"))
    first = np.ones(len(order), bool)
    first[1:] = (places[1:] != places[:-1]) | (patches[1:] != patches[:-1])
    chosen = order[first]
    to = np.full(len(order), -1)
    to[chosen] = np.arange(len(chosen))
    vectors = np.empty((len(chosen), length), np.float32)
    done = 0
    while parts:  # each is freed once its vectors are in their places
        some = parts.pop(0).column("vector").combine_chunks()
        rows = to[done : done + len(some)]
        vectors[rows[rows >= 0]] = _matrix(some)[rows >= 0]
        done += len(some)
    return keys.column("image_id").take(pa.array(chosen)).to_pylist(), vectors


def _matrix(vectors: pa.FixedSizeListArray) -> NDArray[np.floating]:
    flat: NDArray[np.floating] = vectors.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, vectors.type.list_size)


def _owned(batch: str | None, encoder: str) -> str:
    """The filter of one encoder's rows, of one batch if given."""
    return f"encoder = {_text(encoder)}" + (f" AND batch = {_text(batch)}" if batch is not None else "")


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
