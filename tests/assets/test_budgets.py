"""Budgets end work cleanly, the bill has what failed, and an estimate stands before a run."""

import pytest

from assets import launch
from pipeline.errors import ConfigError
from pipeline.store import Store
from tests.assets.conftest import World
from tests.assets.test_launch import contents


@pytest.fixture
def many(world: World) -> World:
    """A batch of more than one shard."""
    world.add("a", 20, seed=0)
    world.write(batch_size=1)
    return world


def test_a_spent_budget_ends_the_work_and_what_was_done_is_kept(many: World) -> None:
    free = launch.run("squares", batches=["a"], select="images,quality,detections")
    assert free.success
    store = Store(many.project.store_uri)
    expected = contents(store)
    store.delete("detections", "a")
    many.write(batch_size=1, budgets={"detections": {"hours": 1e-7, "days": 1e-7}})  # 0.36 ms, of the last 9 ms
    stopped = launch.run("squares", batches=["a"], select="detections")
    assert not stopped.success and stopped.failure is not None
    assert "the budget of detections is spent" in stopped.failure and "8 of 20 are done and kept" in stopped.failure
    assert "budgets.detections" in stopped.failure and store.receipt("detections", "a") is None
    many.write(batch_size=1)
    shards = []
    again = launch.run("squares", batches=["a"], select="detections", on_event=lambda s: shards.append(s.done))
    assert again.success and contents(store) == expected
    assert [done for done in shards if done] == [16, 20]
    rows = [r for r in store.read_ledger().sort_by("started_at").to_pylist() if r["asset"] == "detections"]
    assert [(r["producer"] == "unfinished", r["images"]) for r in rows] == [(False, 20), (True, 0), (False, 20)]


@pytest.mark.parametrize("size", [2, 3])
def test_what_is_left_may_be_done_in_other_batches(many: World, size: int) -> None:
    assert launch.run("squares", batches=["a"], select="images,ground_truth,quality,detections,masks").success
    store = Store(many.project.store_uri)
    expected = contents(store)
    tables = ("quality", "detections", "masks")
    for table in tables:
        store.delete(table, "a")
        many.write(batch_size=1, budgets={table: {"hours": 1e-7, "days": 1e-7}})
        stopped = launch.run("squares", batches=["a"], select=table)
        assert stopped.failure is not None and "8 of 20 are done and kept" in stopped.failure
        many.write(batch_size=size)
        assert launch.run("squares", batches=["a"], select=table).success
    assert contents(store) == expected


def test_nothing_is_begun_on_a_spent_budget(many: World) -> None:
    assert launch.run("squares", batches=["a"], select="images,quality").success
    many.write(batch_size=1, budgets={"curation": {"money": 0.0}})
    (many.source / "a" / "a_00.png").unlink()
    outcome = launch.run("squares", batches=["a"], select="images,quality")
    assert outcome.failure is not None and "nothing more is begun" in outcome.failure
    # Other stages go on, and dearer machines are not needed to say so.
    assert outcome.executed == ["images[a]"]


def test_a_budget_must_be_of_something(world: World) -> None:
    world.write(budgets={"labeling": {"hours": 1}})
    with pytest.raises(ConfigError, match=r"budgets\.labeling") as error:
        launch.run("squares")
    assert "labelling" in error.value.remedy


def test_an_estimate_is_told_from_the_record(many: World) -> None:
    assert set(launch.estimate("squares", select="quality")["record"].to_pylist()) == {"none"}
    assert launch.run("squares", batches=["a"], select="collection,curation,labelling").success
    assert not launch.estimate("squares", batches=["a"], select="quality").num_rows
    many.add("d", 10, seed=500)
    (row,) = launch.estimate("squares", batches=["d"], select="quality").to_pylist()
    (took,) = [r for r in Store(many.project.store_uri).read_ledger().to_pylist() if r["asset"] == "quality"]
    assert row["images"] == 10 and row["batches"] == 1 and row["record"] == "1 earlier"
    assert row["seconds"] == pytest.approx(took["seconds"] / 20 * 10) == row["low"] == row["high"]
    assert row["money"] == pytest.approx(took["money"] / 2)
    # A table without batches takes what it took the last time, and only what is due is counted.
    whole = {r["asset"]: r for r in launch.estimate("squares").to_pylist()}
    assert whole["trust"]["seconds"] > 0 and whole["trust"]["images"] is None
    assert (whole["quality"]["batches"], whole["quality"]["images"]) == (3, 19)


def test_the_plan_is_told_before_and_the_bill_after(many: World) -> None:
    told = []
    outcome = launch.run("squares", batches=["a"], select="images,quality", on_plan=lambda rows: told.append(rows))
    assert told[0]["asset"].to_pylist() == ["images", "quality"]
    ledger = Store(many.project.store_uri).read_ledger()
    assert outcome.money == pytest.approx(sum(ledger["money"].to_pylist())) and outcome.money > 0


def test_another_project_lends_its_record(finished: World) -> None:
    other = World(finished.root)
    other.folder = finished.root / "projects" / "others"
    other.folder.mkdir()
    other.write(name="others")
    row = launch.estimate("others", batches=["a"], select="quality").to_pylist()[0]
    assert row["record"] == "squares: 3 earlier" and row["images"] == 6 and row["seconds"] > 0
