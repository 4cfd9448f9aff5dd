"""S3 against a real server: one configuration for every client, whole objects, no lost writes."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assets.resources import s3_resource
from pipeline import doctor, s3
from pipeline.errors import StoreError, StoreUnavailable
from pipeline.files import LocalFiles, S3Files, Superseded
from pipeline.ids import image_id
from pipeline.images import Reader, UnusableImage
from pipeline.sources import open_source
from pipeline.store import Store
from pipeline.vectors import Vectors
from tests.pipeline.adding import add_rows
from tests.pipeline.curated_rows import quality_rows
from tests.pipeline.test_vectors import rows as vector_rows
from tests.pipeline.test_vectors import unit
from tests.weed import Weed, serving

pytestmark = [pytest.mark.network, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    with serving(tmp_path_factory.mktemp("weed")) as started, pytest.MonkeyPatch.context() as patch:
        _enter(started.environment, patch)
        yield started


def _enter(environment: dict[str, str], patch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        patch.delenv(name)
    for name, value in environment.items():
        patch.setenv(name, value)


@pytest.fixture
def store(server: Weed, request: pytest.FixtureRequest) -> Store:
    return Store(f"s3://tables/{request.node.name[:60]}")


# -- one configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize("from_profile", [False, True])
def test_every_client_takes_the_same_settings(
    server: Weed, from_profile: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the environment, or all of it from one profile of ~/.aws/config."""
    if from_profile:
        keys = {key.lower(): value for key, value in server.environment.items()}
        lines = ["[profile lab]", "region = us-east-1", f"endpoint_url = {server.url}"]
        lines += [f"{name} = {keys[name]}" for name in ("aws_access_key_id", "aws_secret_access_key")]
        (tmp_path / "config").write_text("\n".join(lines))
        _enter({"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_PROFILE": "lab"}, monkeypatch)
    root = f"s3://tables/configured-{from_profile}"
    store = Store(root)
    store.write("quality", quality_rows(["a"]), "b")  # boto3
    assert store.read("quality").num_rows == 1  # Arrow
    Vectors(root).replace_batch("b", "e", [vector_rows(["a"], unit(1), "b", "e")])  # LanceDB
    assert Vectors(root).fetch(["a"], "e")[0] == ["a"]
    listed = s3_resource().get_client().list_objects_v2(Bucket="tables", Prefix=f"configured-{from_profile}/quality")
    assert listed["KeyCount"] == 1
    assert "test-secret" not in repr(s3.settings()) + str(s3_resource())


def test_many_files_are_read_side_by_side(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes 50 ms to answer is waited for by many at once; rows come in order all the same."""
    batches = [f"b{k:02d}" for k in range(32)]
    for batch in batches:
        store.write("quality", quality_rows([f"i-{batch}"], batch=batch), batch)
    plain, asked = s3.get, list[float]()

    def slow(*given: Any, **part: str) -> bytes:
        asked.append(time.monotonic())
        time.sleep(0.05)
        return plain(*given, **part)

    monkeypatch.setattr(s3, "get", slow)
    began = time.monotonic()
    assert store.read("quality").column("batch").to_pylist() == batches
    assert len(asked) == 32 and time.monotonic() - began < 32 * 0.05
    copies = store.local_files("quality")
    assert len(copies) == 32 and len(asked) == 64


def test_a_profile_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _enter({"AWS_PROFILE": "nobody"}, monkeypatch)
    with pytest.raises(StoreError, match="nobody"):
        Store("s3://tables/x")


def test_doctor_tries_the_store_and_does_not_wait_for_a_server_that_is_not_there(
    server: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CVP_STORE", "s3://tables/doctor")
    assert _of_the_store() == ("ok", "s3://tables/doctor can be written")
    assert s3.client().list_objects_v2(Bucket="tables", Prefix="doctor")["KeyCount"] == 0
    with monkeypatch.context() as patch, socket.socket() as closed:
        patch.setattr(LocalFiles, "put", lambda self, path, data, over: Path(path).write_bytes(data))
        patch.setenv("CVP_STORE", str(server.folder))
        assert _of_the_store()[0] == "warning"  # such a server is known to lose rows where runs race
        closed.bind(("127.0.0.1", 0))
        patch.setenv("CVP_STORE", "s3://tables/doctor")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        start = time.monotonic()
        assert _of_the_store()[0] == "broken" and time.monotonic() - start < 20


def _of_the_store() -> tuple[str, str]:
    return next((f.state, f.found) for f in doctor.examine() if f.subject == "store")


# -- whole objects --------------------------------------------------------------------------------


def test_large_objects_go_up_in_parts_and_appear_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).bytes(40 << 20)
    path = f"{store.root}/large"
    store.files.put(path, b"old")
    real, sent = s3.client(), []

    class Breaks:
        """A client whose third part never arrives."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def upload_part(self, **part: Any) -> Any:
            sent.append(part["PartNumber"])
            if part["PartNumber"] == 3:
                raise KeyboardInterrupt
            return real.upload_part(**part)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(s3, "client", Breaks)
        store.files.put(path, data)
    assert sorted(sent) == [1, 2, 3] and store.fs.open_input_file(path).read() == b"old"
    assert "Uploads" not in real.list_multipart_uploads(Bucket="tables", Prefix=path.partition("/")[2])
    store.files.put(path, data)
    assert store.fs.open_input_file(path).read() == data


@pytest.mark.parametrize("size", [3, 17 << 20])
def test_a_conditional_write_wins_once(store: Store, size: int) -> None:
    path = f"{store.root}/once"
    store.files.put(path, b"1" * size, over=None)
    with pytest.raises(Superseded, match="another run"):
        store.files.put(path, b"2" * size, over=None)
    first = store.files.stamp(path)
    store.files.put(path, b"3" * size, over=first)
    with pytest.raises(Superseded):
        store.files.put(path, b"4" * size, over=first)
    assert store.fs.open_input_file(path).read() == b"3" * size


@pytest.mark.parametrize("size", [3, 17 << 20])
def test_a_write_whose_answer_was_lost_is_ours(store: Store, size: int) -> None:
    """The client tries again and is refused, for the first try had succeeded: that is no other run."""
    path = f"{store.root}/lost"
    store.files.put(path, b"x" * size, over=None)
    store.files.put(path, b"x" * size, over=None)


# -- races ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_runs_that_add_to_one_table_lose_no_row(server: Weed, where: str, tmp_path: Path) -> None:
    uri = str(tmp_path) if where == "disk" else "s3://tables/added"
    context = multiprocessing.get_context("spawn")
    runs = [context.Process(target=add_rows, args=(uri, who, 10)) for who in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    found = Store(uri).read("splits").column("image_id").to_pylist()
    assert sorted(found) == sorted(f"{who}-{k}" for who in range(3) for k in range(10))


# -- listing --------------------------------------------------------------------------------------


def test_one_flat_listing_says_what_a_listing_a_batch_says(server: Weed) -> None:
    client = s3.client()
    names = [f"{b}/{i:04d}.jpg" for b in ("a", "a-b", "a.b", "default", "z") for i in range(3)]
    names += [f"big/{i:04d}.jpg" for i in range(1100)] + ["loose.jpg", "README.md", ".hidden/x.jpg", "z/deep/1.jpg"]
    for name in names:
        client.put_object(Bucket="tables", Key=f"photos/{name}", Body=name.encode())
    source = open_source("s3://tables/photos")
    assert source.batches() == ["a", "a-b", "a.b", "big", "default", "z"]
    asked: list[object] = []
    client.meta.events.register("before-call.s3.ListObjectsV2", lambda **call: asked.append(call))
    assert source.fingerprints() == {batch: source.fingerprint(batch) for batch in source.batches()}
    flat = len(asked)
    source.fingerprints()
    assert len(asked) - flat == 2  # pages of a thousand, whatever the number of batches
    file = source.files("big")[7]
    assert image_id(Reader().read_bytes(file.uri, file.name)) == image_id(b"big/0007.jpg")


def test_a_store_that_remembers_lists_each_table_once(store: Store) -> None:
    for k in range(30):
        store.write("quality", quality_rows([str(k)], f"b{k}"), f"b{k}", fingerprint=str(k))
    asked: list[str] = []
    s3.client().meta.events.register("before-call.s3", lambda model, **call: asked.append(model.name))
    told = store.remembering()
    assert told.batches("quality") == store.batches("quality")
    asked.clear()
    assert [told.receipt("quality", f"b{k}").fingerprint for k in range(30)] == [str(k) for k in range(30)]
    assert told.receipt("quality", "none") is None and not asked
    store.write("quality", quality_rows(["new"], "b7"), "b7", fingerprint="new")
    assert store.remembering().receipt("quality", "b7").fingerprint == "new"


def test_a_photo_that_is_gone_is_told_from_a_bucket_that_is_gone_and_from_wrong_keys(
    server: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        s3.client().put_object(Bucket="tables", Key=f"seen/{name}.jpg", Body=b"photo")
    with pytest.raises(UnusableImage, match="seen/gone"):
        Reader().read_bytes("s3://tables/seen/gone.jpg", "gone.jpg")
    with pytest.raises(StoreUnavailable, match="NoSuchBucket"):
        Reader().read_bytes("s3://absent/seen/a.jpg", "a.jpg")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreUnavailable, match="SignatureDoesNotMatch"):
        Reader().read_bytes("s3://tables/seen/a.jpg", "a.jpg")
    with pytest.raises(StoreUnavailable, match="cannot read"):
        Store("s3://tables/x").read("splits")


# -- a server that goes away ----------------------------------------------------------------------


def test_a_server_killed_in_the_middle_of_writes_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL and start again, twice, under a writer: it waits, and every table is whole."""
    with serving(tmp_path / "weed") as own:
        _enter(own.environment, monkeypatch)
        store = Store("s3://tables/killed")
        failures: list[BaseException] = []

        def write() -> None:
            try:
                for k in range(60):
                    ids = [f"{k}-{i}" for i in range(200)]
                    store.write("quality", quality_rows(ids, f"b{k % 6}"), f"b{k % 6}", fingerprint=str(k))
            except BaseException as error:  # noqa: BLE001 - it is looked at below
                failures.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        for pause in (0.3, 0.5):
            time.sleep(pause)
            own.kill()
            own.start()
        writer.join()
        assert not failures, failures
        for b in range(6):
            assert store.receipt("quality", f"b{b}").fingerprint == str(54 + b)
            assert store.read("quality", f"b{b}").column("image_id").to_pylist() == [
                f"{54 + b}-{i}" for i in range(200)
            ]


def test_a_server_that_hangs_is_an_error_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(s3, "ANSWER_SECONDS", 1)
        monkeypatch.setattr(s3, "ATTEMPTS", 2)
        monkeypatch.setattr(s3, "PATIENCE", 3)
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
        _enter({"AWS_ENDPOINT_URL": address, **keys}, monkeypatch)
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match="cannot write"):
            S3Files().put("tables/x", b"1")
        with pytest.raises(StoreUnavailable, match="cannot read s3://tables/x"):  # and no image is left out for it
            Reader().read_bytes("s3://tables/x.jpg", "x.jpg")
        assert time.monotonic() - start < 30
