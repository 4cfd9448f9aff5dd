from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools.coco import COCO

from pipeline import masks, schema
from pipeline.errors import ConfigError, DataError
from pipeline.exchange import FORMATS, coco, cvat, fiftyone, format_named, label_studio, tasks
from tests.pipeline.exchange import made

EVERY = pytest.mark.parametrize("module", FORMATS.values(), ids=FORMATS)


def sent(count: int = 1000, seed: int = 0) -> list[tasks.Task]:
    images = made.images(seed=seed)
    return list(tasks.tasks(images, made.labels(images, count, seed)))


def table(some: list[tasks.Task]):
    return schema.table("labels").from_rows([row for task in some for row in task.labels])


# -- every format ----------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_random_labels_come_back_as_they_went(module: ModuleType, seed: int, tmp_path: Path) -> None:
    some = sent(seed=seed)
    losses = module.write(some, made.CLASSES, tmp_path)
    reading = module.read(tmp_path / module.FILE)
    assert reading.losses == []
    made.equal(tasks.rows(reading), table(some))
    assert [a.image_id for a in reading.answers] == [t.image_id for t in some]
    assert [a.shown for a in reading.answers] == [frozenset(r["annotation_id"] for r in t.labels) for t in some]
    assert [a.batch for a in reading.answers] == [t.batch for t in some]
    assert not any(a.complete for a in reading.answers)
    assert all(loss.item and loss.what for loss in losses)


@EVERY
def test_a_second_export_changes_no_file(module: ModuleType, tmp_path: Path) -> None:
    module.write(sent(200), made.CLASSES, tmp_path)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.is_file()}
    module.write(sent(200), made.CLASSES, tmp_path)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.is_file()} == before


@EVERY
def test_nothing_to_send(module: ModuleType, tmp_path: Path) -> None:
    assert module.write([], ["cat"], tmp_path) == []
    reading = module.read(tmp_path / module.FILE)
    assert reading.answers == [] and reading.losses == []
    bare = tasks.Task("ab" * 32, "b", "b/x-abababababababab.jpg", 10, 10, ())
    module.write([bare], ["cat"], tmp_path)
    (answer,) = module.read(tmp_path / module.FILE).answers
    assert answer.seen == () and answer.shown == frozenset()


@EVERY
@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2", b"\xff\xfe\x00", b"<x>", b"{}", b"[[", b"PK\x03\x04", b"3"])
def test_files_that_are_none(module: ModuleType, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError):
        module.read(path)


@EVERY
def test_files_that_are_not_there(module: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        module.read(tmp_path / "none")


@EVERY
@given(cut=st.floats(0, 1), junk=st.binary(max_size=12))
@settings(max_examples=40, deadline=None)
def test_damaged_files_are_refused_or_read_in_part(
    module: ModuleType, cut: float, junk: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("d")
    module.write(sent(12), made.CLASSES, folder)
    path = folder / module.FILE
    data = path.read_bytes()
    at = int(cut * len(data))
    path.write_bytes(data[:at] + junk + data[at + len(junk) :])
    try:
        reading = module.read(path)
    except DataError as error:
        assert str(path.name) in error.what or "annotations.xml" in error.what
    else:
        assert len(reading.answers) + len(reading.losses) > 0


def test_formats_have_names() -> None:
    assert format_named("cvat") is cvat
    with pytest.raises(ConfigError, match=r"(?s)fiftyon.*did you mean 'fiftyone'"):
        format_named("fiftyon")


def test_names_of_pictures_are_safe_and_tell_images_apart() -> None:
    base = {"image_id": "ab" * 32, "batch": "../..", "file_name": "../../etc/pass wd.PNG"}
    name = tasks.picture_name(base)
    assert name.endswith("/pass_wd-abababababababab.jpg") and ".." not in name
    other = tasks.picture_name(base | {"batch": "_"})
    assert name.split("/")[0] != other.split("/")[0]
    assert tasks.picture_name(base | {"file_name": "ä.png", "batch": "b"}) == "b/_-abababababababab.jpg"


# -- COCO ------------------------------------------------------------------------------------------


def test_pycocotools_reads_boxes_masks_and_scores(tmp_path: Path) -> None:
    some = sent()
    coco.write(some, made.CLASSES, tmp_path)
    theirs = COCO(str(tmp_path / coco.FILE))
    by_name = {a["attributes"]["annotation_id"]: a for a in theirs.anns.values()}
    sizes = {t.image_id: (t.height, t.width) for t in some}
    rows = table(some).to_pylist()
    assert len(by_name) == len(rows) == len(theirs.anns)
    for row in rows:
        found = by_name[row["annotation_id"]]
        assert theirs.cats[found["category_id"]]["name"] == row["class_name"] and found["score"] == row["score"]
        if row["mask"] is not None:
            assert (theirs.annToMask(found) == masks.decode(row["mask"], *sizes[row["image_id"]])).all()
        if row["x1"] is not None:
            x, y, w, h = found["bbox"]
            np.testing.assert_allclose([x, y, x + w, y + h], [row[k] for k in ("x1", "y1", "x2", "y2")], atol=1e-4)


def test_coco_ids_stay_the_same_when_others_come_and_go(tmp_path: Path) -> None:
    images = made.images()
    labels = made.labels(images, 100)

    def ids(rows) -> dict[str, int]:
        coco.write(tasks.tasks(images, rows), made.CLASSES, tmp_path)
        content = json.loads((tmp_path / coco.FILE).read_text())
        return {a["attributes"]["annotation_id"]: a["id"] for a in content["annotations"]}

    whole, half = ids(labels), ids(labels.slice(50))
    assert half.items() <= whole.items() and len(set(whole.values())) == 100


def test_what_coco_cannot_hold_is_itemised(tmp_path: Path) -> None:
    some = sent(100)
    losses = coco.write(some, made.CLASSES[1:], tmp_path)
    rows = table(some).to_pylist()
    unknown = {f"label {r['annotation_id']}" for r in rows if r["class_name"] == made.CLASSES[0]}
    assert {loss.item for loss in losses if "no class of the project" in loss.what} == unknown
    whole = {f"label {r['annotation_id']}" for r in rows if r["x1"] is None and r["mask"] is None}
    assert {loss.item for loss in losses if "whole images" in loss.what} == whole - unknown


# -- CVAT ------------------------------------------------------------------------------------------


def test_cvat_comes_zipped(tmp_path: Path) -> None:
    some = sent(50)
    cvat.write(some, made.CLASSES, tmp_path)
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.write(tmp_path / cvat.FILE, "annotations.xml")
    made.equal(tasks.rows(cvat.read(tmp_path / "export.zip")), table(some))
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(DataError, match="holds no readable"):
        cvat.read(tmp_path / "empty.zip")


def test_cvat_with_a_document_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>')
    with pytest.raises(DataError, match="declares a document type"):
        cvat.read(path)


def test_cvat_keeps_two_decimals_and_people_s_shapes(tmp_path: Path) -> None:
    body = """
    <annotations><version>1.1</version><image id="0" name="b/x-abababababababab.jpg" width="40" height="30">
    <box label="cat" occluded="1" xtl="1.25" ytl="2.00" xbr="9.50" ybr="8.75" z_order="0"/>
    <polygon label="cat" points="10.0,10.0;20.0,10.0;20.0,20.0;10.0,20.0"/>
    <mask label="cat" rle="2, 3, 1" left="4" top="5" width="3" height="2"/>
    <polyline label="cat" points="1,1;2,2"/><box label="cat" xtl="a" ytl="0" xbr="1" ybr="1"/>
    <mask label="cat" rle="2, 3, 9" left="4" top="5" width="3" height="2"/>
    <mask label="cat" rle="1" left="40" top="5" width="1" height="1"/>
    <box label="cat" xtl="0" ytl="0" xbr="1" ybr="1"><attribute name="verdict">maybe</attribute></box>
    <tag label="cat"/></image><track id="0" label="cat"/></annotations>"""
    path = tmp_path / "a.xml"
    path.write_text(body)
    reading = cvat.read(path)
    (answer,) = reading.answers
    assert answer.shown is None and answer.image_id == "" and answer.batch is None
    box, polygon, mask, tag = answer.seen
    assert box.box == (1.25, 2.0, 9.5, 8.75) and tag.box is None
    assert polygon.box == (10, 10, 20, 20)
    expected = np.zeros((30, 40), bool)
    expected[5, 6] = expected[6, 4] = expected[6, 5] = True
    assert mask.mask == masks.encode(expected) and mask.box == (4, 5, 7, 7)
    words = [loss.what for loss in reading.losses]
    assert len(words) == 7 and sum("not understood" in w for w in words) == 4


def test_cvat_cuts_what_is_too_long_and_we_say_so(tmp_path: Path) -> None:
    (task,) = [t for t in sent(100) if t.labels][:1]
    row = {**task.labels[0], "parts": ["ab" * 12] * 200}
    long = tasks.Task(task.image_id, task.batch, task.name, task.width, task.height, (row,))
    (loss,) = [x for x in cvat.write([long], made.CLASSES, tmp_path) if x.item.startswith("label")]
    assert loss.item == f"label {row['annotation_id']}" and "4096" in loss.what


def test_many_labels_on_an_image_fit_cvat_s_attributes(tmp_path: Path) -> None:
    images = made.images(1)
    cvat.write(tasks.tasks(images, made.labels(images, 700)), made.CLASSES, tmp_path)
    text = (tmp_path / cvat.FILE).read_text()
    (answer,) = cvat.read(tmp_path / cvat.FILE).answers
    assert len(answer.shown or ()) == 700
    assert max(len(part.split("<")[0]) for part in text.split('name="shown">')[1:]) <= 4096


# -- Label Studio ----------------------------------------------------------------------------------


@given(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
@settings(max_examples=100, deadline=None)
def test_label_studio_s_run_lengths_hold_any_mask(mask: np.ndarray) -> None:
    assert (label_studio.decode_rle(label_studio.encode_rle(mask), *mask.shape) == mask).all()


def test_label_studio_s_run_lengths_over_more_than_16_bits() -> None:
    mask = np.zeros((300, 400), bool)
    mask[100:250] = True
    assert (label_studio.decode_rle(label_studio.encode_rle(mask), 300, 400) == mask).all()


def test_masks_of_another_size_or_cut_short_are_refused() -> None:
    data = label_studio.encode_rle(np.ones((5, 5), bool))
    with pytest.raises(ValueError, match="6 x 5"):
        label_studio.decode_rle(data, 5, 6)
    with pytest.raises(ValueError, match="cut short"):
        label_studio.decode_rle(data[:-1], 5, 5)


def region(kind: str, value: dict, name: str = "r1", **more) -> dict:
    return {"id": name, "type": kind, "value": value, "original_width": 200, "original_height": 100, **more}


def answered(*results: dict, **more) -> dict:
    data = {"image_id": "ab" * 32, "batch": "b", "width": 200, "height": 100, "shown": ["s1", "s2"], "image": "x"}
    entry = {"result": list(results), "completed_by": {"id": 1, "email": "ann@x.org"}, "was_cancelled": False}
    entry |= {"updated_at": "2026-11-23T10:00:00.123456Z"} | more
    return {"id": 7, "data": data, "annotations": [entry], "predictions": []}


def test_label_studio_s_shapes() -> None:
    box = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["cat"]}
    turned = {"x": 50, "y": 50, "width": 10, "height": 10, "rotation": 90, "rectanglelabels": ["cat"]}
    outline = {"points": [[0, 0], [10, 0], [10, 20], [0, 20]], "polygonlabels": ["dog"]}
    task = answered(
        region("rectanglelabels", box, "s1#9"), region("rectanglelabels", turned, "r2"),
        region("polygonlabels", outline, "r3"), region("choices", {"choices": ["a", "b"]}, "r4"),
        region("ellipselabels", {}, "r5"), region("rectanglelabels", {**box, "rectanglelabels": []}, "r6"),
        region("rectanglelabels", {"x": "left"} | {"rectanglelabels": ["cat"]}, "r7"), {"type": "brushlabels"},
    )  # fmt: skip
    reading = label_studio.read_tasks([task, 5, {"data": None}], "x")
    (answer,) = reading.answers
    assert answer.complete and answer.reviewer == "ann@x.org" and answer.at is not None
    first, second, third, fourth = answer.seen
    assert first.annotation_id == "s1" and first.box == (20, 20, 80, 60)
    assert second.annotation_id is None and second.box == pytest.approx((90, 50, 100, 70))  # 20 x 10 px, turned
    assert third.mask is not None and third.box == (0, 0, 20, 20) and third.class_name == "dog"
    assert fourth.box is None and fourth.class_name == "a"
    words = " | ".join(f"{x.item}: {x.what}" for x in reading.losses)
    for expected in ("r2: turned by 90", "r4: of several", "r5: a 'ellipselabels'", "r6: it has no class",
                     "r7: not understood", "region 7: it has no class", "entry 2", "task 3"):  # fmt: skip
        assert expected in words


def test_skipped_annotations_are_no_answers() -> None:
    (answer,) = label_studio.read_tasks([answered(was_cancelled=True)], "x").answers
    assert not answer.complete and answer.seen == ()
    task = answered()
    task["annotations"].append({"result": [], "completed_by": 3})
    assert [a.reviewer for a in label_studio.read_tasks([task], "x").answers] == ["ann@x.org", "user 3"]


def test_the_labelling_interface_is_escaped() -> None:
    import xml.etree.ElementTree as ET

    text = label_studio.labeling_config(["<b>", 'a"b', "山"])
    root = ET.fromstring(text)
    assert [e.get("value") for e in root.find("RectangleLabels") or []] == ["<b>", 'a"b', "山"]


# -- FiftyOne --------------------------------------------------------------------------------------


def test_fiftyone_masks_changed_there_come_back(tmp_path: Path) -> None:
    image = made.images(1)
    pixels = np.zeros((image["height"][0].as_py(), image["width"][0].as_py()), bool)
    pixels[4:14, 6:16] = True
    row = made.labels(image, 1).to_pylist()[0] | {"x1": 6.0, "y1": 4.0, "x2": 16.0, "y2": 14.0}
    row["mask"] = masks.encode(pixels)
    fiftyone.write(tasks.tasks(image, schema.table("labels").from_rows([row])), made.CLASSES, tmp_path)
    path = tmp_path / fiftyone.FILE
    content = json.loads(path.read_text())
    label = content["samples"][0]["labels"]["detections"][0]
    half = np.ones((5, 5), bool)
    half[:, 3:] = False  # half the resolution, as FiftyOne allows
    label["mask"] = {"$binary": {"base64": fiftyone._packed(half), "subType": "00"}}
    label["tags"] = ["YES", "other"]
    path.write_text(json.dumps(content))
    (answer,) = fiftyone.read(tmp_path).answers
    expected = np.zeros_like(pixels)
    expected[4:14, 6:12] = True
    assert answer.seen[0].mask == masks.encode(expected) and answer.seen[0].verdict == "yes"


def test_fiftyone_s_hostile_masks_are_losses(tmp_path: Path) -> None:
    import base64
    import pickle
    import zlib

    fiftyone.write(sent(30), made.CLASSES, tmp_path)
    path = tmp_path / fiftyone.FILE
    content = json.loads(path.read_text())
    labels = [x for s in content["samples"] for x in s["labels"]["detections"]]
    evil = base64.b64encode(
        zlib.compress(
            b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1, 1)}".ljust(128)
            + pickle.dumps([1])
        )
    ).decode()
    for label, mask in zip(labels, [evil, "%%%", base64.b64encode(b"x").decode(), 5], strict=False):
        label["mask"] = {"$binary": {"base64": mask}} if isinstance(mask, str) else mask
        label["rle"] = None
    path.write_text(json.dumps(content))
    assert len(fiftyone.read(path).losses) == 4
