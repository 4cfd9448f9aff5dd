"""Ticks: what the automation sensor, the batch sensor and the schedules ask for."""

import datetime
from typing import Any

import dagster as dg

from assets import launch
from assets.automation import batch_sensor
from assets.definitions import defs as load_all
from assets.definitions import project_definitions
from assets.resources import resources
from pipeline import schema
from pipeline.vectors import Vectors
from tests.assets.conftest import World


def definitions(world: World) -> dg.Definitions:
    return project_definitions(world.project, resources())


def requested(result: dg.EvaluateAutomationConditionsResult, table: str) -> set[str | None]:
    return set(result.get_requested_partitions(dg.AssetKey(["squares", table])))


def test_a_new_batch_is_asked_for_once_and_its_tables_with_it(world: World, instance: dg.DagsterInstance) -> None:
    defs = definitions(world)
    first = dg.evaluate_automation_conditions(defs=defs, instance=instance)
    assert first.total_requested == 0
    instance.add_dynamic_partitions("squares_batches", ["a"])
    second = dg.evaluate_automation_conditions(defs=defs, instance=instance, cursor=first.cursor)
    for table in ("images", "rejected_files", "quality", "embeddings", "detections"):
        assert requested(second, table) == {"a"}, table
    assert requested(second, "training_set") == set()
    third = dg.evaluate_automation_conditions(defs=defs, instance=instance, cursor=second.cursor)
    assert requested(third, "images") == set()


def test_training_happens_at_first_and_then_waits_for_its_schedule(world: World, instance: dg.DagsterInstance) -> None:
    defs = definitions(world)
    now = datetime.datetime(2026, 11, 20, 12, 0, tzinfo=datetime.UTC)
    instance.add_dynamic_partitions("squares_batches", ["a"])

    def made(*tables: str) -> None:
        for table in tables:
            batch = "a" if schema.table(table).batched else None
            event = dg.AssetMaterialization(["squares", table], partition=batch)
            instance.report_runless_asset_event(event)

    def asked(at: datetime.datetime, cursor: Any) -> tuple[bool, Any]:
        result = dg.evaluate_automation_conditions(defs=defs, instance=instance, evaluation_time=at, cursor=cursor)
        return bool(requested(result, "training_set")), result.cursor

    nothing_there, cursor = asked(now, None)
    made("images", "ground_truth", "labels", "splits")
    first, cursor = asked(now + datetime.timedelta(minutes=1), cursor)
    made("training_set", "labels")
    new_labels, cursor = asked(now + datetime.timedelta(minutes=2), cursor)
    next_week = now + datetime.timedelta(days=7)
    _, cursor = asked(next_week, cursor)
    made("images", "ground_truth", "labels", "splits")
    scheduled, _ = asked(next_week + datetime.timedelta(minutes=1), cursor)
    assert (nothing_there, first, new_labels, scheduled) == (False, True, False, True)


def test_the_sensor_adds_new_batches_only(world: World, instance: dg.DagsterInstance) -> None:
    sensor = batch_sensor(world.project)
    context = dg.build_sensor_context(instance=instance, resources=resources(), definitions=definitions(world))
    result = sensor(context)
    (request,) = result.dynamic_partitions_requests
    assert sorted(request.partition_keys) == ["a", "b", "c"]
    instance.add_dynamic_partitions("squares_batches", ["a", "b", "c"])
    again = sensor(dg.build_sensor_context(instance=instance, resources=resources(), definitions=definitions(world)))
    assert isinstance(again, dg.SkipReason)


def test_the_hourly_schedule_asks_for_what_is_missing(world: World) -> None:
    defs = definitions(world)
    schedule = defs.resolve_schedule_def("squares_new_data")
    with launch.instance() as instance:
        tick = schedule.evaluate_tick(dg.build_schedule_context(instance=instance))
        (request,) = tick.run_requests
        assert dg.AssetKey(["squares", "images"]) in request.asset_selection
        assert instance.get_dynamic_partitions("squares_batches") == ["a", "b", "c"]


def test_the_hourly_schedule_rests_when_all_is_fresh(finished: World) -> None:
    schedule = definitions(finished).resolve_schedule_def("squares_new_data")
    with launch.instance() as instance:
        tick = schedule.evaluate_tick(dg.build_schedule_context(instance=instance))
        assert not tick.run_requests and "all fresh" in tick.skip_message


def test_the_hourly_schedule_sees_a_changed_project_without_a_restart(finished: World) -> None:
    schedule = definitions(finished).resolve_schedule_def("squares_new_data")
    finished.write(trust={"target": 0.6})
    with launch.instance() as instance:
        tick = schedule.evaluate_tick(dg.build_schedule_context(instance=instance))
    (request,) = tick.run_requests
    assert dg.AssetKey(["squares", "trust"]) in request.asset_selection
    assert dg.AssetKey(["squares", "detections"]) not in request.asset_selection


def test_every_project_is_found_without_code_changes(world: World) -> None:
    other = world.root / "projects" / "others"
    other.mkdir()
    text = (world.folder / "project.yaml").read_text(encoding="utf-8")
    (other / "project.yaml").write_text(text.replace("name: squares", "name: others"), encoding="utf-8")
    repository = load_all().get_repository_def()
    prefixes = {key.path[0] for key in repository.asset_graph.get_all_asset_keys()}
    assert prefixes == {"squares", "others"}
    assert {s.name for s in repository.schedule_defs} >= {"others_new_data", "others_monitoring"}


def test_the_nightly_upkeep_compacts_vectors(finished: World) -> None:
    job = definitions(finished).resolve_job_def("squares_upkeep")
    table = Vectors(finished.project.store_uri)._db.open_table(_vectors(finished))
    assert table.stats()["fragment_stats"]["num_fragments"] == 3
    with launch.instance() as instance:
        assert job.execute_in_process(instance=instance).success
    table.checkout_latest()
    assert table.stats()["fragment_stats"]["num_fragments"] == 1 and table.count_rows() == 15
    schedule = definitions(finished).resolve_schedule_def("squares_upkeep")
    assert schedule.cron_schedule == finished.project.config.schedules.monitoring


def _vectors(world: World) -> str:
    (name,) = Vectors(world.project.store_uri)._db.list_tables().tables
    return str(name)
