"""First looks at batches, through the graph: they stand when the reference changes."""

from assets import launch
from pipeline.store import Store
from tests.assets.conftest import World, settings


def test_a_changed_reference_is_tested_again_and_looked_at_no_more(finished: World) -> None:
    store = Store(finished.project.store_uri)
    tests, looks = store.read("drift"), store.read("alarms")
    assert looks.column("batch").to_pylist() == ["b", "c"], "a is the reference, and has nothing to be compared with"
    finished.write(drift=settings()["drift"] | {"reference": "gold"})
    assert launch.run("squares", select="monitoring").success
    again = store.read("drift")
    assert set(again.column("contents").to_pylist()) == set(tests.column("contents").to_pylist())
    assert set(again.column("reference").to_pylist()) != set(tests.column("reference").to_pylist())
    assert store.read("alarms").slice(0, 2).equals(looks)
    assert store.read("alarms").column("batch").to_pylist() == ["b", "c", "a"], "c is labelled: now there is something"


def test_a_batch_that_gains_a_photo_is_looked_at_anew(finished: World) -> None:
    store = Store(finished.project.store_uri)
    looks = store.read("alarms")
    finished.add("c", 6, seed=200)
    assert launch.run("squares").success
    new = store.read("alarms").slice(looks.num_rows)
    assert store.read("alarms").slice(0, looks.num_rows).equals(looks)
    assert new.column("batch").to_pylist() == ["c"] and new.column("position").to_pylist() == [looks.num_rows + 1]
