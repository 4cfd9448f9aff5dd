"""A folder and an S3 prefix must look the same."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError
from moto.server import ThreadedMotoServer

from pipeline.errors import DataError, StoreUnavailable
from pipeline.images import Reader, UnusableImage
from pipeline.sources import DEFAULT_BATCH, FolderSource, S3Source, SourceFile, open_source

FILES = {
    "north/b.jpg": b"bb",
    "north/a.jpg": b"a",
    "north/deep/er/c d.png": b"ccc",
    "north/.hidden": b"x",
    "north/.cache/d.jpg": b"x",
    "south/ümläut #1%20.jpg": b"dddd",
    ".git/e.jpg": b"x",
    "loose.jpg": b"e",
    "README.md": b"text",
}


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "source"


@pytest.fixture
def bucket(s3: Any, request: pytest.FixtureRequest) -> str:
    name = f"bucket-{abs(hash(request.node.name))}"
    s3.create_bucket(Bucket=name)
    for key, data in FILES.items():
        s3.put_object(Bucket=name, Key=f"photos/2026/{key}", Body=data)
    s3.put_object(Bucket=name, Key="photos/2026/north/", Body=b"")  # how consoles mark a folder
    s3.put_object(Bucket=name, Key="photos/2026x/other.jpg", Body=b"not ours")
    return name


def contents(source: Any) -> dict[str, dict[str, bytes]]:
    return {batch: {f.name: source.read(f) for f in source.files(batch)} for batch in source.batches()}


EXPECTED = {
    DEFAULT_BATCH: {"README.md": b"text", "loose.jpg": b"e"},
    "north": {"a.jpg": b"a", "b.jpg": b"bb", "deep/er/c d.png": b"ccc"},
    "south": {"ümläut #1%20.jpg": b"dddd"},
}


def test_folder_and_s3_hold_the_same(folder: Path, bucket: str, s3: Any) -> None:
    assert contents(open_source(str(folder))) == EXPECTED
    assert contents(open_source(f"s3://{bucket}/photos/2026/", s3)) == EXPECTED
    assert contents(S3Source(f"s3://{bucket}/photos/2026", s3)) == EXPECTED


def test_whole_bucket_is_a_source(bucket: str, s3: Any) -> None:
    assert open_source(f"s3://{bucket}", s3).batches() == ["photos"]


def test_listings_go_past_one_page(s3: Any) -> None:
    s3.create_bucket(Bucket="many")
    keys = [f"b{i:02d}/{j}.jpg" for i in range(9) for j in range(2)]
    for key in [*keys, *(f"big/{i:02d}.jpg" for i in range(8))]:
        s3.put_object(Bucket="many", Key=key, Body=b"x")
    short = lambda params, **_: params.update(MaxKeys=3)  # noqa: E731
    s3.meta.events.register("before-parameter-build.s3.ListObjectsV2", short)
    try:
        source = open_source("s3://many", s3)
        assert source.batches() == [*(f"b{i:02d}" for i in range(9)), "big"]
        assert [f.name for f in source.files("big")] == [f"{i:02d}.jpg" for i in range(8)]
    finally:
        s3.meta.events.unregister("before-parameter-build.s3.ListObjectsV2", short)


def test_sizes_and_order(folder: Path) -> None:
    files = open_source(str(folder)).files("north")
    assert [(f.name, f.bytes) for f in files] == [("a.jpg", 1), ("b.jpg", 2), ("deep/er/c d.png", 3)]


def test_readme_alone_makes_no_default_batch(folder: Path) -> None:
    (folder / "loose.jpg").unlink()
    assert open_source(str(folder)).batches() == ["north", "south"]


def test_fingerprint_follows_the_files(folder: Path, bucket: str, s3: Any) -> None:
    local, remote = open_source(str(folder)), open_source(f"s3://{bucket}/photos/2026", s3)
    before = local.fingerprint("north"), remote.fingerprint("north")
    assert (local.fingerprint("north"), remote.fingerprint("north")) == before
    other = local.fingerprint("south"), remote.fingerprint("south")
    (folder / "north" / "a.jpg").write_bytes(b"A")
    os.utime(folder / "north" / "a.jpg", ns=(1, 1))
    s3.put_object(Bucket=bucket, Key="photos/2026/north/a.jpg", Body=b"A")
    changed = local.fingerprint("north"), remote.fingerprint("north")
    assert changed[0] != before[0] and changed[1] != before[1]
    (folder / "north" / "a.jpg").unlink()
    s3.delete_object(Bucket=bucket, Key="photos/2026/north/a.jpg")
    removed = local.fingerprint("north"), remote.fingerprint("north")
    assert removed[0] not in (changed[0], before[0]) and removed[1] not in (changed[1], before[1])
    assert (local.fingerprint("south"), remote.fingerprint("south")) == other


@pytest.mark.parametrize("make", [lambda f: f / "missing", lambda f: f / "loose.jpg"])
def test_no_folder_is_an_error(folder: Path, make: Any) -> None:
    with pytest.raises(DataError) as error:
        open_source(str(make(folder))).batches()
    assert str(make(folder)) in error.value.what and error.value.remedy


def test_missing_sample_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVP_SAMPLES", str(tmp_path))
    with pytest.raises(DataError, match="cvp samples pull trees"):
        open_source(str(tmp_path / "trees")).batches()


def test_unknown_scheme_and_bucket(s3: Any) -> None:
    with pytest.raises(DataError, match="ftp://"):
        open_source("ftp://host/x")
    with pytest.raises(DataError, match="no bucket"):
        open_source("s3://", s3)
    with pytest.raises(StoreUnavailable, match="cannot list s3://absent"):
        open_source("s3://absent/x", s3).batches()


def test_a_listing_that_gets_no_answer_is_asked_for_again_and_is_no_batchs_fault(
    bucket: str, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Restarts:
        """A client whose server does not answer at first."""

        def __init__(self, silent: int) -> None:
            self.silent = silent

        def list_objects_v2(self, **wanted: Any) -> Any:
            asked.append(wanted["Prefix"])
            if len(asked) <= self.silent:
                raise EndpointConnectionError(endpoint_url="http://127.0.0.1")
            return s3.list_objects_v2(**wanted, MaxKeys=2)

    monkeypatch.setattr("pipeline.s3._LONGEST_PAUSE", 0.01)
    uri = f"s3://{bucket}/photos/2026"
    assert [f.name for f in open_source(uri, Restarts(2)).files("north")] == sorted(EXPECTED["north"])
    assert len(asked) > 4, "of several pages"
    monkeypatch.setattr("pipeline.s3.PATIENCE", 0.05)
    for ask in (lambda source: source.batches(), lambda source: source.files("north")):
        with pytest.raises(StoreUnavailable, match=f"cannot list {uri}") as error:
            ask(open_source(uri, Restarts(10**6)))
        assert error.value.widespread


def test_batch_that_is_gone(folder: Path, bucket: str, s3: Any) -> None:
    for source in (open_source(str(folder)), open_source(f"s3://{bucket}/photos/2026", s3)):
        with pytest.raises(DataError, match="no batch 'east'"):
            source.files("east")


def test_file_that_is_gone(folder: Path, bucket: str, s3: Any) -> None:
    for source in (open_source(str(folder)), open_source(f"s3://{bucket}/photos/2026", s3)):
        file = source.files("north")[0]
        gone = SourceFile("x.jpg", file.uri.replace("a.jpg", "x.jpg"), 1, "")
        with pytest.raises(UnusableImage) as error:
            source.read(gone)
        assert error.value.reason == "unreadable"


def test_links_inside_are_followed_and_links_outside_refused(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key.jpg").write_bytes(b"secret")
    (folder / "south" / "out.jpg").symlink_to(secret / "key.jpg")
    (folder / "south" / "outdir").symlink_to(secret)
    (folder / "south" / "in.jpg").symlink_to(folder / "north" / "a.jpg")
    (folder / "south" / "indir").symlink_to(folder / "north" / "deep")
    (folder / "south" / "loop").symlink_to(folder / "south")
    (folder / "south" / "up").symlink_to(folder)
    (folder / "south" / "broken.jpg").symlink_to(folder / "nothing.jpg")
    source = open_source(str(folder))
    files = {f.name: f for f in source.files("south")}
    assert sorted(files) == [
        "broken.jpg",
        "in.jpg",
        "indir/er/c d.png",
        "out.jpg",
        "outdir",
        "ümläut #1%20.jpg",
    ]
    assert source.read(files["in.jpg"]) == b"a"
    for name, reason in (("out.jpg", "refused"), ("outdir", "refused"), ("broken.jpg", "unreadable")):
        with pytest.raises(UnusableImage) as error:
            source.read(files[name])
        assert error.value.reason == reason
    (folder / "whole").symlink_to(secret)
    assert "whole" not in source.batches()


def test_pipes_and_sockets_are_refused(folder: Path) -> None:
    os.mkfifo(folder / "south" / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder / "south")  # a socket's path must be short
        try:
            server.bind("s.jpg")
        finally:
            os.chdir(here)
        source = open_source(str(folder))
        for file in source.files("south"):
            if file.name in ("pipe.jpg", "s.jpg"):
                with pytest.raises(UnusableImage) as error:
                    source.read(file)
                assert error.value.reason == "refused"


def test_names_that_are_not_unicode(folder: Path) -> None:
    odd = os.fsencode(folder / "south") + b"/caf\xe9 \xff.jpg"
    with open(odd, "wb") as file:
        file.write(b"odd")
    Path(os.fsdecode(os.fsencode(folder) + b"/r\xe9gion")).mkdir()
    with open(os.fsencode(folder) + b"/r\xe9gion/1.jpg", "wb") as file:
        file.write(b"one")
    source = open_source(str(folder))
    files = {f.name: f for f in source.files("south")}
    assert "caf\\xe9 \\xff.jpg" in files
    found = files["caf\\xe9 \\xff.jpg"]
    found.uri.encode("utf-8")  # tables can hold it
    assert source.read(found) == b"odd" == Reader().read_bytes(found.uri, found.name)
    assert "r\\xe9gion" in source.batches()
    assert [source.read(f) for f in source.files("r\\xe9gion")] == [b"one"]


def test_reader_opens_every_uri(folder: Path) -> None:
    source = FolderSource(str(folder))
    for batch in source.batches():
        for file in source.files(batch):
            assert Reader().read_bytes(file.uri, file.name) == source.read(file)


def test_fingerprints_of_all_batches_are_those_of_each_and_list_the_root_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for batch in ("a", "b", "c"):
        (tmp_path / batch).mkdir()
        (tmp_path / batch / "photo.jpg").write_text(batch)
    (tmp_path / "loose.jpg").write_text("loose")
    source = FolderSource(str(tmp_path))
    expected = {batch: source.fingerprint(batch) for batch in source.batches()}
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: (listed.append(str(folder)), scandir(folder))[1])
    assert source.fingerprints() == expected
    assert len(expected) == 4 and listed.count(str(tmp_path.resolve())) == 1
