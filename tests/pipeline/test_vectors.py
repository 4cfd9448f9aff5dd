from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pyarrow as pa
import pytest
from lancedb.table import LanceTable

from pipeline.errors import StoreError
from pipeline.vectors import Vectors, vector_schema

ENCODER = "e@1#it's"


def unit(n: int, dimensions: int = 8, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(n, dimensions)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def rows(
    names: Sequence[str], values: np.ndarray, batch: str = "b", encoder: str = ENCODER, patches: Sequence[int] | int = 0
) -> pa.Table:
    n = len(names)
    return pa.table(
        {
            "image_id": pa.array(list(names), pa.string()),
            "batch": pa.array([batch] * n, pa.string()),
            "encoder": pa.array([encoder] * n, pa.string()),
            "patch": pa.array([patches] * n if isinstance(patches, int) else list(patches), pa.int32()),
            "vector": pa.FixedSizeListArray.from_arrays(
                pa.array(np.ascontiguousarray(values, np.float32).ravel()), values.shape[1]
            ),
        },
        schema=vector_schema(values.shape[1]),
    )


def put(vectors: Vectors, batch: str, encoder: str, *parts: pa.Table) -> None:
    vectors.replace_batch(batch, encoder, parts)


def stored(vectors: Vectors, dimensions: int = 8) -> list[tuple[str, str]]:
    """Batch and image of every row that is there."""
    table = vectors._db.open_table(f"vectors_{dimensions}").to_arrow()
    return sorted(zip(table.column("batch").to_pylist(), table.column("image_id").to_pylist(), strict=True))


@pytest.fixture
def vectors(tmp_path: Path) -> Vectors:
    return Vectors(str(tmp_path))


def test_fetch_gives_each_image_its_vector_in_the_order_asked(vectors: Vectors) -> None:
    values = unit(50)
    names = [f"i{k}" for k in range(50)]
    put(vectors, "b", ENCODER, rows(names, values))
    asked = [int(k) for k in np.random.default_rng(1).permutation(50)[:20]]
    found, matrix = vectors.fetch(["gone", *(names[k] for k in asked), names[asked[0]]], ENCODER)
    assert found == [names[k] for k in asked]
    assert matrix.dtype == np.float32 and (matrix == values[asked]).all()


def test_many_ids_are_fetched_as_few_are(vectors: Vectors) -> None:
    values = unit(3000)
    names = [f"i{k}" for k in range(3000)]
    put(vectors, "b", ENCODER, rows(names, values))
    order = np.random.default_rng(0).permutation(3000)
    found, matrix = vectors.fetch([names[k] for k in order], ENCODER)
    assert found == [names[k] for k in order]
    assert (matrix == values[order]).all()


def test_what_is_looked_up_in_parts_is_the_same(vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.vectors._READ_AT_ONCE", 7)
    monkeypatch.setattr("pipeline.vectors._LOOKED_UP", 10)
    names, values = [f"i{k}" for k in range(60)], unit(60)
    put(vectors, "b", ENCODER, rows(names[:40], values[:40]))
    put(
        vectors, "a", ENCODER, rows(names[30:], values[::-1][:30], "a")
    )  # 30 to 39 are in both: the first batch's counts
    kept = np.concatenate([values[:30], values[::-1][:30]])
    asked = np.random.default_rng(2).permutation(60)
    found, matrix = vectors.fetch([names[k] for k in asked], ENCODER)
    assert found == [names[k] for k in asked]
    assert (matrix == kept[asked]).all()
    assert vectors.fetch(["gone"], ENCODER)[1].shape == (0, 8)


def test_windows_come_image_by_image_and_then_by_patch(vectors: Vectors) -> None:
    values = unit(6)
    put(vectors, "b", ENCODER, rows(["a", "a", "a", "z", "z", "z"], values, patches=[2, 0, 1, 1, 0, 2]))
    found, matrix = vectors.fetch(["z", "a"], ENCODER, None)
    assert found == ["z", "z", "a", "a"]
    assert (matrix == values[[3, 5, 2, 0]]).all()
    assert vectors.fetch(["z", "a"], ENCODER)[0] == ["z", "a"]


def test_replacing_a_batch_drops_what_is_stale_and_nothing_else(vectors: Vectors) -> None:
    first, again = unit(4, seed=1), unit(2, seed=2)
    put(vectors, "b", ENCODER, rows(["1", "2", "3", "4"], first))
    put(vectors, "c", ENCODER, rows(["5"], first[:1], batch="c"))
    put(vectors, "b", "other@1#0", rows(["1"], first[:1], encoder="other@1#0"))
    put(vectors, "b", ENCODER, rows(["3", "9"], again))
    found, matrix = vectors.fetch(["1", "2", "3", "4", "5", "9"], ENCODER)
    assert found == ["3", "5", "9"]
    assert (matrix == np.stack([again[0], first[0], again[1]])).all()
    assert vectors.fetch(["1"], "other@1#0")[0] == ["1"]
    put(vectors, "b", ENCODER, vector_schema(8).empty_table())
    assert vectors.fetch(["3", "5", "9"], ENCODER)[0] == ["5"]


def test_a_photo_of_two_batches_is_kept_for_both_and_fetched_once(vectors: Vectors) -> None:
    value = unit(1)
    for batch in ("b", "c"):
        put(vectors, batch, ENCODER, rows(["same"], value, batch=batch))
    assert vectors.fetch(["same"], ENCODER)[0] == ["same"]
    put(vectors, "b", ENCODER, vector_schema(8).empty_table())
    assert vectors.fetch(["same"], ENCODER)[0] == ["same"]


def test_writing_twice_changes_nothing(vectors: Vectors) -> None:
    batch = rows(["a", "b"], unit(2))
    for _ in range(2):
        put(vectors, "b", ENCODER, batch)
    found, matrix = vectors.fetch(["a", "b"], ENCODER)
    assert found == ["a", "b"] and (matrix == unit(2)).all()


def test_search_is_brute_force_cosine(vectors: Vectors) -> None:
    values = unit(300, 16)
    names = [f"i{k:03d}" for k in range(300)]
    put(vectors, "b", ENCODER, rows(names, values), rows(["patch"], values[7:8], patches=1))
    put(vectors, "b", "other@1#0", rows(["foreign"], values[7:8], encoder="other@1#0"))
    found = vectors.search(values[7], ENCODER, 10)
    cosines = values @ values[7]
    best = np.argsort(-cosines, kind="stable")[:10]
    assert found.column("image_id").to_pylist() == [names[k] for k in best]
    np.testing.assert_allclose(found.column("similarity").to_numpy(), cosines[best], atol=1e-6)


@pytest.mark.parametrize("name", ["it's", "a' OR '1'='1", "100%_", 'double "quoted"', "ünï/ ;--", "back\\slash"])
def test_any_name_is_only_a_name(vectors: Vectors, name: str) -> None:
    values = unit(2)
    put(vectors, "plain", "plain", rows(["x"], values[:1], "plain", "plain"))
    put(vectors, name, name, rows([name], values[1:], name, name))
    found, matrix = vectors.fetch([name, "x"], name)
    assert found == [name] and (matrix == values[1:]).all()
    put(vectors, name, name, vector_schema(8).empty_table())
    assert vectors.fetch(["x"], "plain")[0] == ["x"]
    with pytest.raises(StoreError, match="no vectors"):
        vectors.fetch([name], name)


def test_what_was_never_embedded_is_an_error_and_what_is_missing_is_left_out(vectors: Vectors) -> None:
    with pytest.raises(StoreError, match="no vectors of nobody"):
        vectors.fetch(["a"], "nobody")
    assert vectors.fetch([], "nobody")[0] == []
    put(vectors, "b", ENCODER, rows(["a"], unit(1)))
    found, matrix = vectors.fetch(["b"], ENCODER, None)
    assert found == [] and matrix.shape == (0, 8)


def test_rows_of_another_batch_are_refused(vectors: Vectors) -> None:
    with pytest.raises(StoreError, match="batch 'c'"):
        put(vectors, "b", ENCODER, rows(["a"], unit(1), batch="c"))


def test_encoders_of_several_lengths_live_side_by_side(vectors: Vectors) -> None:
    put(vectors, "b", "short", rows(["a"], unit(1, 8), encoder="short"))
    put(vectors, "b", "long", rows(["a"], unit(1, 16), encoder="long"))
    assert vectors.fetch(["a"], "short")[1].shape == (1, 8)
    assert vectors.fetch(["a"], "long")[1].shape == (1, 16)


def test_batches_written_at_the_same_time_all_arrive(tmp_path: Path) -> None:
    put(Vectors(str(tmp_path)), "b", ENCODER, rows(["seed"], unit(1)))

    def write(batch: str) -> None:
        names = [f"{batch}{k}" for k in range(20)]
        put(Vectors(str(tmp_path)), batch, ENCODER, rows(names, unit(20), batch))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, [f"t{k}" for k in range(4)]))
    wanted = [f"t{k}{i}" for k in range(4) for i in range(20)]
    assert Vectors(str(tmp_path)).fetch(wanted, ENCODER)[0] == wanted


def test_many_small_commits_are_compacted(vectors: Vectors) -> None:
    for k in range(40):
        put(vectors, f"b{k}", ENCODER, rows([f"i{k}"], unit(1, seed=k), batch=f"b{k}"))
    fragments = vectors._db.open_table("vectors_8").stats()["fragment_stats"]["num_small_fragments"]
    assert fragments <= 33
    assert len(vectors.fetch([f"i{k}" for k in range(40)], ENCODER)[0]) == 40


def test_a_batch_comes_in_parts_and_one_that_breaks_off_leaves_what_was_there(vectors: Vectors) -> None:
    values = unit(9)
    whole = rows([f"i{k}" for k in range(9)], values)
    put(vectors, "b", ENCODER, whole.slice(0, 4), whole.slice(4, 0), whole.slice(4))
    assert vectors.fetch([f"i{k}" for k in range(9)], ENCODER)[0] == [f"i{k}" for k in range(9)]

    def breaks() -> Iterator[pa.Table]:
        yield rows(["new"], values[:1])
        raise StoreError("the shard is lost", "run again")

    with pytest.raises(StoreError, match="the shard is lost"):
        vectors.replace_batch("b", ENCODER, breaks())
    assert stored(vectors) == [("b", f"i{k}") for k in range(9)]


def test_what_a_run_killed_between_its_two_commits_leaves_is_read_once_and_then_replaced(
    vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = unit(2, seed=1), unit(2, seed=2)
    put(vectors, "b", ENCODER, rows(["a", "gone"], old))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LanceTable, "delete", raising)
        put(vectors, "b", ENCODER, rows(["a", "came"], new))
    assert len(stored(vectors)) == 4
    found, matrix = vectors.fetch(["a", "came"], ENCODER)
    assert found == ["a", "came"] and (matrix == new).all()
    put(vectors, "b", ENCODER, rows(["a", "came"], new))
    assert stored(vectors) == [("b", "a"), ("b", "came")]


def raising(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("known", [False, True])
def test_of_runs_over_the_same_batch_one_wins_whole(tmp_path: Path, known: bool) -> None:
    put(Vectors(str(tmp_path)), "b" if known else "other", ENCODER, rows(["seed"], unit(1), "b" if known else "other"))
    start = Barrier(3)

    def write(who: int) -> None:
        mine = Vectors(str(tmp_path))
        start.wait()
        put(mine, "b", ENCODER, rows([f"{who}-{k}" for k in range(300)], unit(300)))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    of_b = [image for batch, image in stored(Vectors(str(tmp_path))) if batch == "b"]
    assert len(of_b) == 300 and len({image[0] for image in of_b}) == 1


def test_the_vector_furthest_from_the_unit_sphere_is_found_in_its_batch_only(vectors: Vectors) -> None:
    values = unit(20_000, 4)
    values[12_345] *= 1.5
    put(vectors, "b", ENCODER, rows([f"i{k}" for k in range(20_000)], values))
    put(vectors, "c", ENCODER, rows(["fine"], unit(1, 4), "c"))
    assert vectors.furthest_from_unit("b", ENCODER) == pytest.approx(0.5, abs=1e-6)
    assert vectors.furthest_from_unit("c", ENCODER) < 1e-6 and vectors.furthest_from_unit("none", ENCODER) == 0


def test_what_lancedb_cannot_write_is_told_with_a_remedy(vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("lance error: No space left on device (os error 28)")

    monkeypatch.setattr(LanceTable, "add", full)
    with pytest.raises(StoreError, match=r"cannot write vectors in .*No space left") as raised:
        put(vectors, "b", ENCODER, rows(["a"], unit(1)))
    assert "free space" in raised.value.remedy


def test_tidying_leaves_few_fragments_no_old_version_and_the_same_vectors(
    vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(20):
        put(vectors, f"b{k}", ENCODER, rows([f"i{k}"], unit(1, seed=k), batch=f"b{k}"))
    put(vectors, "b3", ENCODER, rows(["i3", "new"], unit(2, seed=99), batch="b3"))
    before = vectors.fetch([f"i{k}" for k in range(20)], ENCODER)
    vectors.tidy()
    table = vectors._db.open_table("vectors_8")
    assert table.stats()["fragment_stats"]["num_fragments"] == 1 and len(table.list_versions()) > 20
    monkeypatch.setattr("pipeline.vectors._KEPT", timedelta(milliseconds=1))
    vectors.tidy()
    assert len(vectors._db.open_table("vectors_8").list_versions()) <= 2
    after = vectors.fetch([f"i{k}" for k in range(20)], ENCODER)
    assert after[0] == before[0] and (after[1] == before[1]).all()
    Vectors(str(vectors._uri) + "/nothing").tidy()


def test_with_the_index_on_batches_everything_is_found_as_without_it(tmp_path: Path) -> None:
    """Batches that are indexed, that came after, that were replaced in part or dropped since: all as brute force."""
    plain, indexed = Vectors(str(tmp_path / "plain")), Vectors(str(tmp_path / "indexed"))
    values = unit(400, 16)
    names = [f"i{k:03d}" for k in range(400)]

    def write(batch: int, which: slice) -> None:
        for each in (plain, indexed):
            put(each, f"b{batch}", ENCODER, rows(names[which], values[which], f"b{batch}"))

    for batch in range(30):
        write(batch, slice(10 * batch, 10 * batch + 10))
    indexed.tidy()
    (index,) = indexed._db.open_table("vectors_16").list_indices()
    assert index.columns == ["batch"] and index.num_indexed_rows == 300
    write(30, slice(300, 320))
    write(4, slice(40, 45))
    write(5, slice(50, 50))
    write(6, slice(320, 330))
    for _ in range(2):
        assert stored(indexed, 16) == stored(plain, 16)
        for batch in (0, 4, 5, 6, 30):
            (found, matrix), (known, same) = (v.fetch(names, ENCODER, batch=f"b{batch}") for v in (indexed, plain))
            assert found == known and (matrix == same).all()
            nearest = [v.search(values[41], ENCODER, 7, f"b{batch}") for v in (indexed, plain)]
            assert nearest[0].equals(nearest[1])
        assert indexed.search(values[41], ENCODER, 7).equals(plain.search(values[41], ENCODER, 7))
        indexed.tidy()
    where = f"encoder = '{ENCODER.replace(chr(39), chr(39) * 2)}' AND batch = 'b6'"
    assert "ScalarIndexQuery" in indexed._db.open_table("vectors_16").search().where(where).explain_plan()


def test_tidying_disturbs_neither_readers_nor_writers(tmp_path: Path) -> None:
    names = {f"b{k}": [f"b{k}-{i}" for i in range(20)] for k in range(4)}
    for batch in names:
        put(Vectors(str(tmp_path)), batch, ENCODER, rows(names[batch], unit(20), batch))
    done = Event()

    def write(batch: str) -> None:
        for seed in range(8):
            put(Vectors(str(tmp_path)), batch, ENCODER, rows(names[batch], unit(20, seed=seed), batch))

    def tidy() -> None:
        while not done.is_set():
            Vectors(str(tmp_path)).tidy()

    def read() -> set[int]:
        wanted, seen = [image for batch in names.values() for image in batch], set()
        while not done.is_set():
            seen.add(len(Vectors(str(tmp_path)).fetch(wanted, ENCODER)[0]))
        return seen

    with ThreadPoolExecutor(7) as pool:
        others = [pool.submit(tidy), pool.submit(tidy), pool.submit(read)]
        try:
            list(pool.map(write, names))
        finally:
            done.set()
        assert [other.result() for other in others] == [None, None, {80}]
    assert stored(Vectors(str(tmp_path))) == [(b, i) for b in names for i in sorted(names[b])]
