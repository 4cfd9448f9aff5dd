from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline import weights
from pipeline.errors import WeightsError
from pipeline.weights import transfer
from tests.pipeline.weights.server import Served, serving

DATA = np.random.default_rng(0).bytes(3 << 20)
DIGEST = hashlib.sha256(DATA).hexdigest()

pytestmark = pytest.mark.network


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CVP_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(transfer, "PAUSE", 0.01)
    return tmp_path / "weights"


@pytest.fixture
def server() -> Iterator[Served]:
    with serving({"/net.pth": DATA}) as served:
        yield served


def kept(cache: Path) -> set[str]:
    return {p.name for p in cache.rglob("*") if p.is_file() and p.name != ".fetching"}


def parts(cache: Path) -> set[str]:
    return {name for name in kept(cache) if ".part" in name}


def test_a_file_comes_whole_and_tells_how_far_it_is(server: Served, cache: Path) -> None:
    told: list[tuple[int, int]] = []
    uri = f"{server.url}/net.pth#sha256={DIGEST}"
    path = weights.pull(uri, progress=lambda done, total: told.append((done, total)))
    assert path.read_bytes() == DATA and kept(cache) == {"net.pth"}
    assert told[0] == (0, len(DATA)) and told[-1] == (len(DATA), len(DATA)) and told == sorted(told)
    assert weights.pull(uri) == path and len(server.asked) == 1
    assert weights.resolve(uri) == path


def test_a_cut_connection_is_taken_up_where_it_broke(server: Served, cache: Path) -> None:
    server.faults = ["cut:1000000", "cut:500000", 503]
    path = weights.pull(f"{server.url}/net.pth#sha256={DIGEST}")
    assert path.read_bytes() == DATA
    starts = [int(span[6:-1] or 0) if span else 0 for span in server.spans]
    assert starts[0] == 0 and 800_000 < starts[1] <= 1_000_000 < starts[2] <= 1_500_000 and starts[2] == starts[3]


def test_a_second_command_goes_on_where_the_first_gave_up(
    server: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    server.faults = ["cut:2000000"]
    with pytest.raises(WeightsError, match="broke off") as caught:
        weights.pull(f"{server.url}/net.pth#sha256={DIGEST}")
    assert "goes on where it stopped" in caught.value.remedy
    assert kept(cache) == {"net.pth.part", "net.pth.part.tag"}
    with pytest.raises(WeightsError, match="are not in"):
        weights.resolve(f"{server.url}/net.pth#sha256={DIGEST}")
    assert weights.pull(f"{server.url}/net.pth#sha256={DIGEST}").read_bytes() == DATA
    assert server.spans[1].startswith("bytes=") and kept(cache) == {"net.pth"}


def test_another_file_at_the_same_address_is_not_joined_to_the_old_part(
    server: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    server.faults = ["cut:2000000"]
    uri = f"{server.url}/net.pth"
    with pytest.raises(WeightsError, match="broke off"):
        weights.pull(uri)
    server.files["/net.pth"] = other = DATA[::-1]
    assert weights.pull(uri).read_bytes() == other


@pytest.mark.parametrize("how", [{"ranges": False}, {"tags": False}])
def test_a_server_without_ranges_or_tags_is_asked_from_the_beginning(how: dict[str, bool], cache: Path) -> None:
    with serving({"/net.pth": DATA}, faults=["cut:2000000"], **how) as server:
        assert weights.pull(f"{server.url}/net.pth").read_bytes() == DATA
        assert len(server.asked) == 2


def test_a_part_that_is_whole_needs_nothing_more(server: Served, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    server.faults = ["cut:2000000"]
    uri = f"{server.url}/net.pth"
    with pytest.raises(WeightsError, match="broke off"):
        weights.pull(uri)
    next(cache.rglob("*.part")).write_bytes(DATA)
    assert weights.pull(uri).read_bytes() == DATA and server.spans[-1] == f"bytes={len(DATA)}-"


def test_what_hashes_wrongly_is_not_kept(server: Served, cache: Path) -> None:
    with pytest.raises(WeightsError, match="nothing was kept"):
        weights.pull(f"{server.url}/net.pth#sha256={'0' * 64}")
    assert kept(cache) == set()


@pytest.mark.parametrize(("status", "remedy"), [(404, "--from DIR"), (403, "HF_TOKEN"), (401, "HF_TOKEN")])
def test_a_refusal_is_final_and_says_what_to_do(server: Served, cache: Path, status: int, remedy: str) -> None:
    server.faults = [status] * 9
    with pytest.raises(WeightsError, match=str(status)) as caught:
        weights.pull(f"{server.url}/net.pth?sign=secret")
    assert remedy in caught.value.remedy and "secret" not in str(caught.value) and len(server.asked) == 1
    assert kept(cache) == set()


def test_a_busy_server_is_given_the_time_it_asks_for(
    server: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", slept.append)
    server.faults, server.headers = [429, 503], {"Retry-After": "7"}
    assert weights.pull(f"{server.url}/net.pth").read_bytes() == DATA
    assert slept == [7.0, 7.0]


def test_a_server_that_is_not_there_is_an_error(cache: Path) -> None:
    with serving({}) as gone:
        pass
    with pytest.raises(WeightsError, match="broke off"):
        weights.pull(f"{gone.url}/net.pth")


def test_plain_http_goes_no_further_than_this_machine(cache: Path) -> None:
    with pytest.raises(WeightsError, match="unprotected"):
        weights.pull("http://192.0.2.1/net.pth")


# -- pinned on first use --------------------------------------------------------------------------


def test_an_unknown_hash_is_pinned_on_first_use(server: Served, cache: Path) -> None:
    uri = f"{server.url}/net.pth"
    item = weights.checkpoint(uri)
    assert weights.identity(item) == uri
    path = weights.pull(uri)
    assert weights.identity(item) == DIGEST and weights.is_intact(item)
    lock = json.loads((cache / weights.LOCK).read_text())
    assert lock["checkpoints"] == {uri: {"sha256": DIGEST, "bytes": len(DATA)}}
    path.unlink()
    server.files["/net.pth"] = b"another"
    with pytest.raises(WeightsError, match="nothing was kept") as caught:
        weights.pull(uri)
    assert weights.LOCK in caught.value.remedy and not path.exists() and not parts(cache)
    server.files["/net.pth"] = DATA
    assert weights.pull(uri) == path


def test_a_known_beginning_of_a_hash_must_agree(server: Served, cache: Path) -> None:
    assert weights.pull(f"{server.url}/net.pth#sha256={DIGEST[:10]}").read_bytes() == DATA
    server.files["/b.pth"] = DATA
    with pytest.raises(WeightsError, match="not to 0123456789"):
        weights.pull(f"{server.url}/b.pth#sha256=0123456789")


def test_a_damaged_lock_file_is_an_error(server: Served, cache: Path) -> None:
    cache.mkdir()
    (cache / weights.LOCK).write_text("{")
    with pytest.raises(WeightsError, match="cannot read"):
        weights.pull(f"{server.url}/net.pth")


# -- the hub, S3, folders -------------------------------------------------------------------------


def test_the_hub_is_asked_for_a_revision_and_given_the_token_only_itself(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "/org/net/resolve/abc/sub/net.pth"
    with serving({place: DATA}) as content, serving({}, redirect="") as hub:
        hub.redirect = content.url.replace("127.0.0.1", "localhost")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert weights.pull("hf-hub:org/net@abc/sub/net.pth").read_bytes() == DATA
        asked = dict(hub.asked)  # the client may ask for more than the file
        assert asked[place]["authorization"] == "Bearer hf_secret"
        assert not [k for k in content.asked[0][1] if k.lower() == "authorization"]


def test_offline_only_the_hub_s_own_cache_is_read(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE"):
        weights.pull("hf-hub:org/net/net.pth")
    held = tmp_path / "held.pth"
    held.write_bytes(DATA)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *place, **how: str(held))
    assert weights.pull("hf-hub:org/net/net.pth").read_bytes() == DATA and held.is_file()
    with pytest.raises(WeightsError, match="names no file of a repository"):
        weights.pull("hf-hub:org/net.pth")


def test_s3_is_taken_up_where_it_broke(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from botocore.response import StreamingBody
    from moto import mock_aws

    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="weights")
        client.put_object(Bucket="weights", Key="a/net.pth", Body=DATA)
        whole = StreamingBody.iter_chunks
        spans: list[int] = []

        def cut(self: StreamingBody, size: int) -> Iterator[bytes]:
            spans.append(int(self._content_length))
            for i, piece in enumerate(whole(self, size)):
                if len(spans) == 1 and i == 1:
                    return
                yield piece

        monkeypatch.setattr(StreamingBody, "iter_chunks", cut)
        assert weights.pull("s3://weights/a/net.pth").read_bytes() == DATA
        assert spans == [len(DATA), len(DATA) - (1 << 17)]
        with pytest.raises(WeightsError, match=r"cannot read s3://weights/b\.pth"):
            weights.pull("s3://weights/b.pth")


def test_a_file_uri_is_copied_and_a_path_is_not(cache: Path, tmp_path: Path) -> None:
    source = tmp_path / "my net.pth"
    source.write_bytes(DATA)
    copied = weights.pull(source.as_uri())
    assert copied.read_bytes() == DATA and cache in copied.parents
    assert weights.pull(str(source)) == source == weights.resolve(str(source))
    item = weights.checkpoint(str(source))
    assert weights.identity(item) == DIGEST and weights.is_intact(item)
    source.write_bytes(b"another")
    assert weights.identity(item) == hashlib.sha256(b"another").hexdigest()
    source.unlink()
    with pytest.raises(WeightsError, match="no file of weights"):
        weights.resolve(str(source))
    with pytest.raises(WeightsError, match="there is no file"):
        weights.pull((tmp_path / "gone.pth").as_uri())


# -- carried by hand ------------------------------------------------------------------------------


def checkpoint(name: str, data: bytes | None, monkeypatch: pytest.MonkeyPatch) -> weights.Checkpoint:
    digest = hashlib.sha256(data).hexdigest() if data is not None else ""
    uri = f"https://weights.example/{name}.pth"
    item = weights.Checkpoint(name, "foundation", "encoder", uri, digest, len(data or b""), "MIT")
    monkeypatch.setitem(weights.CHECKPOINTS, name, item)
    return item


def test_carried_files_count_by_content_or_by_name(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, unknown, wrong = (
        checkpoint("known", DATA, monkeypatch),
        checkpoint("unknown", None, monkeypatch),
        checkpoint("wrong", b"right", monkeypatch),
    )
    folder = tmp_path / "stick" / "deep"
    folder.mkdir(parents=True)
    (folder / "renamed.bin").write_bytes(DATA)
    (folder / "unknown.pth").write_bytes(b"first")
    (folder / "wrong.pth").write_bytes(b"wrong")
    missing = weights.adopt([known, unknown, wrong], folder.parent)
    assert missing == [wrong]
    assert weights.resolve("known").read_bytes() == DATA and weights.is_intact(known)
    assert weights.resolve("unknown").read_bytes() == b"first"
    assert weights.identity(unknown) == hashlib.sha256(b"first").hexdigest()
    assert (folder / "renamed.bin").read_bytes() == DATA and not parts(cache)
    assert weights.adopt([known, unknown], tmp_path / "stick") == []
    with pytest.raises(WeightsError, match="no folder"):
        weights.adopt([known], tmp_path / "none")


def test_a_full_disk_is_said_before_it_is_full(server: Served, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(WeightsError, match="GB free"):
        weights.pull(f"{server.url}/net.pth")
    assert kept(cache) == set()
