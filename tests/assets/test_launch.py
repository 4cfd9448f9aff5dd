"""The whole graph on a small project: fresh, stale, partial, broken and interrupted."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy

from assets import launch
from assets.curation import encoder_of
from assets.graph import recipes
from assets.recipes import Work
from assets.resources import s3_resource
from assets.running import run_recipe
from pipeline import looked, predict, schema
from pipeline.compute import Compute
from pipeline.errors import ConfigError, PipelineError
from pipeline.ids import content_hash
from pipeline.store import Store
from pipeline.vectors import Vectors
from tests.assets.conftest import World, draw, settings


def contents(store: Store) -> dict[str, str]:
    """Content hash of every stored table, without where files lie and when; not of those that hold times."""
    found = {}
    for name, table in schema.TABLES.items():
        if name in ("costs", "verdict", "report", "warehouse", "slice_history"):
            continue
        for batch in store.batches(name) if table.batched else [None]:
            rows = store.read_or_empty(name, batch)
            found[f"{name}/{batch}"] = content_hash(rows.drop_columns({"uri", "at"} & set(rows.column_names)))
    return found


def test_everything_is_made_once(finished: World) -> None:
    assert set(launch.status("squares").column("state").to_pylist()) == {"fresh"}
    store = Store(finished.project.store_uri)
    assert store.read("images").num_rows == 15
    assert store.read("annotated_images").num_rows == 10
    assert set(store.read("labels").column("status").to_pylist()) >= {"human"}
    assert store.read("masks").num_rows == store.read("detections").num_rows > 0
    before = contents(store)
    second = launch.run("squares")
    assert second.success and not second.executed and not second.run_ids
    assert contents(store) == before


def test_runs_checks_and_pages_are_in_the_instance(finished: World) -> None:
    with launch.instance() as instance:
        (run,) = instance.get_runs()
        assert run.is_success and run.job_name == "squares_pipeline"
        assert instance.get_dynamic_partitions("squares_batches") == ["a", "b", "c"]
        import dagster as dg

        event = instance.get_latest_materialization_event(dg.AssetKey(["squares", "labels"]))
        metadata = event.asset_materialization.metadata
        assert metadata["dagster/row_count"].value > 0 and "data:image/png;base64" in metadata["labels"].value
        assert "annotation_id" in metadata["preview"].value
        checks = instance.event_log_storage.get_latest_asset_check_execution_by_key(
            [dg.AssetCheckKey(dg.AssetKey(["squares", "splits"]), "no_leakage_between_splits")]
        )
        assert [c.status.value for c in checks.values()] == ["SUCCEEDED"]


def test_a_photo_more_or_less_costs_only_itself(
    finished: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One new, one gone, one renamed: the tables are as from scratch, and only the new one was worked on."""
    folder, select = finished.source / "a", "images,ground_truth,quality,embeddings,detections,masks"
    draw(folder / "a.png", seed=77)
    (folder / "a_00.png").unlink()
    (folder / "a_01.png").rename(folder / "z.png")
    store, began = Store(finished.project.store_uri), datetime.now(UTC)
    outcome = launch.run("squares", batches=["a"], select=select)
    assert outcome.success, outcome.failure
    ids, encoder = store.read("images", "a")["image_id"].to_pylist(), encoder_of(finished.project)
    _, vectors = Vectors(store.uri).fetch(ids, encoder, batch="a")
    rows = [r for r in store.read_ledger().to_pylist() if r["started_at"] >= began]
    worked = {r["asset"]: r["images"] for r in rows}
    del worked["ground_truth"]
    assert worked == {"images": 6, "quality": 1, "embeddings": 1, "detections": 1, "masks": 1}
    monkeypatch.setenv("CVP_HOME", str(tmp_path / "other"))
    assert launch.run("squares", batches=["a"], select=select).success
    scratch = Store(finished.project.store_uri)
    made = [{k: v for k, v in contents(s).items() if k.endswith("/a")} for s in (scratch, store)]
    assert set(made[0]) >= {f"{name}/a" for name in worked} and made[0].items() <= made[1].items()
    assert np.array_equal(Vectors(scratch.uri).fetch(ids, encoder, batch="a")[1], vectors)


class Says:
    """A trained model that says its own name of every image but the first that it sees, where it finds nothing."""

    def __init__(self, model: str, shown: Counter[str]) -> None:
        self.model, self.shown = model, shown

    def __call__(self, rows: pa.Table) -> pa.Table:
        self.shown[self.model] += rows.num_rows
        said = rows.filter(pc.not_equal(rows["image_id"], pc.min(rows["image_id"])))
        return looked.marked(
            predict.class_rows(self.model, ["square"], said, np.ones((said.num_rows, 1))), rows, self.model
        )


def test_each_trained_model_predicts_for_itself_and_sees_no_photo_twice(
    finished: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, shown = {"one@1#0": "1", "other@1#0": "2"}, Counter[str]()
    monkeypatch.setattr(
        predict,
        "labelling",
        lambda _: pa.table({"model": [*models], "sha256": [*models.values()], "kind": ["fcos"] * 2}),
    )
    monkeypatch.setattr(predict, "worker", lambda model, *_: (Says, {"model": model["model"], "shown": shown}))
    (recipe,) = [r for r in recipes(finished.project) if r.name == "predictions"]
    store = Store(finished.project.store_uri)
    store.delete("predictions", "a")

    def predicted() -> tuple[dict[str, int], pa.Table, pa.Table]:
        shown.clear()
        run_recipe(recipe, Work(finished.project, store, Compute(), s3_resource(), "a"))
        return dict(shown), *(store.read(name, "a") for name in recipe.outputs)

    asked, said, counts = predicted()
    assert asked == {"one@1#0": 6, "other@1#0": 6} and said.num_rows == 10 and counts.num_rows == 12
    draw(finished.source / "a" / "a.png", seed=77)
    (finished.source / "a" / "a_00.png").unlink()
    assert launch.run("squares", batches=["a"], select="images,embeddings").success
    asked, said, counts = predicted()
    assert asked == {"one@1#0": 1, "other@1#0": 1}
    order = {image: i for i, image in enumerate(store.read("images", "a")["image_id"].to_pylist())}
    for table in (said, counts):
        places = [order[i] for i in table["image_id"].to_pylist()]
        assert places == sorted(places[: len(places) // 2]) * 2, "photo by photo, of each model"
    models["other@1#0"] = "3"
    store.delete("predictions", "a")
    # Counts without the rows that they are of say nothing, but where these are none; nor do those of another file.
    assert predicted()[0] == {"one@1#0": 4, "other@1#0": 6}


def test_a_changed_setting_redoes_only_what_depends_on_it(finished: World) -> None:
    finished.write(trust={"target": 0.6})
    states = {r["asset"]: r["state"] for r in launch.status("squares").to_pylist() if r["state"] != "fresh"}
    assert states == {"trust": "stale", "model_trust": "stale"}
    outcome = launch.run("squares")
    redone = {name.split("[")[0] for name in outcome.executed}
    assert outcome.success and "trust" in redone
    assert not redone & {"images", "quality", "embeddings", "detections", "splits", "tags"}


def test_a_new_batch_leaves_the_old_ones_alone(finished: World) -> None:
    finished.add("d", 3, seed=300)
    outcome = launch.run("squares")
    assert outcome.success
    assert "detections[d]" in outcome.executed and "detections[a]" not in outcome.executed


def test_one_batch_and_selected_tables(world: World) -> None:
    outcome = launch.run("squares", batches=["b"], select="images,quality")
    assert outcome.success and outcome.executed == ["images[b]", "quality[b]"]
    assert {name.split("[")[0] for name in launch.run("squares", batches=["b"], select="collection").executed} == {
        "ground_truth"
    }


def test_what_is_proposed_hangs_on_labellers_and_slices_where_they_have_weight(world: World) -> None:
    curation = settings()["curation"]
    slices = [{"name": "bright", "where": "brightness > 0.2"}]
    weights = {"budget": 4, "diversity": 0, "uncertainty": 1, "rarity": 1, "slice_deficit": 1, "slice_target": 2}
    world.write(curation=curation | {"select": weights}, evaluation={"slices": slices})
    assert launch.run("squares").success  # slices that are found come from the evaluation
    store = Store(world.project.store_uri)
    chosen = store.read("selection")
    assert chosen.num_rows == 4 and set(chosen.column("method").to_pylist()) == {"uncertainty + rarity + slice_deficit"}
    assert chosen.column("diversity").null_count == 4 and chosen.column("uncertainty").null_count == 0
    assert set(chosen.column("batch").to_pylist()) == {"b"}  # the batch that nobody has labelled
    learned = store.read("quality_limits").filter(pc.field("source") == "learned")
    assert learned.num_rows == 6 and set(learned.column("images").to_pylist()) == {15}


def test_mistakes_are_named(world: World) -> None:
    with pytest.raises(ConfigError, match="no project 'sqares'") as error:
        launch.run("sqares")
    assert "squares" in error.value.remedy
    with pytest.raises(ConfigError, match="batch 'z'"):
        launch.run("squares", batches=["z"])
    with pytest.raises(ConfigError, match="'label'") as error:
        launch.run("squares", select="label")
    assert "labels" in error.value.remedy
    world.write(source={"uri": "../../nowhere"})
    with pytest.raises(PipelineError, match="nowhere"):
        launch.run("squares")


def test_a_failure_says_what_where_and_the_remedy(world: World) -> None:
    (world.source / "a" / "annotations.json").write_text("{", encoding="utf-8")
    outcome = launch.run("squares")
    assert not outcome.success
    assert "squares/ground_truth batch a" in outcome.failure and "->" in outcome.failure
    # What does not depend on the broken file is there, and mending it is enough.
    store = Store(world.project.store_uri)
    assert store.read("detections").num_rows > 0 and not store.exists("trust")
    world.add("a", 6, seed=0)
    assert launch.run("squares").success


def test_a_blocking_check_keeps_rows_from_being_committed(world: World) -> None:
    path = world.source / "a" / "annotations.json"
    coco = json.loads(path.read_text(encoding="utf-8"))
    (world.folder / "labellers.py").write_text(
        "import numpy as np\n"
        "from pipeline.models.roles import Detections\n"
        "class Outside:\n"
        "    def __init__(self, ontology): pass\n"
        "    def detect(self, images):\n"
        "        return [Detections(np.array([[1, 1, 9, 9.]]), np.array([2.0]), ('square',)) for _ in images]\n",
        encoding="utf-8",
    )
    assert coco
    world.write(labelling={"labellers": [{"name": "outside", "kind": "python", "path": "labellers.py:Outside"}]})
    outcome = launch.run("squares")
    assert not outcome.success
    assert not Store(world.project.store_uri).exists("detections")
    assert not Store(world.project.store_uri).exists("trust")


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_tables(finished: World, tmp_path: Path) -> None:
    """SIGKILL a run again and again, with ever more files there; the last one finishes what is left."""
    store, second = Path(finished.project.store_uri), tmp_path / "second" / "store" / "squares"
    expected = contents(Store(str(store)))
    environment = {**os.environ, "CVP_HOME": str(tmp_path / "second")}
    command = [sys.executable, "-c", "from assets import launch; launch.run('squares')"]
    draw, whole = random.Random(0), len(files_of(store))
    for share in (0.1, 0.4, 0.7):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(files_of(second)) < share * whole and process.poll() is None:
            time.sleep(0.1)
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it has ended by itself"
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert contents(Store(str(second))) == expected


def files_of(store: Path) -> list[Path]:
    return list(store.rglob("data.parquet"))


def _killed_at(statement: str) -> None:
    """Open an instance in a process that dies as its database is made."""

    @sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "before_cursor_execute")
    def kill(_: object, __: object, said: str, *more: object) -> None:
        if statement in said:
            os.kill(os.getpid(), signal.SIGKILL)

    with launch.instance():
        pass


def test_killed_as_dagsters_database_is_made_the_next_run_has_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    World(tmp_path).enter(monkeypatch)
    process = get_context("spawn").Process(target=_killed_at, args=("CREATE TABLE dynamic_partitions",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with launch.instance() as opened:
        opened.add_dynamic_partitions("batches", ["a"])
        assert opened.get_dynamic_partitions("batches") == ["a"]


def test_the_graph_is_in_order(world: World) -> None:
    made: set[str] = set()
    for recipe in recipes(world.project):
        assert set(recipe.inputs) <= made
        made |= set(recipe.outputs)
    assert made == set(schema.TABLES)
