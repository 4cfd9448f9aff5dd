"""A photo that is gone costs itself; a folder or a bucket that is not there costs no label: the work stops."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from botocore.exceptions import ClientError

from pipeline import presence, schema
from pipeline.compute import Compute, map_batches
from pipeline.detect import DetectWorker
from pipeline.encode import EncodeWorker
from pipeline.errors import ComputeError, StoreUnavailable
from pipeline.images import Reader, UnusableImage, original
from pipeline.quality import QualityWorker
from pipeline.segment import SegmentWorker, with_boxes
from pipeline.store import Store
from tests.pipeline.photo_rows import save, speckled, tiny_config

LABELLING = {"labellers": [{"name": "own", "kind": "profile"}]}
WORKERS: dict[str, Callable[[Path], Any]] = {
    "quality": lambda folder: QualityWorker(),
    "embeddings": lambda folder: EncodeWorker(tiny_config()),
    "detections": lambda folder: DetectWorker(tiny_config(labelling=LABELLING), str(folder)),
    "masks": lambda folder: SegmentWorker(tiny_config()),
}


@pytest.fixture
def rows(tmp_path: Path) -> pa.Table:
    """Three photos with a box each."""
    (tmp_path / "b").mkdir()
    images = save(tmp_path / "b", [speckled(k) for k in range(3)])
    names = images["image_id"].to_pylist()
    boxes = np.tile(np.array([[5, 5, 40, 40]], np.float32), (3, 1))
    found = schema.annotations(
        "detections", image_ids=names, batch="b", producer="m@1#0", classes=["cat"] * 3, boxes=boxes, scores=[0.9] * 3
    )
    return with_boxes(images, found)


@pytest.mark.parametrize("kind", WORKERS)
def test_without_their_folder_workers_stop_and_without_a_file_they_go_on(
    kind: str, rows: pa.Table, tmp_path: Path
) -> None:
    (tmp_path / "b" / "001.png").unlink()
    WORKERS[kind](tmp_path)(rows)
    shutil.rmtree(tmp_path / "b")
    for _ in range(2):
        with pytest.raises(ComputeError, match=f"{tmp_path / 'b'} is not on {socket.gethostname()}") as error:
            WORKERS[kind](tmp_path)(rows)
        assert "mount it" in error.value.remedy
        (tmp_path / "b").mkdir(exist_ok=True)  # a mount point


def test_the_error_comes_back_from_another_process(rows: pa.Table, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "b")
    staging = Store(str(tmp_path / "store")).staging("quality", "b", "f")
    with pytest.raises(ComputeError, match="is not on"):
        map_batches(QualityWorker, {}, rows, Compute("local", 1), staging)
    assert not staging.finished()


def test_photos_that_are_links_into_a_place_that_is_not_mounted(rows: pa.Table, tmp_path: Path) -> None:
    for path in (tmp_path / "b").iterdir():
        path.unlink()
        path.symlink_to(tmp_path / "nowhere" / path.name)
    (tmp_path / "b" / "labels.csv").write_text("lies beside them, and says nothing of them")
    with pytest.raises(ComputeError, match=f"no photo in {tmp_path / 'b'} can be read on"):
        list(Reader().whole(rows))
    assert Reader().read_rows(rows) == [None] * 3  # who only shows them shows none


def test_a_folder_of_one_photo_that_went_is_no_machines_fault(tmp_path: Path) -> None:
    for name in ("cam1/a.jpg", "cam2/b.jpg"):
        (tmp_path / "b" / name).parent.mkdir(parents=True)
        (tmp_path / "b" / name).write_bytes(b"x")
    gone = tmp_path / "b" / "cam1" / "a.jpg"
    gone.unlink()
    with pytest.raises(UnusableImage):
        Reader().read_bytes(str(gone), "cam1/a.jpg")


@pytest.mark.parametrize(
    ("uri", "name", "folder"),
    [
        ("/p/b/x.jpg", "x.jpg", "/p/b"),
        ("/p/b/deep/x.jpg", "deep/x.jpg", "/p/b"),
        ("file:///p/b/r%E9/x.jpg", "r\\xe9/x.jpg", "file:///p/b"),
        ("s3://bucket/p/b/deep/x.jpg", "deep/x.jpg", "s3://bucket/p/b"),
        ("s3://bucket/x.jpg", "x.jpg", "s3://bucket"),
    ],
)
def test_the_folder_of_a_batch_is_known_from_a_files_name(uri: str, name: str, folder: str) -> None:
    assert presence.batch_folder(uri, name) == folder


class Bucket:
    """A boto3 client of a bucket: what listing it answers, and what reading each object does."""

    def __init__(self, listing: str | list[str], **objects: str) -> None:
        self.listing, self.objects = listing, objects

    def list_objects_v2(self, **asked: Any) -> dict[str, Any]:
        if isinstance(self.listing, str):
            raise refusal(self.listing)
        return {"Contents": [{"Key": f"p/b/{name}.jpg"} for name in self.listing]}

    def get_object(self, Key: str, **asked: Any) -> dict[str, Any]:
        code = self.objects[Key.removeprefix("p/b/").removesuffix(".jpg")]
        if code:
            raise refusal(code)
        return {"Body": open("/dev/null", "rb")}


def refusal(code: str) -> ClientError:
    status = 404 if code.startswith("NoSuch") else 403
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


@pytest.mark.parametrize(
    ("bucket", "kind", "told"),
    [
        (Bucket(["y"], x="NoSuchKey", y=""), UnusableImage, "NoSuchKey"),
        (Bucket(["x", "y", "z"], x="AccessDenied", y="AccessDenied", z=""), UnusableImage, "AccessDenied"),
        (Bucket(["x", "y"], x="AccessDenied", y="AccessDenied"), StoreUnavailable, "read no photo under s3://k/p/b"),
        (Bucket("InvalidAccessKeyId", x="InvalidAccessKeyId"), StoreUnavailable, "cannot list s3://k/p/b/"),
        (Bucket("NoSuchBucket", x="NoSuchBucket"), StoreUnavailable, "NoSuchBucket"),
        (Bucket([], x="NoSuchKey"), StoreUnavailable, "there is no other"),
    ],
)
def test_an_object_is_unusable_only_where_others_can_be_read(bucket: Bucket, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        original("s3://k/p/b/x.jpg", "s3://k/p/b", bucket)
