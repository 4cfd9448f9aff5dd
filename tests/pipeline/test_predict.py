from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline import looked, schema
from pipeline.compute import Compute, map_batches
from pipeline.errors import WeightsError
from pipeline.models import fcos
from pipeline.models.fcos import FcosConfig
from pipeline.models.probe import Embeddings, Probe
from pipeline.predict import FLOOR, LIMIT, PredictWorker, predict_classes, worker_options
from pipeline.store import Store
from pipeline.weights import file_sha256
from tests.weed import serving

CONFIG = FcosConfig(("Tree", "Car"), scale=1.25)


def image_rows(sizes: dict[Path, tuple[int, int]]) -> pa.Table:
    row: dict[str, Any] = {c.name: 1 for c in schema.table("images").columns if pa.types.is_integer(c.type)}
    row |= {c.name: "x" for c in schema.table("images").columns if c.type == pa.string()}
    row |= {"tile_x": 0, "tile_y": 0, "attributes": [], "batch": "b"}
    return schema.table("images").from_rows(
        [
            row | {"image_id": p.stem, "uri": str(p)} | {"width": w, "height": h, "photo_width": w, "photo_height": h}
            for p, (w, h) in sizes.items()
        ]
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A network with random weights whose classes are not rare, as a row of `models`."""
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    torch.manual_seed(1)
    network = fcos.build(CONFIG)
    with torch.no_grad():
        network.class_logits.weight.normal_(std=0.5)
        network.class_logits.bias.zero_()
        # Equal boxes on a regular grid would tie in the suppression of overlaps.
        network.distances.weight.normal_(std=0.2)
    fcos.save(path, network.state_dict(), CONFIG)
    return {"model": "fcos@1#0", "kind": "fcos", "path": str(path), "sha256": file_sha256(path)}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    sizes = {folder / f"{i}.png": (90 + 30 * (i % 2), 80) for i in range(6)}
    for path, (width, height) in sizes.items():
        Image.fromarray(random.integers(0, 255, (height, width, 3)).astype(np.uint8)).save(path)
    return image_rows(sizes)


def said(worker: PredictWorker, images: pa.Table) -> pa.Table:
    return looked.apart(worker(images), "predictions")[0]


def test_predictions_are_valid_rows(model: dict[str, Any], images: pa.Table) -> None:
    rows = said(PredictWorker(**worker_options(model)), images)
    assert rows.schema == schema.table("predictions").schema and rows.num_rows > 20
    assert schema.table("predictions").duplicate_keys(rows) == 0
    size = {r["image_id"]: (r["width"], r["height"]) for r in images.to_pylist()}
    for row in rows.to_pylist():
        width, height = size[row["image_id"]]
        assert 0 <= row["x1"] < row["x2"] <= width and 0 <= row["y1"] < row["y2"] <= height
        assert FLOOR <= row["score"] <= 1 and row["class_name"] in CONFIG.classes
    assert max(rows["image_id"].value_counts().field("counts").to_pylist()) <= LIMIT


def test_an_images_predictions_do_not_depend_on_its_neighbours(model: dict[str, Any], images: pa.Table) -> None:
    worker = PredictWorker(**worker_options(model))
    together = said(worker, images)
    alone = pa.concat_tables([said(worker, images.slice(i, 1)) for i in range(images.num_rows)])
    assert together.equals(alone)


@pytest.mark.slow
def test_local_processes_predict_what_inline_does(model: dict[str, Any], images: pa.Table, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    tables = [
        map_batches(
            PredictWorker,
            worker_options(model),
            images,
            Compute(mode, workers=2, batch_size=size, batches_per_shard=1),
            store.staging("predictions", "b", mode),
        )
        for mode, size in (("inline", 4), ("local", 3))
    ]
    first, second = (looked.apart(table, "predictions") for table in tables)
    assert first[0].equals(second[0]) and first[0].num_rows > 20 and first[1].equals(second[1])


def test_no_images_and_unreadable_images_give_no_rows(model: dict[str, Any], images: pa.Table) -> None:
    worker = PredictWorker(**worker_options(model))
    assert said(worker, images.slice(0, 0)).equals(schema.table("predictions").empty())
    gone = image_rows({Path(images["uri"][0].as_py()).with_name("gone.png"): (90, 80)})
    both = looked.apart(worker(pa.concat_tables([gone, images.slice(0, 1)])), "predictions")
    assert [set(table["image_id"].to_pylist()) for table in both] == [{"0"}] * 2
    assert worker(gone).num_rows == 0


def test_another_file_than_the_trained_one_is_refused(model: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not the checkpoint"):
        PredictWorker(**worker_options(model | {"sha256": "0"}))
    with pytest.raises(WeightsError, match="no checkpoint"):
        PredictWorker(**worker_options(model | {"path": str(tmp_path / "gone")}))


def test_a_probe_predicts_from_stored_vectors(images: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    Probe(("a", "b"), 5 * np.eye(2, dtype=np.float32), np.zeros(2, np.float32), "e@1#0").save(path)
    vectors = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    embeddings = Embeddings("e@1#0", ("3", "2", "1", "elsewhere"), vectors)
    rows = predict_classes("linear_probe@1#0", path, file_sha256(path), images, embeddings)
    # Images 0, 4 and 5 have no vector.
    assert rows["image_id"].to_pylist() == ["1", "1", "2", "2", "3", "3"]
    assert rows["class_name"].to_pylist() == ["a", "b", "b", "a", "a", "b"]
    assert rows["rank"].to_pylist() == [1, 2] * 3 and rows["x1"].null_count == 6
    assert rows["score"].to_pylist() == pytest.approx([1 / (1 + np.exp(-5)), 1 / (1 + np.exp(5))] * 3)
    assert schema.best_classes(rows)["class_name"].to_pylist() == ["a", "b", "a"]
    none = predict_classes("m", path, file_sha256(path), images.slice(0, 0), embeddings)
    assert none.num_rows == 0 and none.schema == schema.table("predictions").schema
    with pytest.raises(WeightsError, match="reads vectors"):
        predict_classes("m", path, file_sha256(path), images, Embeddings("other", (), np.zeros((0, 2), np.float32)))


def test_boxes_are_no_ranked_classes(model: dict[str, Any], images: pa.Table) -> None:
    found = said(PredictWorker(**worker_options(model)), images)
    assert found["rank"].null_count == found.num_rows > 0 and schema.best_classes(found).equals(found)


@pytest.mark.network
def test_another_machine_fetches_the_checkpoint_from_the_store(
    model: dict[str, Any], images: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path / "weed") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("CVP_HOME", str(tmp_path / "trained-here"))
        store = Store("s3://tables/trained")
        store.publish("models", Path(model["path"]))
        monkeypatch.setenv("CVP_HOME", str(tmp_path / "elsewhere"))
        elsewhere = model | {"path": f"/gone/{Path(model['path']).name}"}
        found = PredictWorker(**worker_options(elsewhere, store=store.uri))(images)
        assert found.equals(PredictWorker(**worker_options(model))(images))
        with pytest.raises(WeightsError, match="no checkpoint"):
            PredictWorker(**worker_options(elsewhere | {"path": "/gone/other.safetensors"}, store=store.uri))
