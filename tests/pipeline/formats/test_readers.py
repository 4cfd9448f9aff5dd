"""Each format against its own reference: pycocotools, a plain XML or CSV writer, or hand-made files."""

import difflib
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline import boxes, masks
from pipeline.errors import DataError
from pipeline.formats import Folder, Labels, Record, read_labels
from pipeline.formats.voc import parse_xml
from pipeline.ontology import Class, Ontology
from pipeline.sources import SourceFile

ONTOLOGY = Ontology((Class("cat", ("cat",), ("Kitty",)), Class("traffic light", ("traffic light",))))
SIZE = (64, 48)
COCO_NAMES = Path(__file__).parent / "coco_names.txt"


def read(files: dict[str, bytes | str], kind: str = "auto", ignored: tuple[str, ...] = (), **sizes: Any) -> Labels:
    """Labels of a batch that holds `files`; names that are no annotations are photos of 64 x 48 pixels."""
    data = {name: text if isinstance(text, bytes) else text.encode() for name, text in files.items()}
    listed = [SourceFile(name, name, len(content), "") for name, content in sorted(data.items())]
    known = {f.name: SIZE for f in listed if not f.is_sidecar and data[f.name] != b"damaged"} | sizes
    return read_labels(Folder(listed, lambda f: data[f.name], known, ONTOLOGY, ignored), kind)


def coco(annotations: list[dict[str, Any]], **parts: Any) -> dict[str, Any]:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "traffic light"}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 3, **a} for i, a in enumerate(annotations, start=1)],
    }
    return content | parts


def voc(*objects: str, head: str = "<filename>a.jpg</filename>") -> str:
    return f"<annotation>{head}{''.join(objects)}</annotation>"


def thing(name: str = "cat", corners: tuple[Any, ...] = (2, 3, 10, 20), more: str = "") -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    inner = "".join(f"<{k}>{v}</{k}>" for k, v in zip(keys, corners, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{inner}</bndbox></object>"


def error_of(files: dict[str, bytes | str], kind: str = "auto") -> str:
    with pytest.raises(DataError) as error:
        read({"a.jpg": "", **files}, kind)
    assert error.value.remedy
    return error.value.what


corner = st.floats(0, 40, allow_nan=False)
box_lists = st.lists(st.tuples(corner, corner, st.floats(1, 30), st.floats(1, 30)), max_size=8)

# -- round trips ----------------------------------------------------------------------------------


@given(found=box_lists)
@settings(deadline=None)
def test_every_format_reads_the_same_boxes(found: list[tuple[float, float, float, float]]) -> None:
    """One set of boxes, written in four ways by the definitions of the formats."""
    files: dict[str, dict[str, bytes | str]] = {
        "coco": {"l.json": json.dumps(coco([{"bbox": list(b)} for b in found]))},
        "voc": {"a.xml": voc(*(thing("cat", (x + 1, y + 1, x + w, y + h)) for x, y, w, h in found))},
        "yolo": {
            "classes.txt": "cat",
            "a.txt": "\n".join(f"0 {(x + w / 2) / 64} {(y + h / 2) / 48} {w / 64} {h / 48}" for x, y, w, h in found),
        },
        "csv": {
            "l.csv": "filename,class,xmin,ymin,xmax,ymax\n"
            + ("".join(f"a.jpg,cat,{x},{y},{x + w},{y + h}\n" for x, y, w, h in found) or "a.jpg,,,,,\n")
        },
    }
    for kind, content in files.items():
        for asked in (kind, "auto"):
            labels = read({"a.jpg": "", **content}, asked)
            assert set(labels.annotated) == {"a.jpg"}
            expected = boxes.from_xywh(list(found))
            assert np.allclose(boxes.as_boxes([r.box for r in labels.records]), expected, atol=1e-6)
            assert {r.class_name for r in labels.records} <= {"cat"}


def star(rng: np.random.Generator) -> list[float]:
    """A polygon around a centre."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, 8))
    radius = rng.uniform(5, 18, 8)
    return np.stack([32 + radius * np.cos(angles), 24 + radius * np.sin(angles)], 1).ravel().tolist()


def test_coco_agrees_with_pycocotools(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blob = rng.random((48, 64)) > 0.6
    runs = coco_mask.encode(np.asfortranarray(blob, np.uint8))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], blob.ravel(order="F"), [0]]).astype(int)))
    uncompressed = np.diff(np.concatenate([[0], edges, [blob.size]]))
    uncompressed = uncompressed[:-1] if uncompressed[-1] == 0 else uncompressed
    entries = [
        {"bbox": [1, 2, 10, 20], "segmentation": [star(rng)], "area": 3.0, "iscrowd": 0},
        {"bbox": [1, 2, 10, 20], "segmentation": [star(rng), star(rng)], "area": 3.0, "iscrowd": 0},
        {"bbox": [0, 0, 64, 48], "segmentation": {"size": [48, 64], "counts": uncompressed.tolist()}, "iscrowd": 1},
        {"bbox": [0, 0, 64, 48], "segmentation": {"size": [48, 64], "counts": runs["counts"].decode()}, "iscrowd": 1},
    ]
    path = tmp_path / "l.json"
    path.write_text(json.dumps(coco(entries)))
    reference = COCO(str(path))
    labels = read({"a.jpg": "", "l.json": path.read_text()})
    assert len(labels.records) == 4
    for record, annotation in zip(labels.records, reference.dataset["annotations"], strict=True):
        assert record.mask is not None and record.box is not None
        assert np.array_equal(masks.decode(record.mask, 48, 64), reference.annToMask(annotation).astype(bool))
        assert np.allclose(boxes.to_xywh([record.box])[0], annotation["bbox"])
        assert record.is_crowd == bool(annotation["iscrowd"])


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_run_lengths_are_read_as_pycocotools_writes_them(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 200))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    mask = rng.random((height, width)) > data.draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    counts = masks.encode(mask)
    content = coco([{"segmentation": {"size": [height, width], "counts": counts}}])
    content["images"][0] |= {"width": width, "height": height}
    (record,) = read({"a.jpg": "", "l.json": json.dumps(content)}, **{"a.jpg": (width, height)}).records
    assert record.mask == counts


# -- COCO -----------------------------------------------------------------------------------------


def test_coco_takes_odd_but_clear_files() -> None:
    content = {
        "images": [
            {"id": 1.0, "file_name": "C:\\data\\imgs\\a.jpg"},
            {"id": "2", "file_name": "./b.jpg", "width": 0, "height": 0},
        ],
        "categories": [{"id": 3.0, "name": "KITTY"}],
        "annotations": [
            {"image_id": 1.0, "category_id": "3", "bbox": [1, 2, 3, 4]},
            {"image_id": 1, "category_id": 3, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]},
            {"image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5], "segmentation": [[1, 1, 2, 2]]},
            {"image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5], "segmentation": [], "ignore": 1},
            {"image_id": 1, "category_id": 3},
        ],
    }
    data = b"\xef\xbb\xbf" + json.dumps(content).encode()
    labels = read({"a.jpg": "", "b.jpg": "", "l.json": data})
    assert [r.box for r in labels.records] == [(1, 2, 4, 6), (1, 1, 9, 9), (1, 1, 6, 6), (1, 1, 6, 6), None]
    assert [r.mask is not None for r in labels.records] == [False, True, False, False, False]
    assert [r.ignore for r in labels.records] == [False, False, False, True, False]
    assert labels.annotated == {"a.jpg": "l.json", "b.jpg": "l.json"}


def test_coco_may_be_utf16() -> None:
    assert len(read({"a.jpg": "", "l.json": json.dumps(coco([{"bbox": [1, 2, 3, 4]}])).encode("utf-16")}).records) == 1


def test_coco_images_without_annotations_are_annotated() -> None:
    labels = read({"a.jpg": "", "l.json": json.dumps(coco([]))})
    assert labels.annotated == {"a.jpg": "l.json"} and not labels.records


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('{"images": [], "annotations": [}', "l.json, line 1"),
        ('{\n"images": [],\n"annotations": oops}', "l.json, line 3"),
        ('[{"images": 1, "annotations": 1}]', "not a COCO file"),
        ('{"images": {}, "annotations": [], "categories": []}', "'images' must be a list"),
        ('{"images": [1], "annotations": [], "categories": []}', "'images' must be a list"),
        ('{"images": [], "annotations": []}', "'categories' must be a list"),
        ('{"images": ' + "[" * 100000 + ', "annotations"', "l.json"),
        (json.dumps(coco([{"bbox": [1, 2, 3]}])), "annotations[0]: bbox must be"),
        (json.dumps(coco([{"bbox": [1, 2, 3, "x"]}])), "annotations[0]: 'x' is not a number"),
        (json.dumps(coco([{"bbox": [1, 2, 3, float("nan")]}])), "annotations[0]: nan is not a number"),
        (json.dumps(coco([{"bbox": [1, 2, 3, 4]}, {"image_id": 9}])), "annotations[1]: no image has the id 9"),
        (json.dumps(coco([{"category_id": 9}])), "annotations[0]: no category has the id 9"),
        (json.dumps(coco([{"category_id": None}])), "annotations[0]: id: None"),
        (json.dumps(coco([{"category_id": 3.5}])), "3.5 is not a whole number"),
        (json.dumps(coco([{"segmentation": {"size": [64, 48], "counts": "0"}}])), "mask's size"),
        (json.dumps(coco([{"segmentation": {"size": [48, 64], "counts": [1, 2]}}])), "run lengths"),
        (json.dumps(coco([{"segmentation": {"size": [48, 64], "counts": [-1, 3073]}}])), "run lengths"),
        (json.dumps(coco([{"segmentation": {"size": [48, 64], "counts": "ooooooooooooooooo0"}}])), "run lengths"),
        (json.dumps(coco([{"segmentation": {"size": [48, 64], "counts": "\u00ff"}}])), "run lengths"),
        (json.dumps(coco([{"segmentation": {"size": [48, 64], "counts": None}}])), "run lengths"),
        (json.dumps(coco([{"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}])), "odd number"),
        (json.dumps(coco([], images=[{"id": 1}])), "images[0] has no file_name"),
        (json.dumps(coco([], images=[{"id": 1, "file_name": "a.jpg", "width": 32, "height": 24}])), "64 x 48"),
    ],
)
def test_malformed_coco_is_named_with_its_place(content: str, place: str) -> None:
    assert place in error_of({"l.json": content}, "coco" if '"annotations"' in content else "auto")


def test_labels_drawn_on_unrotated_pixels_are_refused() -> None:
    content = coco([], images=[{"id": 1, "file_name": "a.jpg", "width": 48, "height": 64}])
    with pytest.raises(DataError) as error:
        read({"a.jpg": "", "l.json": json.dumps(content)})
    assert "EXIF" in error.value.remedy


# -- VOC ------------------------------------------------------------------------------------------


def test_voc_flags_parts_and_other_extensions() -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    more = "<truncated>1</truncated><difficult>1</difficult>" + part
    text = voc(thing("Kitty", ("2.0", " 3 ", 10, 20), more), thing(), head="<filename>photos\\a.tif</filename>")
    labels = read({"img/a.jpg": "", "ann/a.xml": text})
    first, second = labels.records
    assert first == Record("img/a.jpg", "cat", (1, 2, 10, 20), truncated=True, ignore=True)
    assert second == Record("img/a.jpg", "cat", (1, 2, 10, 20))


def test_voc_falls_back_to_its_own_name() -> None:
    for head in ("", "<filename></filename>", "<filename>IMG_0001</filename>"):
        assert set(read({"a.jpg": "", "a.xml": voc(thing(), head=head)}).annotated) == {"a.jpg"}


def test_other_xml_and_json_files_are_left_alone() -> None:
    labels = read({"a.jpg": "", "a.jpg.aux.xml": "<PAMDataset/>", "tasks.json": "[]"})
    assert not labels.annotated


@pytest.mark.parametrize("name", ["broken.xml", "broken.json"])
def test_a_broken_file_does_not_make_its_batch_unlabelled(name: str) -> None:
    with pytest.raises(DataError, match=f"{name}, line 1"):
        read({"a.jpg": "", name: '{"images": ' if name.endswith("json") else "<nothing"})


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("<annotation>\n<filename>a.jpg</filename>\n<object>", "a.xml, line 3"),
        ("<annotation>\n\n<object><name>cat</name></object></annotation>", "a.xml, line 3: an object without bndbox"),
        (voc("\n", thing("cat", (1, 2, "x", 4))), "a.xml, line 2, xmax: 'x' is not a number"),
        (voc("\n\n<object><name>cat</name><bndbox/></object>"), "a.xml, line 3, xmin: None is not a number"),
        (voc(thing("ct")), "fits no"),
        (
            voc(head="<filename>a.jpg</filename><size><width>1</width><height>2</height></size>"),
            "64 x 48 pixels, not 1 x 2",
        ),
        (voc(head="<filename>a.jpg</filename><size><width>q</width><height>2</height></size>"), "'q' is not a number"),
    ],
)
def test_malformed_voc_is_named_with_its_line(text: str, place: str) -> None:
    if place == "fits no":
        place = "has no annotation of a class of the project, only of 'ct'"
    assert place in error_of({"a.xml": text})


BOMB = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]>
<annotation><filename>a.jpg</filename><object><name>&c;</name></object></annotation>"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_never_expanded(encoding: str) -> None:
    data = (BOMB if encoding == "utf-8" else BOMB.replace("?>", ' encoding="UTF-16"?>', 1)).encode(encoding)
    assert "document type" in error_of({"a.xml": data})


def test_external_entities_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    text = f'<!DOCTYPE a [<!ENTITY x SYSTEM "{(tmp_path / "secret").as_uri()}">]><annotation>&x;</annotation>'
    assert "document type" in error_of({"a.xml": text})


@given(data=st.binary(max_size=60))
def test_any_bytes_parse_or_raise_data_error(data: bytes) -> None:
    try:
        parse_xml(b"<annotation>" + data, "a.xml")
    except DataError as error:
        assert "a.xml, line" in error.what


# -- YOLO -----------------------------------------------------------------------------------------


def test_yolo_layouts_and_gaps() -> None:
    labels = read(
        {
            "images/train/1.jpg": "",
            "images/val/1.jpg": "",
            "images/val/2.jpg": "",
            "images/val/3.jpg": "",
            "labels/train/1.txt": "5 0.5 0.5 0.5 0.5\r\n\r\n",
            "labels/val/1.txt": "2.0\t0.25 0.25 .5 5e-1",
            "labels/val/2.txt": "",
            "data.yaml": "path: .\nnames: {2: cat, 5: traffic light}\n",
            "README.txt": "made by hand",
            "train.txt": "images/train/1.jpg",
        }
    )
    assert [(r.file_name, r.class_name, r.box) for r in labels.records] == [
        ("images/train/1.jpg", "traffic light", (16, 12, 48, 36)),
        ("images/val/1.jpg", "cat", (0, 0, 32, 24)),
    ]
    assert set(labels.annotated) == {"images/train/1.jpg", "images/val/1.jpg", "images/val/2.jpg"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "cat\ntraffic light\n"),
        ("obj.names", "cat\r\ntraffic light\r\n"),
        ("data.yaml", "names: [cat, traffic light]"),
        ("dataset.yml", "\ufeffnames:\n  - cat\n  - traffic light\n"),
    ],
)
def test_yolo_names(name: str, text: str) -> None:
    labels = read({"a.jpg": "", "a.txt": "1 0.5 0.5 1 1", name: text})
    assert [r.class_name for r in labels.records] == ["traffic light"]


def test_yolo_polygons() -> None:
    labels = read({"a.jpg": "", "a.txt": "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75", "classes.txt": "cat"})
    (record,) = labels.records
    assert record.box == (16, 12, 48, 36) and record.mask is not None
    assert masks.area(record.mask) == 32 * 24


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("0 0.5 0.5 1 1\n0 0.5 0.5 1", "a.txt, line 2: 4 numbers"),
        ("0 0.5 0.5 1 1\n\n0 0.5 0.5 1 1 0.9", "a.txt, line 3: 6 numbers"),
        ("0 0.5 0.5 1 1\n0 0.5 x 1 1", "a.txt, line 2: 'x' is not a number"),
        ("0 0.5 0.5 1 1\n0 0.5 nan 1 1", "a.txt, line 2: 'nan' is not a number"),
        ("0 320 240 100 50", "a.txt, line 1: coordinates must be shares"),
        ("4 0.5 0.5 1 1", "a.txt, line 1: class 4 has no name"),
    ],
)
def test_malformed_yolo_is_named_with_its_line(text: str, place: str) -> None:
    assert place in error_of({"a.txt": text, "classes.txt": "cat"})


def test_yolo_without_names() -> None:
    assert "class 0 has no name" in error_of({"a.txt": "0 0.5 0.5 1 1"})
    assert "is not YAML" in error_of({"a.txt": "0 0.5 0.5 1 1", "data.yaml": "names: ["})
    assert "must be a list or a mapping" in error_of({"a.txt": "0 0.5 0.5 1 1", "data.yaml": "names: 3"})


# -- CSV ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "image_path,xmin,ymin,xmax,ymax,label\na.jpg,1,2,30,40,cat\n",
        "\ufefffilename;width;height;class;xmin;ymin;xmax;ymax\r\na.jpg;64;48;Kitty;1;2;30;40\r\n",
        '"File_Name"\t"Category"\t"x1"\t"y1"\t"x2"\t"y2"\n"a.jpg"\t"cat"\t1.0\t2\t3e1\t40\n',
        "D:\\photos\\a.jpg,1,2,30,40,cat\n",
        "image,left,top,right,bottom,class_name,score\n\nsub/dir/a.jpg,1,2,30,40,cat,1\n\n",
    ],
)
def test_spellings_of_csv(text: str) -> None:
    labels = read({"a.jpg": "", "boxes.csv": text})
    assert labels.records == [Record("a.jpg", "cat", (1, 2, 30, 40))]


def test_csv_rows_without_corners_are_empty_images() -> None:
    text = "a.jpg,1,2,30,40,cat\nb.jpg,,,,,\n"
    labels = read({"a.jpg": "", "b.jpg": "", "boxes.csv": text})
    assert set(labels.annotated) == {"a.jpg", "b.jpg"} and len(labels.records) == 1


def test_other_csv_files_are_left_alone() -> None:
    assert not read({"a.jpg": "", "weather.csv": "day,rain\n1,2\n", "none.csv": "", "nul.csv": "\0"}).annotated


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("image,xmin,ymin,xmax,ymax,label\na.jpg,1,2,3,4,cat\na.jpg,1,2,3\n", "l.csv, line 3: 4 columns"),
        ("image,xmin,ymin,xmax,ymax,label\na.jpg,1,2,,4,cat\n", "l.csv, line 2: '' is not a number"),
        ("image,xmin,ymin,xmax,ymax,label\nz.jpg,1,2,3,4,cat\n", "fits no image"),
        (b"image,xmin,ymin,xmax,ymax,label\na.jpg,1,2,3,4,caf\xe9\n", "l.csv, line 2: not UTF-8"),
    ],
)
def test_malformed_csv_is_named_with_its_line(text: bytes | str, place: str) -> None:
    assert place in error_of({"l.csv": text})


# -- classes and files ----------------------------------------------------------------------------

WRITERS: dict[str, Callable[[str], dict[str, bytes | str]]] = {
    "coco": lambda n: {
        "l.json": json.dumps(coco([{"bbox": [1, 2, 3, 4]}], categories=[{"id": 3, "name": n}])),
    },
    "voc": lambda n: {"a.xml": voc(thing(n))},
    "yolo": lambda n: {"a.txt": "0 0.5 0.5 1 1", "classes.txt": n},
    "csv": lambda n: {"l.csv": f"a.jpg,1,2,3,4,{n}\n"},
}


@pytest.mark.parametrize("kind", WRITERS)
def test_slips_in_class_names_are_errors(kind: str) -> None:
    what = error_of(WRITERS[kind]("traffic ligth"))
    assert "'traffic ligth'" in what and "did you mean 'traffic light'?" in what


@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_but_unasked_classes_is_an_error_unless_ignored(kind: str) -> None:
    assert "no annotation of a class of the project, only of 'zebra'" in error_of(WRITERS[kind]("zebra"))
    labels = read({"a.jpg": "", **WRITERS[kind]("zebra")}, ignored=("Zebra",))
    assert set(labels.annotated) == {"a.jpg"} and not labels.records and not labels.unasked


def test_slip_may_be_ignored() -> None:
    assert not read({"a.jpg": "", **WRITERS["voc"]("traffic lights")}, ignored=("traffic lights",)).records


def test_unasked_classes_are_counted() -> None:
    labels = read({"a.jpg": "", "a.xml": voc(thing(), thing("zebra"), thing("zebra"), thing("horse"))})
    assert len(labels.records) == 1 and labels.unasked == {"zebra": 2, "horse": 1}


def test_no_two_coco_classes_look_like_a_slip() -> None:
    names = COCO_NAMES.read_text(encoding="utf-8").split("\n")[:80]
    assert len(set(names)) == 80
    assert max(difflib.SequenceMatcher(None, a, b).ratio() for a, b in combinations(names, 2)) < 0.85


def test_repeated_names_are_told_apart_by_their_folders() -> None:
    files = {"one/a.jpg": "", "two/a.jpg": "", "one/a.xml": voc(thing()), "two/a.xml": voc(thing(), thing())}
    labels = read(files)
    assert labels.annotated == {"one/a.jpg": "one/a.xml", "two/a.jpg": "two/a.xml"}
    assert [r.file_name for r in labels.records] == ["one/a.jpg", "two/a.jpg", "two/a.jpg"]
    content = coco([{"bbox": [1, 2, 3, 4]}], images=[{"id": 1, "file_name": "data\\two\\A.JPG"}])
    assert list(read({"one/a.jpg": "", "two/a.jpg": "", "l.json": json.dumps(content)}).annotated) == ["two/a.jpg"]


def test_names_that_could_be_two_files_are_refused() -> None:
    with pytest.raises(DataError, match=r"could be one/a\.jpg or two/a\.jpg"):
        read({"one/a.jpg": "", "two/a.jpg": "", "l.json": json.dumps(coco([{"bbox": [1, 2, 3, 4]}]))})


def test_damaged_twin_does_not_lend_its_labels() -> None:
    """one/a.jpg cannot be used; its boxes must not go to two/a.jpg."""
    labels = read({"one/a.jpg": "damaged", "two/a.jpg": "", "one/a.xml": voc(thing()), "two/a.xml": voc()})
    assert labels.annotated == {"two/a.jpg": "two/a.xml"} and not labels.records
    assert labels.unmatched == {"one/a.xml": 1}


def test_image_labelled_in_two_files_is_refused() -> None:
    with pytest.raises(DataError, match=r"a\.jpg is labelled in two files, x\.json and y\.json"):
        text = json.dumps(coco([{"bbox": [1, 2, 3, 4]}]))
        read({"a.jpg": "", "x.json": text, "y.json": text})


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo", "csv", "folders", "none", "auto"])
def test_no_files_no_labels(kind: str) -> None:
    for files in ({}, {"a.jpg": ""}):
        labels = read(files, kind)  # type: ignore[arg-type]
        assert not labels.records and not labels.annotated
