"""LabelMe, CVAT, Label Studio and ImageFolder as other tools write them, odd files included."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import masks
from pipeline.errors import DataError
from tests.pipeline.formats.test_readers import coco, error_of, read, voc


def labelme(*shapes: dict[str, Any], **more: Any) -> str:
    content = {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": "..\\raw\\a.jpg"}
    content |= {"imageData": None, "imageHeight": 48, "imageWidth": 64}
    return json.dumps(content | more)


def shape(kind: str, *points: tuple[float, float], label: str = "cat", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": [list(p) for p in points], "shape_type": kind, "group_id": None} | more


def test_labelme_shapes() -> None:
    text = labelme(
        shape("rectangle", (12, 20), (2, 3), difficult=True),
        shape("polygon", (0, 0), (4, 0), (4, 4), (0, 4), group_id=7),
        shape("polygon", (10, 10), (12, 10), (12, 12), (10, 12), group_id=7),
        shape("circle", (30, 30), (34, 30), label="Kitty"),
        shape("line", (0, 0), (9, 9)),
        flags={"traffic light": True, "cat": False},
    )
    found = read({"a.jpg": "", "labels/a.json": "\ufeff" + text})
    assert found.annotated == {"a.jpg": "labels/a.json"}
    whole, box, parts, circle = found.records
    assert (whole.class_name, whole.box) == ("traffic light", None)
    assert box.box == (2, 3, 12, 20) and box.ignore and box.mask is None
    assert parts.box == (0, 0, 12, 12) and masks.area(parts.mask or "") == 16 + 4
    assert abs(masks.area(circle.mask or "") - np.pi * 16) < 4 and circle.class_name == "cat"


def test_labelme_of_an_empty_image_is_empty_and_without_size_is_taken() -> None:
    found = read({"a.jpg": "", "a.json": labelme(imageHeight=None, imageWidth=None)}, "labelme")
    assert found.annotated == {"a.jpg": "a.json"} and not found.records


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (labelme(shape("rectangle", (1, 2))), "shapes[0]: 1 points"),
        (labelme(shape("polygon", (1, 2), (3, 4))), "shapes[0]: 2 points"),
        (labelme(shape("rectangle", (1, 2), (3, float("nan")))), "shapes[0]: nan is not a number"),
        (labelme(shape("blob", (1, 2), (3, 4), (5, 6))), "unknown shape_type 'blob'"),
        (labelme(shape("mask", (0, 0), (3, 4), mask="AAAA")), "its mask is no PNG"),
        (labelme(shape("rectangle", (0, 0), (3, 4), label="catt")), "did you mean 'cat'"),
        (labelme(imageWidth=48, imageHeight=64), "64 x 48 pixels, not 48 x 64"),
        (labelme().replace('"shapes": []', '"shapes": {}'), "shapes must be a list"),
        (labelme()[:-1], "line 1"),
    ],
)
def test_malformed_labelme_is_named_with_its_place(text: str, place: str) -> None:
    assert place in error_of({"a.json": text}, "labelme")


def cvat(*shapes: str, image: str = '<image id="0" name="a.jpg" width="64" height="48">', head: str = "") -> str:
    return f"<annotations><version>1.1</version>{head}{image}{''.join(shapes)}</image></annotations>"


CVAT_BOX = '<box label="cat" xtl="1.5" ytl="2" xbr="10" ybr="20" occluded="0"/>'


def test_cvat_shapes() -> None:
    text = cvat(
        CVAT_BOX,
        '<polygon label="Kitty" points="0.0,0.0;4.0,0.0;4.0,4.0;0.0,4.0"/>',
        '<mask label="cat" rle="1, 2, 3" left="5" top="6" width="3" height="2"/>',
        '<tag label="traffic light"/>',
        '<polyline label="cat" points="0,0;3,3"/>',
    )
    found = read({"a.jpg": "", "annotations.xml": text})
    box, polygon, mask, tag = found.records
    assert box.box == (1.5, 2, 10, 20) and polygon.box == (0, 0, 4, 4) and tag.box is None
    expected = np.zeros((48, 64), bool)
    expected[6, 6:8] = True
    np.testing.assert_array_equal(masks.decode(mask.mask or "", 48, 64), expected)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (cvat('<box label="cat" xtl="1" ytl="2" xbr="x" ybr="4"/>'), "line 1, xbr: 'x' is not a number"),
        (cvat('<polygon label="cat" points="0,0;1,1"/>'), "a polygon needs three corners"),
        (cvat('<mask label="cat" rle="1" left="63" top="0" width="3" height="2"/>'), "reaches out of its image"),
        (cvat('<mask label="cat" rle="1, 1" left="0" top="0" width="3" height="2"/>'), "do not fill 6 pixels"),
        (cvat('<blob label="cat"/>'), "unknown element 'blob'"),
        (cvat(head="<track/>"), "a track of a video"),
        ("<annotations><image", "not well-formed"),
    ],
)
def test_malformed_cvat_is_named_with_its_line(text: str, place: str) -> None:
    assert place in error_of({"annotations.xml": text}, "cvat")


def region(kind: str, value: dict[str, Any], name: str = "cat", **more: Any) -> dict[str, Any]:
    return {
        "id": "r",
        "type": kind,
        "value": value | {kind: [name]},
        "original_width": 64,
        "original_height": 48,
    } | more


def task(*regions: dict[str, Any], image: str = "/data/upload/3/0123abcd-a.jpg", **more: Any) -> dict[str, Any]:
    return {"id": 5, "data": {"image": image}, "annotations": [{"result": list(regions)}]} | more


def test_label_studio_regions() -> None:
    half = {"x": 25, "y": 50, "width": 50, "height": 25, "rotation": 0}
    points = {"points": [[0, 0], [50, 0], [50, 50], [0, 50]]}
    tasks = [
        task(region("rectanglelabels", half), region("polygonlabels", points, id="p"),
             region("choices", {}, "traffic light", id="c"), {"type": "relation"}),
        task(region("rectanglelabels", half), image="b.jpg", annotations=[{"result": [], "was_cancelled": True}]),
        {"data": {"image": "/data/local-files/?d=photos/c.jpg"}, "annotations": [{"result": []}]},
    ]  # fmt: skip
    found = read({"a.jpg": "", "b.jpg": "", "c.jpg": "", "export.json": json.dumps(tasks)})
    assert set(found.annotated) == {"a.jpg", "c.jpg"}  # b was skipped, c is empty
    box, polygon, choice = found.records
    assert box.box == (16, 24, 48, 36) and polygon.box == (0, 0, 32, 24) and choice.box is None


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ([task(region("rectanglelabels", {"x": 1, "y": 2, "width": 3}))], "task 5, region 1, height"),
        ([task(region("brushlabels", {"rle": [1, 2, 3]}))], "the mask is cut short"),
        ([task(region("polygonlabels", {"points": [[1]]}))], "not understood"),
        ([task(region("choices", {}, "trafic light"))], "did you mean 'traffic light'"),
        ([{"annotations": [], "data": 3}], "has no data"),
        ([task(region("choices", {}, original_width=48, original_height=64))], "64 x 48 pixels, not 48 x 64"),
    ],
)
def test_malformed_label_studio_is_named_with_its_place(content: list[Any], place: str) -> None:
    assert place in error_of({"tasks.json": json.dumps(content)}, "label-studio")


def test_image_folder_of_boxes_and_of_classes() -> None:
    lines = [
        {"file_name": "a.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "categories": ["Kitty"]}},
        {"file_name": "sub/b.jpg", "label": "traffic light"},
        {"file_name": "c.jpg", "objects": {"bbox": [], "categories": []}},
    ]
    text = "\ufeff" + "\n".join(map(json.dumps, lines)) + "\n\n"
    found = read({"train/a.jpg": "", "train/sub/b.jpg": "", "train/c.jpg": "", "train/metadata.jsonl": text})
    assert len(found.annotated) == 3
    box, whole = found.records
    assert (box.file_name, box.class_name, box.box) == ("train/a.jpg", "cat", (1, 2, 4, 6))
    assert (whole.file_name, whole.class_name, whole.box) == ("train/sub/b.jpg", "traffic light", None)


def test_image_folder_as_csv() -> None:
    found = read({"a.jpg": "", "b.jpg": "", "metadata.csv": "file_name,label\r\na.jpg,cat\r\nb.jpg,\r\n"})
    assert set(found.annotated) == {"a.jpg", "b.jpg"}
    assert [(r.file_name, r.class_name) for r in found.records] == [("a.jpg", "cat")]


@pytest.mark.parametrize("path", ["../a.jpg", "/etc/a.jpg", "C:\\a.jpg", "x/../../a.jpg", "..\\a.jpg"])
def test_manifests_that_leave_their_folder_are_refused(path: str) -> None:
    text = json.dumps({"file_name": path, "label": "cat"})
    assert "leaves the folder" in error_of({"metadata.jsonl": text}, "imagefolder")


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ({"file_name": "a.jpg", "label": 3}, "class 3 is not a name"),
        ({"file_name": "a.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "categories": [0]}}, "class 0 is not a name"),
        ({"file_name": "a.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "categories": []}}, "of equal length"),
        ({"file_name": "a.jpg", "objects": {"bbox": [[1, 2, 3]], "categories": ["cat"]}}, "[x, y, width, height]"),
        ({"file_name": "a.jpg", "label": "cat", "width": 48, "height": 64}, "64 x 48 pixels, not 48 x 64"),
    ],
)
def test_malformed_image_folder_is_named_with_its_line(entry: dict[str, Any], place: str) -> None:
    found = error_of({"metadata.jsonl": json.dumps(entry)}, "imagefolder")
    assert place in found and "line 1" in found


@pytest.mark.parametrize("kind", ["labelme", "cvat", "label-studio", "imagefolder"])
@given(data=st.binary(max_size=60))
@settings(max_examples=25, deadline=None)
def test_any_bytes_are_read_or_refused(kind: str, data: bytes) -> None:
    around = {
        "labelme": ("a.json", b'{"imagePath": "a.jpg", "shapes": [', b"]}"),
        "cvat": ("a.xml", b'<annotations><image name="a.jpg" width="64" height="48">', b"</image></annotations>"),
        "label-studio": ("a.json", b'[{"data": {"image": "a.jpg"}, "annotations": [', b"]}]"),
        "imagefolder": ("metadata.jsonl", b'{"file_name": "a.jpg", "label": "cat", ', b"}"),
    }
    name, head, tail = around[kind]
    try:
        read({"a.jpg": "", name: head + data + tail}, kind)
    except DataError as error:
        assert error.what and error.remedy


def test_formats_are_told_apart() -> None:
    for name, text in {
        "a.json": labelme(), "b.json": json.dumps([task()]), "c.xml": cvat(CVAT_BOX), "d.xml": voc(),
        "e.json": json.dumps(coco([])), "metadata.jsonl": json.dumps({"file_name": "a.jpg", "label": "cat"}),
    }.items():  # fmt: skip
        assert read({"a.jpg": "", name: text}).annotated == {"a.jpg": name}, name
