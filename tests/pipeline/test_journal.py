from __future__ import annotations

import os
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pipeline import journal, lines, schema
from pipeline.errors import DataError, StoreError
from pipeline.journal import Journal
from pipeline.store import Store
from tests.pipeline.decided import START, decision


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def files(store: Store, batch: str = "b") -> list[Path]:
    return sorted(Path(journal.folder(store, batch)).iterdir())


def test_decisions_come_back_as_they_were_made(store: Store) -> None:
    box = (0.25, 1.0, 9.5, 8.0)
    made = [
        decision("a", "yes", class_name="cat", box=box, asked_class="cat", asked_box=box),
        decision("b", "no", reviewer="Bén 山", asked_class="dog", minute=1),
        decision("c", "add", class_name="dog", mask="abc", minute=2, source="cvat"),
        decision("c", "undo", withdraws="d", minute=3),
    ]
    Journal(store).append(made)
    rows = journal.read(store, "b").to_pylist()
    assert [r["decision_id"] for r in rows] == [d.decision_id for d in made]
    assert [r["verdict"] for r in rows] == ["yes", "no", "add", "undo"]
    assert (rows[0]["x1"], rows[0]["y2"], rows[0]["asked_x2"]) == (0.25, 8.0, 9.5)
    assert rows[1]["reviewer"] == "Bén 山" and rows[1]["x1"] is None and rows[2]["mask"] == "abc"
    assert [r["at"] for r in rows] == [START + timedelta(minutes=m) for m in range(4)]


def test_a_batch_without_decisions(store: Store) -> None:
    assert journal.state(store, "b") == [] and journal.read(store, "b").equals(schema.table("decisions").empty())


def test_batches_are_kept_apart_whatever_they_are_called(store: Store) -> None:
    for batch in ("b", "2026/11 ä%", "..", "b2"):
        Journal(store).append([decision("a", "no", batch=batch)])
    assert journal.read(store, "2026/11 ä%").num_rows == 1 and journal.read(store, "..").num_rows == 1
    assert all(Path(store.root) / "_decisions" in f.parents for f in Path(store.root).rglob("*.jsonl"))


def test_times_rise_strictly_within_a_session(store: Store) -> None:
    book = Journal(store)
    made = book.append([decision("a", "yes"), decision("a", "no")]) + book.append([decision("a", "yes")])
    assert made[0].at < made[1].at < made[2].at and made[0].at == START
    assert [r["decision_id"] for r in journal.read(store, "b").to_pylist()] == [d.decision_id for d in made]


def test_state_changes_with_every_decision_and_only_then(store: Store) -> None:
    book, seen = Journal(store), []
    for minute in range(3):
        book.append([decision("a", "no", minute=minute)])
        assert journal.state(store, "b") == journal.state(store, "b") not in seen
        seen.append(journal.state(store, "b"))
    book.append([decision("a", "no", batch="other")])
    assert journal.state(store, "b") == seen[-1]


def test_what_was_cut_off_is_no_decision(store: Store) -> None:
    """At whatever byte the power went, what was whole before is there, and nothing else."""
    Journal(store).append([decision("a", "yes", class_name="ä", minute=m) for m in range(3)])
    (path,) = files(store)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(0, len(whole) + 1, 7):
        path.write_bytes(whole[:cut])
        assert journal.read(store, "b").num_rows == sum(end <= cut for end in ends)
    path.write_bytes(whole[: ends[1]] + b"\0" * 100)
    assert journal.read(store, "b").num_rows == 2


@pytest.mark.parametrize("change", [(b'"yes"', b'"no" '), (b"{", b"["), (b"2026", b"20x6"), (b'"box"', b'"bux"')])
def test_damage_is_noticed_and_named(store: Store, change: tuple[bytes, bytes]) -> None:
    Journal(store).append([decision("a", "yes", class_name="cat"), decision("b", "no")])
    (path,) = files(store)
    path.write_bytes(path.read_bytes().replace(*change, 1))
    with pytest.raises(StoreError, match=r"\.jsonl, line 1: damaged"):
        journal.read(store, "b")


def test_sessions_and_threads_write_side_by_side(store: Store) -> None:
    books = [Journal(store), Journal(store)]

    def work(name: int) -> None:
        for k in range(20):
            books[name % 2].append([decision(f"{name}-{k}", "no")])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files(store)) == 2
    assert set(journal.read(store, "b").column("annotation_id").to_pylist()) == {
        f"{n}-{k}" for n in range(6) for k in range(20)
    }


def test_it_returns_only_after_fsync_of_file_and_folders(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def spy(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    Journal(store).append([decision("a", "no")])
    (path,) = files(store)
    assert synced == [str(p) for p in (*list(path.parents)[:3], path)]


def test_a_failed_write_is_told_and_leaves_no_half_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Journal(store)
    book.append([decision("a", "no")])
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 20:
            return real(descriptor, data[:20])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(StoreError, match=r"cannot write to .*_decisions"):
            book.append([decision("b", "no", minute=1)])
    book.append([decision("c", "no", minute=2)])
    assert journal.read(store, "b").column("annotation_id").to_pylist() == ["a", "c"]


def test_on_s3_every_decision_is_in_the_bucket_when_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for key, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
            "AWS_REGION": "us-east-1",
        }.items():  # fmt: skip
            monkeypatch.setenv(key, value)
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="lake")
        store, states = Store("s3://lake/p"), []
        monkeypatch.setattr(lines, "_LINES_PER_OBJECT", 4)
        book = Journal(store)
        for k in range(6):
            book.append([decision(f"{k}", "no", minute=k)])
            states.append(journal.state(Store("s3://lake/p"), "b"))
            assert journal.read(Store("s3://lake/p"), "b").num_rows == k + 1
        assert len({str(s) for s in states}) == 6 and len(states[-1]) == 2
        book.append([decision(f"many{k}", "no", minute=10 + k) for k in range(9)])
        assert journal.read(store, "b").num_rows == 15
    finally:
        server.stop()


@pytest.mark.parametrize("name", ["", "  ", "x" * 65, "a\nb", "\x1b[31m"])
def test_names_that_cannot_be_a_reviewers(name: str) -> None:
    with pytest.raises(DataError, match="reviewer"):
        journal.checked_reviewer(name)


def test_ids_tell_decisions_apart() -> None:
    one = decision("a", "yes", class_name="cat", box=(0, 0, 9, 9))
    changed = [{"reviewer": "ben"}, {"verdict": "fix"}, {"box": (0, 0, 9, 9.01)}, {"source": "cvat"}, {"mask": "m"}]
    assert len({one.decision_id, *(replace(one, **c).decision_id for c in changed)}) == 6
    assert journal.checked_reviewer(" Ann ") == "Ann"
