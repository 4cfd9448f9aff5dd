"""Two runs over the same and neighbouring batches, an analyst in DuckDB and the UI, all at once, on disk and on S3."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import chain, count, takewhile
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import warehouse
from pipeline.store import Store
from pipeline.vectors import Vectors
from tests.pipeline.curated_rows import quality_rows
from tests.pipeline.test_vectors import rows, unit
from tests.weed import serving

ROWS = 60
BATCHES = ("shared", "a", "b")
ASKED = "SELECT batch, image_id FROM quality"


def commit(uri: str, who: str, own: str, enough: Event) -> None:
    """A run that makes the batch `shared` and its own one again and again, each time with other images."""
    store, vectors = Store(uri), Vectors(uri)
    for k in chain(takewhile(lambda _: not enough.is_set(), count()), ["last"]):
        for batch in ("shared", own):
            names = [f"{who}.{k}.{i}" for i in range(ROWS)]
            store.write("quality", quality_rows(names, batch), batch, fingerprint=f"{who}.{k}")
            vectors.replace_batch(batch, "e", [rows(names, unit(ROWS), batch, "e")])


def torn(names: list[str]) -> str:
    """What is wrong with a batch's images: they must be those of one commit, all of them, once each."""
    commits = {name.rpartition(".")[0] for name in names}
    return "" if len(commits) == 1 and len(set(names)) == len(names) == ROWS else f"{len(names)} of {sorted(commits)}"


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_readers_see_whole_commits_and_the_later_one_wins_whole(tmp_path: Path) -> None:
    store = seeded(str(tmp_path / "store"))
    views = warehouse.build(store)

    def analyst() -> pa.Table:
        warehouse.build(store)  # which is written anew while it is read
        return warehouse.query(views, ASKED)

    race(store.uri, analyst, 6)


@pytest.mark.network
@pytest.mark.timeout(280)
def test_on_s3_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "weed") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("CVP_HOME", str(tmp_path / "home"))  # where tables are copied to for DuckDB
        store = seeded("s3://tables/raced")
        race(store.uri, lambda: warehouse.query_store(store, ASKED), 3)


def seeded(uri: str) -> Store:
    """A store with a first commit of each batch."""
    names = [f"seed.0.{i}" for i in range(ROWS)]
    for batch in BATCHES:
        Store(uri).write("quality", quality_rows(names, batch), batch, fingerprint="seed.0")
        Vectors(uri).replace_batch(batch, "e", [rows(names, unit(ROWS), batch, "e")])
    return Store(uri)


def race(uri: str, analyst: Callable[[], pa.Table], enough_seen: int) -> None:
    """Two runs commit until readers have seen enough of them; what they saw, and what is there at the end, is whole."""
    context = get_context("spawn")
    enough = context.Event()
    runs = [context.Process(target=commit, args=(uri, who, who, enough)) for who in ("a", "b")]
    for run in runs:
        run.start()
    seen: Counter[str] = Counter()
    while any(run.is_alive() for run in runs):
        table = analyst()
        for batch in BATCHES:
            mine = table.filter(table.column("batch").to_numpy() == batch)
            assert not torn(mine.column("image_id").to_pylist()), "DuckDB"
            page = Store(uri).read("quality", batch).column("image_id").to_pylist()  # an asset's page
            assert not torn(page), "the UI"
            receipt = Store(uri).remembering().receipt("quality", batch)  # cvp status
            assert receipt is not None and receipt.rows == ROWS
            seen[page[0].rpartition(".")[0]] += 1
        if len(seen) >= enough_seen:
            enough.set()
    for run in runs:
        run.join()
        assert run.exitcode == 0
    assert len(seen) >= enough_seen, "a run ended by itself"
    for batch in BATCHES:
        names = Store(uri).read("quality", batch).column("image_id").to_pylist()
        last = {name.rpartition(".")[0] for name in names}
        assert not torn(names) and last <= {"a.last", "b.last"}
        receipt = Store(uri).receipt("quality", batch)
        assert receipt is not None and {receipt.fingerprint} == last
    stored = Vectors(uri)._db.open_table("vectors_8").to_arrow()
    for batch in BATCHES:
        mine = stored.filter(stored.column("batch").to_numpy() == batch)
        assert not torn(mine.column("image_id").to_pylist()), f"vectors of {batch}"
