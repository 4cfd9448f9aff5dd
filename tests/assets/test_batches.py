"""Of a run's range exactly the wanted batches are made; failures and removed batches stop none of the others."""

import shutil
from typing import Any

import dagster as dg
import pytest

from assets import launch
from assets.automation import batch_sensor
from assets.definitions import project_definitions
from assets.graph import recipes
from assets.materialised import CODE_VERSION_TAG, DATA_VERSION_TAG
from assets.partitions import follow_source
from assets.resources import resources
from pipeline import collect
from pipeline.store import Store
from tests.assets.conftest import World


def told(instance: dg.DagsterInstance, table: str, batch: str) -> list[dict[str, str]]:
    """Tags of every materialisation of a batch, the latest first."""
    wanted = dg.AssetRecordsFilter(dg.AssetKey(["squares", table]), asset_partitions=[batch])
    return [dict(r.asset_materialization.tags or {}) for r in instance.fetch_materializations(wanted, limit=9).records]


def test_of_two_batches_the_one_between_is_not_made(world: World) -> None:
    outcome = launch.run("squares", batches=["a", "c"], select="images,quality")
    assert outcome.success and outcome.executed == ["images[a]", "images[c]", "quality[a]", "quality[c]"]
    assert Store(world.project.store_uri).batches("images") == ["a", "c"]
    with launch.instance() as instance:
        assert [len(told(instance, "images", b)) for b in "abc"] == [1, 0, 1]


def test_each_batch_has_its_own_version_and_what_was_skipped_keeps_its_materialisation(world: World) -> None:
    store = Store(world.project.store_uri)
    assert launch.run("squares", batches=["b"], select="images,quality").success
    outcome = launch.run("squares", select="images,quality")
    assert outcome.success and "images[b]" not in outcome.executed and "images[c]" in outcome.executed
    with launch.instance() as instance:
        for table in ("images", "rejected_files", "quality"):
            for batch in "abc":
                (tags,) = told(instance, table, batch)
                assert tags[DATA_VERSION_TAG] == store.receipt(table, batch).content, (table, batch)
        (code,) = {told(instance, "quality", b)[0][CODE_VERSION_TAG] for b in "abc"}
        assert code == next(r.code_version for r in recipes(world.project) if r.name == "quality")


def test_rows_that_dagster_was_never_told_of_are_told_by_the_next_run(world: World) -> None:
    assert launch.run("squares", select="images").success
    shutil.rmtree(world.root / "home" / "dagster")
    outcome = launch.run("squares", select="images,quality")
    assert outcome.success and not any(name.startswith("images") for name in outcome.executed)
    with launch.instance() as instance:
        assert [len(told(instance, "quality", b)) for b in "abc"] == [1, 1, 1]
        range_tags = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "c"}
        for backfill, expected in (({}, 1), ({}, 1), ({"dagster/backfill": "x"}, 2)):
            job = project_definitions(world.project, resources()).resolve_job_def("squares_pipeline")
            images = [dg.AssetKey(["squares", name]) for name in ("images", "rejected_files")]
            result = job.execute_in_process(
                instance=instance, asset_selection=images, tags=range_tags | backfill, raise_on_error=False
            )
            assert result.success
            assert [len(told(instance, "images", b)) for b in "abc"] == [expected] * 3


def test_a_failing_batch_stops_no_other_and_all_failures_are_told(world: World) -> None:
    for batch in "ac":
        (world.source / batch / "annotations.json").write_text("{", encoding="utf-8")
    outcome = launch.run("squares", select="images,ground_truth")
    assert not outcome.success
    assert "squares/ground_truth batch a: " in outcome.failure and "squares/ground_truth batch c: " in outcome.failure
    assert Store(world.project.store_uri).batches("ground_truth") == ["b"]
    with launch.instance() as instance:
        assert [len(told(instance, "ground_truth", b)) for b in "abc"] == [0, 1, 0]
        (run,) = instance.get_runs()
        assert run.is_failure
        key = dg.AssetCheckKey(dg.AssetKey(["squares", "ground_truth"]), "boxes_inside_image")
        (check,) = instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).values()
        checked = check.event.dagster_event.asset_check_evaluation_data
        assert checked.passed and checked.metadata["batches"].value == 1, "of the batch that was made"
    world.add("a", 6, seed=0)
    world.add("c", 4, seed=200)
    outcome = launch.run("squares", select="images,ground_truth")
    assert outcome.success and {"ground_truth[a]", "ground_truth[c]"} <= set(outcome.executed)
    assert "ground_truth[b]" not in outcome.executed


def test_what_would_meet_every_batch_as_well_ends_the_table_at_once(world: World) -> None:
    assert launch.run("squares", select="images").success
    world.write(budgets={"curation": {"money": 0.0}})
    outcome = launch.run("squares", select="quality")
    assert outcome.failure is not None and outcome.failure.count("nothing more is begun") == 1
    assert "batch a" in outcome.failure and "batch b" not in outcome.failure


def test_a_removed_batch_is_left_as_it_is_and_the_others_go_on(finished: World) -> None:
    store, project = Store(finished.project.store_uri), finished.project
    before = store.receipt("labels", "b")
    shutil.rmtree(finished.source / "b")
    finished.add("d", 3, seed=300)
    definitions = project_definitions(project, resources())
    with launch.instance() as instance:
        # A run that was asked for before the sensor looked again: b is in the middle of its range.
        instance.add_dynamic_partitions("squares_batches", ["d"])
        job = definitions.resolve_job_def("squares_pipeline")
        ranged = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "d"}
        images = [dg.AssetKey(["squares", name]) for name in ("images", "rejected_files")]
        result = job.execute_in_process(instance=instance, asset_selection=images, tags=ranged, raise_on_error=False)
        assert result.success
        messages = [e.user_message for e in instance.all_logs(result.run_id)]
        assert any(m.startswith("b is no longer in ") for m in messages)
        assert store.batches("images") == ["a", "b", "c", "d"]

        sensor = batch_sensor(project)(
            dg.build_sensor_context(instance, resources=resources(), definitions=definitions)
        )
        (dropped,) = sensor.dynamic_partitions_requests
        assert isinstance(dropped, dg.DeleteDynamicPartitionsRequest) and list(dropped.partition_keys) == ["b"]
    assert launch.run("squares").success
    assert store.receipt("labels", "b") == before and store.read("images", "b").num_rows == 5
    with launch.instance() as instance:
        assert instance.get_dynamic_partitions("squares_batches") == ["a", "c", "d"]


def test_partitions_outlive_a_source_that_is_not_there_and_a_run_that_may_need_them(
    world: World, instance: dg.DagsterInstance
) -> None:
    follow_source(instance, world.project, ["a", "b"])
    follow_source(instance, world.project, [])
    assert instance.get_dynamic_partitions("squares_batches") == ["a", "b"]
    job = project_definitions(world.project, resources()).resolve_job_def("squares_pipeline")
    run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    follow_source(instance, world.project, ["b"])
    assert instance.get_dynamic_partitions("squares_batches") == ["a", "b"]
    instance.report_run_failed(run)
    follow_source(instance, world.project, ["b"])
    assert instance.get_dynamic_partitions("squares_batches") == ["b"]


def test_a_range_without_batches_passes_no_check_and_unknown_batches_are_told(world: World) -> None:
    assert launch.run("squares", select="images").success
    shutil.rmtree(world.source / "b")
    job = project_definitions(world.project, resources()).resolve_job_def("squares_pipeline")
    images = [dg.AssetKey(["squares", name]) for name in ("images", "rejected_files")]
    key = dg.AssetCheckKey(images[0], "some_images_usable")
    with launch.instance() as instance:
        how = {"instance": instance, "asset_selection": images, "raise_on_error": False, "partition_key": "b"}
        assert job.execute_in_process(**how).success
        (check,) = instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).values()
        checked = check.event.dagster_event.asset_check_evaluation_data
        assert not checked.passed and checked.severity.value == "WARN" and "nothing was" in str(checked.description)
        only = {"resources": {"batches": {"config": {"only": ["c"]}}}}
        assert "not in the run's range: c" in launch._failure(job.execute_in_process(**how, run_config=only))


def test_what_nobody_foresaw_takes_along_what_failed_before(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.source / "a" / "annotations.json").write_text("{", encoding="utf-8")
    collected = collect.collect_ground_truth

    def broken(source: Any, batch: str, *rest: Any) -> Any:
        if batch == "b":
            raise RuntimeError("out of memory")
        return collected(source, batch, *rest)

    monkeypatch.setattr(collect, "collect_ground_truth", broken)
    outcome = launch.run("squares", select="images,ground_truth")
    assert outcome.failure is not None
    assert "out of memory" in outcome.failure and "before it failed a: " in outcome.failure
