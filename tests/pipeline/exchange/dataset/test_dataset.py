"""Each format of a dataset, out and in again: what is not told as lost is as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from pipeline import masks, schema
from pipeline.exchange import dataset
from pipeline.exchange.tasks import Loss, tasks
from pipeline.formats import Folder, Labels, read_labels
from pipeline.ontology import Class, Ontology
from pipeline.sources import SourceFile
from tests.pipeline.exchange import made

CLASSES = ("cat", "traffic light", "Bäume, 山")
ONTOLOGY = Ontology(tuple(Class(name, (name,)) for name in CLASSES))
FLAGS = ("is_crowd", "ignore", "truncated")
# What each format holds of a label: the same table as in docs/formats.md.
BOXES = {"coco", "yolo", "voc", "labelme", "cvat", "label-studio", "csv", "imagefolder"}
MASKS = {"coco", "labelme", "cvat", "label-studio", "imagefolder"}
WHOLE = {"labelme", "cvat", "label-studio", "imagefolder"}
HELD_FLAGS = {
    "coco": {"is_crowd", "ignore"}, "voc": {"ignore", "truncated"}, "labelme": set(FLAGS), "imagefolder": set(FLAGS),
}  # fmt: skip
BOTH = {"coco", "cvat", "label-studio", "imagefolder"}  # a box that is not its mask's


def drawn(seed: int, count: int, flagged: bool) -> tuple[pa.Table, pa.Table, dict[str, str]]:
    """Images, labels of plain class names, and splits."""
    generator = np.random.default_rng(seed)
    frames = made.images(6, seed).to_pylist()
    for frame in frames:
        frame |= {"width": int(generator.integers(12, 40)), "height": int(generator.integers(12, 40))}
    images = schema.table("images").from_rows(frames)
    rows = made.labels(images, count, seed).to_pylist()
    for row in rows:
        row["class_name"] = CLASSES[int(generator.integers(len(CLASSES)))]
        row |= {flag: bool(flagged and generator.random() < 0.2) for flag in FLAGS}
    ids = images.column("image_id").to_pylist()
    split = {i: ("train", "val", "test")[k % 3] for k, i in enumerate(ids)}
    return images, schema.table("labels").from_rows(rows), split


def read_back(name: str, folder: Path, images: pa.Table, split: dict[str, str]) -> tuple[Labels, dict[str, str]]:
    """What the reader of the format finds in the folder, and image_id -> the picture's file."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    listed = [SourceFile(str(p.relative_to(folder)), str(p), p.stat().st_size, "") for p in files]
    empty = schema.table("labels").empty()
    place = {t.image_id: dataset.FORMATS[name].picture(split[t.image_id], t) for t in tasks(images, empty)}
    size = {t.image_id: (t.width, t.height) for t in tasks(images, empty)}
    pictures = [SourceFile(path, path, 1, "") for path in place.values()]
    sizes = {path: size[image] for image, path in place.items()}
    return read_labels(Folder([*listed, *pictures], lambda f: Path(f.uri).read_bytes(), sizes, ONTOLOGY), name), place


def expected(name: str, row: dict[str, Any], size: tuple[int, int]) -> tuple[Any, ...] | None:
    """Class, box, mask and flags that must come back; None where the label itself is lost."""
    width, height = size
    whole = row["x1"] is None and row["mask"] is None
    if whole:
        return (row["class_name"], None, None) if name in WHOLE else None
    if name in ("yolo", "csv") and (row["is_crowd"] or row["ignore"]):
        return None
    mask = row["mask"]
    tight = None if mask is None else masks.box(mask, height, width)
    box = tight if row["x1"] is None else [row[k] for k in ("x1", "y1", "x2", "y2")]
    if name == "yolo" and mask is not None:
        if masks.area(mask):
            return row["class_name"], "any", largest(mask, height, width)
        return None if row["x1"] is None else (row["class_name"], box, None)
    if name == "labelme" and mask is not None:
        return (row["class_name"], tight, mask) if masks.area(mask) else None
    return row["class_name"], box, mask if name in MASKS else None


def largest(mask: str, height: int, width: int) -> str:
    """The largest part, its holes filled."""
    parts = [masks.from_polygons([p], height, width) for p in masks.outlines(mask, height, width)[0]]
    return max(parts, key=masks.area)


@pytest.mark.parametrize("name", list(dataset.FORMATS))
@given(seed=st.integers(0, 10**6), flagged=st.booleans())
@settings(max_examples=6, deadline=None)
def test_what_is_not_told_as_lost_comes_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, seed: int, flagged: bool
) -> None:
    folder = tmp_path_factory.mktemp(name)
    images, labels, split = drawn(seed, 40, flagged)
    losses, count = dataset.write(name, images, labels, split, CLASSES, folder)
    found, place = read_back(name, folder, images, split)
    assert count == 6 and set(found.annotated) == set(place.values())  # empty images are labelled, too
    size = {r["image_id"]: (r["width"], r["height"]) for r in images.to_pylist()}
    told = " ".join(loss.item for loss in losses)
    for image, path in place.items():
        records = [r for r in found.records if r.file_name == path]
        for row in (r for r in labels.to_pylist() if r["image_id"] == image):
            wanted = expected(name, row, size[image])
            if wanted is None:
                assert row["annotation_id"] in told
                continue
            whole = (row["class_name"], None, None)
            if name == "labelme" and wanted[1] is None and not any(fits(r, whole) for r in records):
                assert row["annotation_id"] in told
                continue  # the second of one class: a flag is set or not
            same = [r for r in records if fits(r, wanted)]
            assert same, (row, wanted, records)
            best = max(same, key=lambda r: sum(getattr(r, flag) == row[flag] for flag in FLAGS))
            records.remove(best)
            held = HELD_FLAGS.get(name, set()) if row["x1"] is not None or row["mask"] is not None else set()
            assert all(getattr(best, flag) == row[flag] for flag in held)
            # CVAT and Label Studio keep flags with the other data of a label, where only `cvp import` looks.
            lossy = any(row[f] and f not in held for f in FLAGS) and name not in ("cvat", "label-studio")
            lossy |= row["mask"] is not None and name in ("voc", "csv")
            assert not lossy or row["annotation_id"] in told
        assert not records


def fits(record: Any, wanted: tuple[Any, ...]) -> bool:
    name, box, mask = wanted
    if record.class_name != name or (isinstance(box, str) is False and (record.box is None) != (box is None)):
        return False
    near = isinstance(box, str) or box is None or np.allclose(record.box, box, atol=0.01)
    return bool(near) and record.mask == mask


def test_yolo_keeps_outlines_and_tells_of_holes_and_parts(tmp_path: Path) -> None:
    images, labels, split = one_image(ring(), two_parts(), plain())
    losses, _ = dataset.write("yolo", images, labels, split, CLASSES, tmp_path)
    told = {loss.item: loss.what for loss in losses}
    assert "1 are filled" in told["label ring"] and "largest of 2 parts" in told["label two"]
    assert "label plain" not in told and told["3 ids of labels"] == "YOLO holds none"
    found, _ = read_back("yolo", tmp_path, images, split)
    areas = sorted(int(masks.area(r.mask or "")) for r in found.records)
    assert areas == sorted([100, 36, 48])  # the ring filled; the larger part; the plain one exactly
    content = yaml.safe_load((tmp_path / "data.yaml").read_text(encoding="utf-8"))
    assert content == {"train": "images/train", "val": "images/train", "names": dict(enumerate(CLASSES))}


def ring() -> tuple[str, np.ndarray]:
    mask = np.zeros((40, 50), bool)
    mask[10:20, 10:20] = True
    mask[13:17, 13:17] = False
    return "ring", mask


def two_parts() -> tuple[str, np.ndarray]:
    mask = np.zeros((40, 50), bool)
    mask[0:6, 30:36] = mask[20:22, 40:44] = True
    return "two", mask


def plain() -> tuple[str, np.ndarray]:
    mask = np.zeros((40, 50), bool)
    mask[30:38, 2:8] = True
    return "plain", mask


def one_image(*things: tuple[str, np.ndarray]) -> tuple[pa.Table, pa.Table, dict[str, str]]:
    frame = made.images(1).to_pylist()[0] | {"width": 50, "height": 40, "photo_width": 50, "photo_height": 40}
    row = made.labels(made.images(1), 1).to_pylist()[0] | dict.fromkeys(("x1", "y1", "x2", "y2"))
    row |= {"image_id": frame["image_id"], "batch": frame["batch"], "class_name": "cat", "is_crowd": False}
    row |= {"ignore": False, "truncated": False, "score": 1.0}
    rows = [row | {"annotation_id": name, "mask": masks.encode(mask)} for name, mask in things]
    return schema.table("images").from_rows([frame]), schema.table("labels").from_rows(rows), {
        frame["image_id"]: "train"
    }  # fmt: skip


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_outlines_without_holes_are_the_mask_again(seed: int) -> None:
    generator = np.random.default_rng(seed)
    height, width = (int(v) for v in generator.integers(1, 16, 2))
    mask = generator.random((height, width)) < generator.uniform(0.05, 0.95)
    counts = masks.encode(mask)
    parts, holes = masks.outlines(counts, height, width)
    if not parts:
        assert not mask.any() and not holes
        return
    filled = masks.decode(masks.from_polygons(parts, height, width), height, width)
    assert (filled | mask == filled).all() and ((filled == mask).all() or holes)
    areas = [abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2
             for x, y in (np.array(p).reshape(-1, 2).T for p in [*parts, *holes])]  # fmt: skip
    assert sum(areas[: len(parts)]) - sum(areas[len(parts) :]) == mask.sum()


def test_pycocotools_loads_our_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels, split = drawn(3, 60, True)
    dataset.write("coco", images, labels, split, CLASSES, tmp_path)
    count = 0
    for name in ("train", "val", "test"):
        content = COCO(str(tmp_path / "annotations" / f"instances_{name}.json"))
        assert len(content.imgs) == 2 and [c["name"] for c in content.loadCats(content.getCatIds())] == list(CLASSES)
        for entry in content.loadAnns(content.getAnnIds()):
            count += 1
            if entry["segmentation"]:
                assert content.annToMask(entry).sum() == entry["area"]
    whole = sum(r["x1"] is None and r["mask"] is None for r in labels.to_pylist())
    assert count == 60 - whole


@pytest.mark.parametrize("name", list(dataset.FORMATS))
def test_hostile_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    images, labels, _ = drawn(5, 30, True)
    rows = images.to_pylist()
    for row, evil in zip(rows, ("../../x.png", "/etc/passwd", "C:\\a\\..\\b.jpg", "a\nb.jpg", "..", "x" * 400)):  # noqa: B905
        row |= {"file_name": evil, "batch": "../up"}
    hostile = made.labels(schema.table("images").from_rows(rows), 60)
    split = dict.fromkeys((r["image_id"] for r in rows), "train")
    folder = tmp_path / "out"
    dataset.write(name, schema.table("images").from_rows(rows), hostile, split, made.CLASSES, folder)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    names = {Path(dataset.FORMATS[name].picture("train", t)) for t in tasks(images, labels)}
    assert all(not p.is_absolute() and ".." not in p.parts for p in names)


def test_classes_that_are_no_longer_asked_for_are_told(tmp_path: Path) -> None:
    images, labels, split = one_image(plain())
    losses, _ = dataset.write("coco", images, labels, split, ["dog"], tmp_path)
    assert losses == [Loss("label plain", "'cat' is no class of the project: left out")]
    content = json.loads((tmp_path / "annotations" / "instances_train.json").read_text(encoding="utf-8"))
    assert content["annotations"] == [] and len(content["images"]) == 1


def test_doing_it_again_changes_nothing(tmp_path: Path) -> None:
    images, labels, split = drawn(8, 30, False)
    for name in dataset.FORMATS:
        folder = tmp_path / name
        before = {}
        for _ in range(2):
            dataset.write(name, images, labels, split, CLASSES, folder)
            now = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
            assert before in ({}, now)
            before = now


def test_labelme_opens_the_mask_as_labelme_does(tmp_path: Path) -> None:
    """labelme.utils.shapes_to_label lays the PNG from the first corner to the last, both inside."""
    import base64
    import io

    images, labels, split = one_image(ring())
    dataset.write("labelme", images, labels, split, CLASSES, tmp_path)
    (path,) = tmp_path.rglob("*.json")
    (shape,) = json.loads(path.read_text(encoding="utf-8"))["shapes"]
    (x1, y1), (x2, y2) = shape["points"]
    inside = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))).astype(bool)
    whole = np.zeros((40, 50), bool)
    whole[y1 : y2 + 1, x1 : x2 + 1] = inside
    np.testing.assert_array_equal(whole, ring()[1])
