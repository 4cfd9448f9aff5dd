from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.ahead import ahead
from pipeline.compute import AheadWorker, Compute, map_batches, on_ray
from pipeline.errors import DataError, PipelineError
from pipeline.store import Staging, Store
from tests.pipeline import compute_work
from tests.pipeline.compute_work import Dies, Squares, Unmade

MODES = ["inline", "local", pytest.param("auto", marks=pytest.mark.ray)]


class Overlaps(AheadWorker):
    """Answers a batch only when the first row of the next one has been read."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.seen = {n: threading.Event() for n in range(last + 1)}

    def read(self, rows: pa.Table) -> Iterator[int]:
        return ahead(self.look, rows.column("n").to_pylist(), depth=2, threads=1)

    def look(self, n: int) -> int:
        self.seen[n].set()
        return n

    def answer(self, rows: pa.Table, read: Iterable[int]) -> pa.Table:
        found = list(read)
        following = min(found[-1] + 1, self.last)
        assert self.seen[following].wait(20), f"nothing was read while the model was busy with {found}"
        return pa.table({"n": found, "asked": rows.column("n")})


def numbers(n: int) -> pa.Table:
    return pa.table({"n": pa.array(range(n), pa.int64())})


@pytest.fixture(autouse=True)
def _travelling(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ray's actors cannot import tests, so their workers travel by value."""
    if "ray" not in request.keywords:
        yield
        return
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(compute_work)
    yield
    cloudpickle.unregister_pickle_by_value(compute_work)


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Store(str(tmp_path / "store")).staging("detections", "b", "f")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "seen"
    path.mkdir()
    return path


def seen(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


def places(shards: set[str]) -> set[int]:
    """Places in the input of shards by name."""
    return {int(name.partition("-")[0]) for name in shards}


@pytest.mark.parametrize("mode", MODES)
def test_rows_come_back_in_order_and_batches_have_their_size(mode: str, folder: Path, staging: Staging) -> None:
    told: list[tuple[int, int]] = []
    compute = Compute(mode, 2, 3, 2, lambda done, total: told.append((done, total)))
    found = map_batches(Squares, {"folder": str(folder)}, numbers(20), compute, staging)
    assert found.column("square").to_pylist() == [n * n for n in range(20)]
    assert seen(folder) == [0, 3, 6, 9, 12, 15, 18]
    assert told[-1] == (20, 20) and [t for t, _ in told] == sorted(t for t, _ in told)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 50), st.integers(1, 9), st.integers(1, 4))
def test_any_division_gives_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, n: int, batch_size: int, per_shard: int
) -> None:
    root = tmp_path_factory.mktemp("any")
    work = Store(str(root)).staging("detections", "b", "f")
    found = map_batches(Squares, {"folder": str(root)}, numbers(n), Compute("inline", 1, batch_size, per_shard), work)
    assert found.column("square").to_pylist() == [i * i for i in range(n)]


def test_the_next_batch_is_read_while_the_model_is_busy(staging: Staging) -> None:
    found = map_batches(Overlaps, {"last": 10}, numbers(11), Compute(batch_size=3, batches_per_shard=9), staging)
    assert found["n"].to_pylist() == found["asked"].to_pylist() == list(range(11))


@pytest.mark.parametrize("mode", MODES)
def test_no_rows_give_an_empty_table_of_the_right_shape(mode: str, folder: Path, staging: Staging) -> None:
    found = map_batches(Squares, {"folder": str(folder)}, numbers(0), Compute(mode), staging)
    assert found.num_rows == 0 and found.column_names == ["n", "square"]


@pytest.mark.parametrize("mode", ["inline", "local"])
def test_what_a_worker_raises_reaches_the_caller_and_a_rerun_does_only_the_rest(
    mode: str, folder: Path, staging: Staging
) -> None:
    compute = Compute(mode, 1, 2, 2)
    with pytest.raises(DataError, match="cannot do 9"):
        map_batches(Squares, {"folder": str(folder), "fail_at": 9}, numbers(12), compute, staging)
    assert places(staging.finished()) >= {0, 1}
    before = set(seen(folder))
    for path in folder.iterdir():
        path.unlink()
    found = map_batches(Squares, {"folder": str(folder)}, numbers(12), compute, staging)
    assert found.column("square").to_pylist() == [n * n for n in range(12)]
    again = set(seen(folder))
    assert 8 in again and not again & {0, 2, 4, 6} and before >= {0, 2, 4, 6}


@pytest.mark.parametrize("mode", ["inline", "local", pytest.param("auto", marks=pytest.mark.ray)])
def test_rows_that_kill_their_worker_are_left_out_with_a_reason(mode: str, folder: Path, staging: Staging) -> None:
    """Native code that dies on a row: the rest of the batch is done, in the same call, in the right order."""
    failed: list[pa.Table] = []
    compute = Compute(mode, 2, 4, 2, failed=failed.append)
    options = {"folder": str(folder), "die_at": 13}
    if mode == "inline":  # the first try takes the whole process along, as a Dagster run would be
        child = get_context("fork").Process(target=map_batches, args=(Squares, options, numbers(24), compute, staging))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL and places(staging.finished()) == {0}
        assert places(staging.begun()) == {1}
    found = map_batches(Squares, options, numbers(24), compute, staging)
    assert found.column("n").to_pylist() == [n for n in range(24) if n != 13]
    assert found.column("square").to_pylist() == [n * n for n in range(24) if n != 13]
    assert [f.column("reason").to_pylist() for f in failed] == [["killed the process that worked on it (SIGKILL)"]]
    told = failed.copy()
    assert map_batches(Squares, options, numbers(24), compute, staging).equals(found)  # nothing is done again
    assert failed[1:] == told


@pytest.mark.parametrize("size", [1, 3, 4, 50])  # finer, across, as before, all at once
def test_a_killed_run_goes_on_in_batches_of_another_size(size: int, folder: Path, staging: Staging) -> None:
    """No row is lost or doubled, nor a failure told twice, and shards that are cut as before are not done again."""
    options = {"folder": str(folder), "die_at": 13}
    for _ in range(2):  # over the second shard, then in the middle of the third, with the killer noted as failed
        child = get_context("fork").Process(
            target=map_batches,
            args=(Squares, options, numbers(24), Compute(batch_size=4, batches_per_shard=2), staging),
        )
        child.start()
        child.join()
        options["die_once_at"] = 20
    assert child.exitcode == -signal.SIGKILL and places(staging.finished()) == {0, 1}
    for path in folder.glob("0*"):
        path.unlink()
    failed: list[pa.Table] = []
    compute = Compute("local", 1, size, 2, failed=failed.append)
    found = map_batches(Squares, options, numbers(24), compute, staging)
    assert found.column("square").to_pylist() == [n * n for n in range(24) if n != 13]
    assert sum(f.num_rows for f in failed) == 1
    assert (min(int(path.name) for path in folder.glob("0*")) < 16) == (size != 4)


@pytest.mark.parametrize("mode", ["local", pytest.param("auto", marks=pytest.mark.ray)])
def test_a_worker_that_dies_of_itself_is_no_image_s_fault(mode: str, staging: Staging) -> None:
    with pytest.raises(PipelineError, match="Dies dies as soon as it is made") as raised:
        map_batches(Dies, {}, numbers(12), Compute(mode, 1, 2, 2), staging)
    assert "cvp doctor" in raised.value.remedy and not staging.finished()


@pytest.mark.parametrize("mode", ["inline", "local"])
def test_one_kill_costs_one_shard_and_no_row(mode: str, folder: Path, staging: Staging) -> None:
    """A worker killed from outside, once: its shard is done again, nothing else, and no row is blamed."""
    failed: list[pa.Table] = []
    compute = Compute(mode, 2, 2, 3, failed=failed.append)
    options = {"folder": str(folder), "die_once_at": 9}
    if mode == "inline":
        child = get_context("fork").Process(target=map_batches, args=(Squares, options, numbers(30), compute, staging))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    found = map_batches(Squares, options, numbers(30), compute, staging)
    assert found.column("square").to_pylist() == [n * n for n in range(30)] and not failed
    twice = [int(path.name) for path in folder.iterdir() if path.name.isdigit() and len(path.read_text().split()) > 1]
    assert sorted(twice) == [6]


def test_damaged_and_missing_shards_are_done_again_and_no_others(folder: Path, staging: Staging) -> None:
    compute = Compute("inline", 1, 2, 2)
    whole = map_batches(Squares, {"folder": str(folder)}, numbers(20), compute, staging)
    files = sorted(Path(staging._folder).glob("*.parquet"))
    files[1].write_bytes(files[1].read_bytes()[:-30])
    files[2].write_bytes(b"")
    files[3].unlink()
    flipped = bytearray(files[4].read_bytes())
    flipped[20] ^= 0xFF
    files[4].write_bytes(flipped)
    for path in folder.iterdir():
        path.unlink()
    again = map_batches(Squares, {"folder": str(folder)}, numbers(20), compute, staging)
    assert again.equals(whole) and seen(folder) == [4, 6, 8, 10, 12, 14, 16, 18]


def test_a_run_whose_shards_are_swept_away_ends_with_every_row(folder: Path, staging: Staging) -> None:
    """Another run of the same work commits and clears the staging while this one is at it."""
    swept: list[int] = []

    def sweep(done: int, total: int) -> None:
        if done in (8, 12) and done not in swept:
            swept.append(done)
            staging.clear()

    found = map_batches(Squares, {"folder": str(folder)}, numbers(20), Compute("inline", 1, 2, 2, sweep), staging)
    assert swept == [8, 12] and found.column("square").to_pylist() == [n * n for n in range(20)]


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_on_ray_too_a_worker_s_own_errors_arrive_and_finished_shards_stay(folder: Path, staging: Staging) -> None:
    """More failures than there are CPUs: what failed must not keep any of them."""
    compute = Compute("auto", 1, 2, 2)
    with pytest.raises(DataError, match="cannot be made"):
        map_batches(Unmade, {}, numbers(12), compute, staging)
    for _ in range(4):
        with pytest.raises(DataError, match="cannot do 9") as raised:
            map_batches(Squares, {"folder": str(folder), "fail_at": 9}, numbers(12), compute, staging)
    assert raised.value.remedy == "leave it out"
    done = places(staging.finished())
    found = map_batches(Squares, {"folder": str(folder)}, numbers(12), compute, staging)
    assert done <= {0, 1} and found.column("square").to_pylist() == [n * n for n in range(12)]


def test_a_cluster_whose_server_for_us_died_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    died = ConnectionAbortedError("Starting Ray client server failed. See ray_client_server_23001.err")
    answers: list[Exception | None] = [died, died, None]
    monkeypatch.setattr(on_ray, "_knock", lambda address: None)
    monkeypatch.setattr(on_ray, "_connected", {})

    def init(**options: object) -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    monkeypatch.setattr(ray, "init", init)
    assert on_ray.connect_ray("ray://head:10001") is ray and not answers
    answers += [died] * 9
    with pytest.raises(PipelineError, match="does not take us in: Starting Ray client server failed"):
        on_ray.connect_ray("ray://other:10001")
    assert 0 < len(answers) < 9
    answers[:] = [ConnectionError("versions differ"), died]
    with pytest.raises(PipelineError, match="versions differ"):
        on_ray.connect_ray("ray://another:10001")
    assert answers == [died]


def test_everything_done_makes_no_worker(folder: Path, staging: Staging) -> None:
    first = map_batches(Squares, {"folder": str(folder)}, numbers(5), Compute(batch_size=2), staging)
    again = map_batches(Squares, {"no_such_option": 1}, numbers(5), Compute(batch_size=2), staging)
    assert again.equals(first)


def test_another_fingerprint_starts_afresh_and_clearing_forgets(tmp_path: Path, folder: Path) -> None:
    store = Store(str(tmp_path / "store"))
    old, new = store.staging("detections", "b", "old"), store.staging("detections", "b", "new")
    map_batches(Squares, {"folder": str(folder)}, numbers(4), Compute(batch_size=2), old)
    assert new.finished() == set() and places(old.finished()) == {0}
    new.clear()
    assert old.finished() == set()


def test_a_row_that_fails_no_more_is_not_told_as_failed(folder: Path, staging: Staging) -> None:
    failed: list[pa.Table] = []
    compute = Compute("local", 1, 4, 2, failed=failed.append)
    options: dict[str, object] = {"folder": str(folder), "die_at": 5}
    assert map_batches(Squares, options, numbers(8), compute, staging).num_rows == 7 and len(failed) == 1
    (shard,) = staging.finished()
    staging._store.files.put(staging._path(shard), b"damaged")
    options = {"folder": str(folder)}
    assert map_batches(Squares, options, numbers(8), compute, staging).num_rows == 8 and len(failed) == 1
