"""Our files through the readers of the tools that they are for, in environments of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import masks, schema
from pipeline.exchange import coco, cvat, fiftyone, label_studio, tasks
from pipeline.formats.label_studio import MASK_SUFFIX
from tests.pipeline.exchange import made
from tests.pipeline.exchange.peers import ask, peer

pytestmark = pytest.mark.network

PLAIN = ["cat", "traffic light", "<b>&\"'dog", "Bäume, 山", "cvp"]  # what these readers can hold themselves


def sent(count: int = 1000) -> list[tasks.Task]:
    """Random labels of plain classes on pictures that are written by `pictures`."""
    images = made.images()
    labels = made.labels(images, count)
    draw = np.random.default_rng(5)
    names = [PLAIN[int(k)] for k in draw.integers(0, len(PLAIN), count)]
    place = labels.column_names.index("class_name")
    return list(tasks.tasks(images, labels.set_column(place, labels.schema.field(place), [names])))


def pictures(some: list[tasks.Task], folder: Path) -> None:
    for task in some:
        path = folder / task.name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (task.width, task.height)).save(path)


def rows(some: list[tasks.Task]) -> list[dict[str, Any]]:
    return [row for task in some for row in task.labels]


def box_of(row: dict[str, Any]) -> list[float]:
    return [row[k] for k in ("x1", "y1", "x2", "y2")]


DATUMARO = """
import json, sys
import numpy as np
from datumaro.components.annotation import AnnotationType
from datumaro.components.dataset import Dataset
from pycocotools import mask as coco
data = Dataset.import_from(sys.argv[1], sys.argv[2])
names = [c.name for c in data.categories()[AnnotationType.label]]
found = []
for item in data:
    for a in item.annotations:
        one = {"item": item.id, "type": a.type.name, "label": names[a.label], "id": a.attributes.get("annotation_id")}
        one["status"] = a.attributes.get("status")
        if a.type == AnnotationType.bbox:
            one["box"] = [a.x, a.y, a.x + a.w, a.y + a.h]
        if a.type == AnnotationType.mask:
            one["mask"] = coco.encode(np.asfortranarray(a.image, np.uint8))["counts"].decode()
        found.append(one)
print(json.dumps(found))
"""


def test_datumaro_reads_our_cvat_files(tmp_path: Path) -> None:
    some = sent()
    cvat.write(some, PLAIN, tmp_path)
    pictures(some, tmp_path / "images")
    found = ask(peer("datumaro==1.13.12"), DATUMARO, str(tmp_path), "cvat")
    by = {(f["id"], f["type"]): f for f in found if f["label"] != "cvp_task"}
    expected = 0
    for row in rows(some):
        kinds = [k for k, has in (("bbox", row["x1"] is not None), ("mask", row["mask"] is not None)) if has]
        for kind in kinds or ["label"]:
            one = by[row["annotation_id"], kind]
            expected += 1
            assert (one["label"], one["status"]) == (row["class_name"], row["status"])
            if kind == "bbox":
                np.testing.assert_allclose(one["box"], box_of(row), atol=0.01)
            if kind == "mask":
                assert one["mask"] == row["mask"]
    assert len(by) == expected > 1000


def test_datumaro_reads_our_coco_files(tmp_path: Path) -> None:
    some = sent()
    coco.write(some, PLAIN, tmp_path)
    pictures(some, tmp_path / "images")
    found = ask(peer("datumaro==1.13.12"), DATUMARO, str(tmp_path), "coco_instances")
    masked = {f["id"]: f for f in found if f["type"] == "mask"}
    boxed = {f["id"]: f for f in found if f["type"] == "bbox"}
    sizes = {t.image_id: (t.width, t.height) for t in some}
    for row in rows(some):
        if row["mask"] is not None:
            assert masked[row["annotation_id"]]["mask"] == row["mask"]
            assert masked[row["annotation_id"]]["label"] == row["class_name"]
        else:
            whole = [0, 0, *sizes[row["image_id"]]]
            box = whole if row["x1"] is None else box_of(row)
            one = boxed[row["annotation_id"]]
            np.testing.assert_allclose(one["box"], box, atol=0.01)
            assert (one["label"], one["status"]) == (row["class_name"], row["status"])


def test_cvat_files_written_by_datumaro_come_back(tmp_path: Path) -> None:
    """Our file, imported by datumaro and exported by its CVAT writer, which keeps two decimals."""
    some = sent(300)
    cvat.write(some, PLAIN, tmp_path / "ours")
    pictures(some, tmp_path / "ours" / "images")
    script = (
        "import sys\nfrom datumaro.components.dataset import Dataset\n"
        "Dataset.import_from(sys.argv[1], 'cvat').export(sys.argv[2], 'cvat', save_media=False)\nprint('1')"
    )
    ask(peer("datumaro==1.13.12"), script, str(tmp_path / "ours"), str(tmp_path / "theirs"))
    (path,) = (tmp_path / "theirs").glob("*.xml")
    reading = cvat.read(path)
    assert [x for x in reading.losses if "occluded" not in x.what] == []
    made.equal(tasks.rows(reading), schema.table("labels").from_rows(rows(some)))


LABEL_STUDIO = """
import json, sys
import numpy as np
from label_studio_sdk.converter.brush import decode_rle, mask2rle
from label_studio_sdk.label_interface import LabelInterface
from pycocotools import mask as coco
tasks = json.load(open(sys.argv[1]))
interface = LabelInterface(open(sys.argv[2]).read())
found, valid = [], []
for task in tasks:
    valid.append(bool(interface.validate_task({"data": task["data"]})))
    for prediction in task["predictions"]:
        valid.append(bool(interface.validate_prediction(prediction)))
        for region in prediction["result"]:
            one = {"id": region["id"], "type": region["type"], "score": region["score"]}
            value = region["value"]
            one["label"] = value[region["type"]][0]
            if region["type"] == "rectanglelabels":
                w, h = region["original_width"], region["original_height"]
                x, y = value["x"] / 100 * w, value["y"] / 100 * h
                one["box"] = [x, y, x + value["width"] / 100 * w, y + value["height"] / 100 * h]
            if region["type"] == "brushlabels":
                w, h = region["original_width"], region["original_height"]
                mask = decode_rle(value["rle"]).reshape(h, w, 4)[..., 3]
                one["mask"] = coco.encode(np.asfortranarray(mask > 0, np.uint8))["counts"].decode()
                one["theirs"] = mask2rle(mask)
            found.append(one)
print(json.dumps({"valid": valid, "found": found}))
"""


def test_label_studio_s_sdk_reads_our_tasks_and_we_its_masks(tmp_path: Path) -> None:
    some = sent()
    label_studio.write(some, PLAIN, tmp_path)
    python = peer("label-studio-sdk==2.1.2", "pycocotools")
    said = ask(python, LABEL_STUDIO, str(tmp_path / label_studio.FILE), str(tmp_path / "label_config.xml"))
    assert len(said["valid"]) == 24 and all(said["valid"])
    by = {f["id"]: f for f in said["found"]}
    sizes = {t.image_id: (t.height, t.width) for t in some}
    for row in rows(some):
        if row["x1"] is not None:
            one = by[row["annotation_id"]]
            np.testing.assert_allclose(one["box"], box_of(row), atol=1e-4)
            assert (one["label"], one["score"]) == (row["class_name"], row["score"])
        if row["mask"] is not None:
            one = by[row["annotation_id"] + MASK_SUFFIX]
            assert one["mask"] == row["mask"]
            back = label_studio.decode_rle(one["theirs"], *sizes[row["image_id"]])
            assert masks.encode(back) == row["mask"]


FIFTYONE = """
import json, sys
import numpy as np
import fiftyone.utils.data as foud
from pycocotools import mask as coco
importer = foud.FiftyOneDatasetImporter(dataset_dir=sys.argv[1])
assert importer._is_legacy_format_data()
legacy = importer._to_legacy_importer()
found = []
with legacy:
    for sample in legacy:
        w, h = sample.metadata.width, sample.metadata.height
        for field, inner in (("labels", "detections"), ("classes", "classifications")):
            for label in getattr(sample[field], inner):
                one = {"id": label["annotation_id"], "label": label.label, "score": label.confidence}
                one |= {"status": label["status"], "path": sample.filepath}
                if field == "labels":
                    x, y, bw, bh = label.bounding_box
                    one["box"] = [x * w, y * h, (x + bw) * w, (y + bh) * h]
                    if label.mask is not None:
                        one["shape"], one["on"] = list(label.mask.shape), int(np.asarray(label.mask).sum())
                found.append(one)
print(json.dumps({"classes": legacy.get_dataset_info()["classes"], "found": found}))
"""


def test_fiftyone_reads_our_folder(tmp_path: Path) -> None:
    """Through FiftyOne's own importer; it needs no MongoDB as long as no dataset is made of the samples."""
    some = sent()
    fiftyone.write(some, PLAIN, tmp_path)
    pictures(some, tmp_path / "data")
    settings = {"FIFTYONE_DO_NOT_TRACK": "true", "FIFTYONE_CONFIG_PATH": str(tmp_path / "config.json")}
    said = ask(peer("fiftyone==1.22.1", "pycocotools"), FIFTYONE, str(tmp_path), **settings)
    by = {f["id"]: f for f in said["found"]}
    sizes = {t.image_id: (t.height, t.width) for t in some}
    assert len(by) == len(said["found"]) == 1000 and said["classes"] == {"labels": PLAIN}
    for row in rows(some):
        one = by[row["annotation_id"]]
        assert (one["label"], one["score"], one["status"]) == (row["class_name"], row["score"], row["status"])
        assert Path(one["path"]).is_file()
        if row["x1"] is not None:
            np.testing.assert_allclose(one["box"], box_of(row), atol=0.01)
        if row["mask"] is not None:
            pixels = masks.decode(row["mask"], *sizes[row["image_id"]])
            box = [round(v) for v in (box_of(row) if row["x1"] is not None else masks.box(row["mask"], *pixels.shape))]
            inside = pixels[box[1] : max(box[3], box[1] + 1), box[0] : max(box[2], box[0] + 1)]
            assert one["on"] == int(inside.sum())


def test_fiftyone_s_own_masks_come_back(tmp_path: Path) -> None:
    """Samples as FiftyOne serialises them."""
    script = """
import json, sys
import numpy as np
import fiftyone as fo
from bson import json_util
mask = np.zeros((8, 6), bool)
mask[2:5, 1:4] = True
sample = fo.Sample(filepath="/x/b/y-abababababababab.jpg", metadata=fo.ImageMetadata(width=60, height=40))
sample["made"] = fo.Detections(detections=[fo.Detection(label="cat", bounding_box=[0.5, 0.5, 0.1, 0.2], mask=mask)])
sample["one"] = fo.Detection(label="dog", bounding_box=[0.0, 0.0, 0.5, 0.25], tags=["no"])
sample["kind"] = fo.Classification(label="dog", confidence=0.5)
open(sys.argv[1], "w").write(json_util.dumps({"samples": [sample.to_mongo_dict(include_id=True)]}))
print("1")
"""
    settings = {"FIFTYONE_DO_NOT_TRACK": "true", "FIFTYONE_CONFIG_PATH": str(tmp_path / "config.json")}
    path = tmp_path / "samples.json"
    ask(peer("fiftyone==1.22.1", "pycocotools"), script, str(path), **settings)
    reading = fiftyone.read(path)
    (answer,) = reading.answers
    assert reading.losses == [], json.loads(path.read_text())
    by = {s.class_name + ("" if s.box else "*"): s for s in answer.seen}
    assert by["cat"].box == (30, 20, 36, 28) and by["dog"].box == (0, 0, 30, 10) and by["dog"].verdict == "no"
    expected = np.zeros((40, 60), bool)
    expected[22:25, 31:34] = True
    assert by["cat"].mask == masks.encode(expected) and set(by) == {"cat", "dog", "dog*"}
