from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from pipeline import schema
from pipeline.errors import DataError, StoreError
from pipeline.ids import content_hash
from pipeline.store import Store
from tests.pipeline.curated_rows import image_rows, quality_rows

ODD_NAMES = ["2026-11-23-north", "a/b", "ü ñ", "100%", "x=y", "a%2Fb", "..", "a'b\"c", "*", "?", "#1"]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings_ = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in settings_.items():
            patch.setenv(key, value)
        boto3.client("s3", endpoint_url=settings_["AWS_ENDPOINT_URL"], region_name="us-east-1").create_bucket(
            Bucket="tables"
        )
        yield "s3://tables"
    server.stop()


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.network)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store(str(tmp_path / "store"))
    return Store(f"{request.getfixturevalue('s3')}/{tmp_path.name}")


# -- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ODD_NAMES)
def test_batches_keep_their_names_and_rows(store: Store, batch: str) -> None:
    rows = quality_rows(["a", "b"], batch)
    store.write("quality", rows, batch)
    store.write("quality", quality_rows(["c"], "other"), "other")
    assert store.batches("quality") == sorted([batch, "other"])
    assert store.read("quality", batch).equals(rows)
    assert store.read("quality").num_rows == 3
    store.delete("quality", batch)
    assert store.read("quality").column("image_id").to_pylist() == ["c"]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_any_batch_name_stays_inside_its_table(name: str) -> None:
    store = Store("/nowhere")
    folder = Path(store.path("quality", name)).parent
    assert folder.parent == Path("/nowhere/quality") and folder.name not in (".", "..")


def test_a_write_replaces_and_says_so_in_its_receipt(store: Store) -> None:
    first, second = quality_rows(["a", "b"]), quality_rows(["c"])
    assert store.receipt("quality", "b") is None and not store.exists("quality")
    store.write("quality", first, "b", fingerprint="f1")
    receipt = store.write("quality", second, "b", fingerprint="f2", written_by={"run": "7"})
    assert store.receipt("quality", "b") == receipt
    assert (receipt.fingerprint, receipt.rows, receipt.content) == ("f2", 1, content_hash(second))
    assert receipt.written_by == {"run": "7"}
    assert store.read("quality").equals(second) and store.exists("quality")


def test_unbatched_tables_columns_and_empty_tables(store: Store) -> None:
    assert store.read_or_empty("splits").num_rows == 0
    with pytest.raises(StoreError, match="'splits' has not been made"):
        store.read("splits")
    store.write("splits", schema.table("splits").empty())
    assert store.read("splits").equals(schema.table("splits").empty()) and store.receipt("splits").rows == 0
    store.write("images", image_rows(["a"], attributes=[[("site", "x")]]), "b")
    assert store.read("images", columns=["attributes"]).to_pylist() == [{"attributes": [("site", "x")]}]


def test_rows_about_some_images_are_those_that_all_rows_have_of_them(store: Store) -> None:
    assert store.read_or_empty("quality", columns=["phash"]).schema.names == ["phash"]
    for batch, names in (("a", ["x", "y"]), ("b", ["z"]), ("c", ["y", "w"])):
        store.write("quality", quality_rows(names, batch=batch), batch)
    for wanted in (["y", "z", "gone"], {"w"}, []):
        assert store.read("quality", images=wanted).equals(schema.where_in(store.read("quality"), "image_id", wanted))
    some = store.read_or_empty("quality", ["c", "b"], ["image_id", "batch"], ["y", "z"])
    assert some.to_pylist() == [{"image_id": "y", "batch": "c"}, {"image_id": "z", "batch": "b"}]


def test_what_is_wrong_is_refused_and_the_old_table_stays(store: Store) -> None:
    store.write("quality", quality_rows(["a"]), "b")
    with pytest.raises(StoreError, match="repeat a key"):
        store.write("quality", quality_rows(["x", "x"]), "b")
    with pytest.raises(DataError, match="lacks the column"):
        store.write("quality", quality_rows(["x"]).drop_columns("phash"), "b")
    with pytest.raises(StoreError, match="needs a batch"):
        store.write("quality", quality_rows(["x"]))
    with pytest.raises(StoreError, match="not split into batches"):
        store.write("splits", schema.table("splits").empty(), "b")
    assert store.read("quality").column("image_id").to_pylist() == ["a"]


def test_a_store_travels_to_another_process(store: Store) -> None:
    store.write("quality", quality_rows(["a"]), "b")
    assert pickle.loads(pickle.dumps(store)).read("quality").num_rows == 1  # noqa: S301


# -- accidents ------------------------------------------------------------------------------------


def test_an_interrupted_write_leaves_the_old_table(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("quality", quality_rows(["a"]), "b", fingerprint="old")

    def fails(table: pa.Table, where: object, **options: object) -> None:
        pq.ParquetWriter(where, table.schema).write_table(table.slice(0, 1))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipeline.store.pq.write_table", fails)
        store.write("quality", quality_rows(["x", "y"]), "b", fingerprint="new")
    assert store.receipt("quality", "b").fingerprint == "old"
    assert store.read("quality").column("image_id").to_pylist() == ["a"]
    assert [Path(e.path).name for e in store.fs.get_file_info([store.path("quality", "b")])] == ["data.parquet"]


def _write_and_die(uri: str) -> None:
    def dies(self: Path, target: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = dies  # type: ignore[assignment, method-assign]
    Store(uri).write("quality", quality_rows(["x"]), "b")


def test_a_process_killed_before_the_swap_leaves_the_old_table(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("quality", quality_rows(["a"]), "b")
    child = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(str(tmp_path),))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert store.read("quality").column("image_id").to_pylist() == ["a"] and store.batches("quality") == ["b"]
    store.write("quality", quality_rows(["z"]), "b")
    assert store.read("quality").column("image_id").to_pylist() == ["z"]


def test_damage_anywhere_is_an_error_that_names_the_file_and_never_wrong_rows(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    generator = np.random.default_rng(0)
    rows = quality_rows([f"i{i}" for i in range(300)], sharpness=generator.random(300).tolist())
    store.write("quality", rows, "b")
    path = Path(store.path("quality", "b"))
    whole = path.read_bytes()
    for trial in range(150):
        data = bytearray(whole)
        if trial % 2:
            data = data[: generator.integers(0, len(data))]
        else:
            for at in generator.integers(0, len(data), 3):
                data[at] ^= 1 << generator.integers(0, 8)
        path.write_bytes(data)
        store.receipt("quality", "b")
        try:
            found = store.read("quality")
        except StoreError as error:
            assert "damaged" in error.what and str(path) in error.what
        else:
            assert found.num_rows == 300 and found.column("sharpness").equals(rows.column("sharpness"))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write"):
        Store(str(tmp_path / "file")).write("quality", quality_rows(["a"]), "b")
    with pytest.raises(StoreError, match="gs://"):
        Store("gs://bucket")


def test_a_file_of_an_earlier_version_lacks_columns(store: Store) -> None:
    rows = image_rows(["a"])
    for lacking in ("captured_at", "width"):
        store.write("images", rows, "b")
        old = pa.BufferOutputStream()
        pq.write_table(store.read("images").drop_columns(lacking), old)
        store.files.put(store.path("images", "b"), old.getvalue())
        if lacking == "width":
            for columns in (None, ["width", "uri"]):
                with pytest.raises(StoreError, match="older version: it lacks width"):
                    store.read("images", columns=columns)
        else:
            assert store.read("images")["captured_at"].to_pylist() == [None]
            found = store.read("images", columns=["image_id", "captured_at"])
            assert found.to_pylist() == [{"image_id": rows["image_id"][0].as_py(), "captured_at": None}]


# -- staging and the ledger -----------------------------------------------------------------------


def test_staging_keeps_finished_shards_until_it_is_cleared(store: Store) -> None:
    staging = store.staging("quality", "a/b", "f1")
    parts = [quality_rows([f"i{k}"]) for k in range(3)]
    assert staging.finished() == set()
    for k in (2, 0):
        staging.put(str(k), parts[k])
    again = pickle.loads(pickle.dumps(store.staging("quality", "a/b", "f1")))  # noqa: S301
    assert again.finished() == {"0", "2"} and store.staging("quality", "a/b", "f2").finished() == set()
    again.put("1", parts[1])
    assert pa.concat_tables([again.get(str(k)) for k in range(3)]).equals(pa.concat_tables(parts))
    store.staging("quality", "a/b", "f2").clear()
    assert again.finished() == set() and not store.exists("quality")
