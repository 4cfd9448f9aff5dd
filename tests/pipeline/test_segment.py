from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import masks, schema
from pipeline.compute import Compute, map_batches
from pipeline.config import ProjectConfig
from pipeline.models.tiny import TinySegmenter
from pipeline.segment import SegmentWorker, with_boxes
from pipeline.store import Staging, Store
from tests.pipeline.photo_rows import save, speckled, tiny_config


def boxes(images: pa.Table, which: list[int], corners: np.ndarray) -> pa.Table:
    names = images.column("image_id").to_pylist()
    ids = [names[k] for k in which]
    n = len(which)
    return schema.annotations(
        "detections", image_ids=ids, batch="b", producer="m@1#0", classes=["cat"] * n, boxes=corners
    )


def segment(
    annotations: pa.Table, images: pa.Table, config: ProjectConfig, compute: Compute, staging: Staging
) -> pa.Table:
    return map_batches(SegmentWorker, {"config": config}, with_boxes(images, annotations), compute, staging)


def staging(folder: Path, name: str = "f") -> Staging:
    return Store(str(folder / "store")).staging("masks", "b", name)


@pytest.fixture
def images(tmp_path: Path) -> pa.Table:
    return save(tmp_path, [speckled(k) for k in range(4)])


def random_boxes(n: int) -> np.ndarray:
    low = np.random.default_rng(0).integers(0, 30, (n, 2))
    return np.concatenate([low, low + np.random.default_rng(1).integers(5, 28, (n, 2))], axis=1)


def test_every_box_gets_its_mask(tmp_path: Path, images: pa.Table) -> None:
    which, corners = [2, 0, 2, 3, 2], random_boxes(5)
    found = segment(boxes(images, which, corners), images, tiny_config(), Compute(), staging(tmp_path))
    annotations = boxes(images, which, corners)
    assert set(found.column("annotation_id").to_pylist()) == set(annotations.column("annotation_id").to_pylist())
    rows = {r["annotation_id"]: r for r in found.to_pylist()}
    for key, image, box in zip(
        annotations.column("annotation_id").to_pylist(),
        annotations.column("image_id").to_pylist(),
        corners,
        strict=True,
    ):
        (expected,) = TinySegmenter().segment([speckled(0)], [box[None]])[0].masks
        assert rows[key]["image_id"] == image and rows[key]["producer"] == TinySegmenter.producer
        assert rows[key]["mask"] == expected and rows[key]["stability"] is None
        assert rows[key]["area"] == masks.decode(expected, 60, 80).sum() > 0


def test_many_boxes_of_one_image_are_all_segmented(tmp_path: Path, images: pa.Table) -> None:
    annotations = boxes(images, [1] * 50, random_boxes(50))
    found = segment(annotations, images, tiny_config(), Compute(), staging(tmp_path))
    assert found.column("annotation_id").to_pylist() == annotations.column("annotation_id").to_pylist()


def test_boxes_travel_with_their_images(images: pa.Table) -> None:
    corners = random_boxes(4)
    annotations = boxes(images, [3, 1, 3, 3], corners)
    wanted = with_boxes(images, annotations)
    assert wanted.column("image_id").to_pylist() == images.column("image_id").take([1, 3]).to_pylist()
    names = annotations.column("annotation_id").to_pylist()
    assert wanted.column("annotation_ids").to_pylist() == [[names[1]], [names[0], names[2], names[3]]]
    assert wanted.column("boxes").to_pylist() == [corners[1].tolist(), corners[[0, 2, 3]].ravel().tolist()]


def test_image_level_labels_unknown_images_and_nothing_give_no_masks(tmp_path: Path, images: pa.Table) -> None:
    whole = schema.annotations("detections", image_ids=["x"], batch="b", producer="m@1#0", classes=["cat"], boxes=None)
    strange = boxes(images, [0], random_boxes(1)).set_column(2, "batch", pa.array(["other"]))
    for k, given in enumerate((whole, strange, schema.table("detections").empty())):
        found = segment(given, images, tiny_config(), Compute(), staging(tmp_path, str(k)))
        assert found.equals(schema.table("masks").empty())
    none = segment(whole, schema.table("images").empty(), tiny_config(), Compute(), staging(tmp_path, "n"))
    assert none.num_rows == 0


def test_images_that_cannot_be_read_have_no_masks(tmp_path: Path, images: pa.Table) -> None:
    (tmp_path / "001.png").unlink()
    annotations = boxes(images, [0, 1], random_boxes(2))
    found = segment(annotations, images, tiny_config(), Compute(), staging(tmp_path))
    assert found.column("annotation_id").to_pylist() == annotations.column("annotation_id").to_pylist()[:1]


@pytest.mark.parametrize("mode", ["local", pytest.param("auto", marks=pytest.mark.ray)])
def test_every_compute_gives_the_same_table(tmp_path: Path, images: pa.Table, mode: str) -> None:
    annotations = boxes(images, [0, 1, 2, 3, 3], random_boxes(5))
    plain = segment(annotations, images, tiny_config(), Compute(), staging(tmp_path, "plain"))
    spread = segment(annotations, images, tiny_config(), Compute(mode, 2, 1, 1), staging(tmp_path, mode))
    assert spread.equals(plain)
