"""Files become rows; damaged ones are listed with the reason; boxes are mapped into tiles."""

import io
import itertools
import json
import signal
import socket
import zlib
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
from PIL import Image

from pipeline import collect, masks, schema
from pipeline.collect import collect_ground_truth, tile_windows
from pipeline.compute import Compute
from pipeline.config import SourceConfig, TileConfig
from pipeline.errors import ComputeError, DataError
from pipeline.ids import image_id, tile_id
from pipeline.images import Reader
from pipeline.ontology import Class, Ontology
from pipeline.sources import Source, SourceFile, open_source
from pipeline.store import Staging, Store
from tests.pipeline.fatal_source import Fatal
from tests.pipeline.photo_rows import collect_images

ONTOLOGY = Ontology((Class("cat", ("cat",), ("Kitty",)), Class("dog", ("dog",))))


def noise(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def put(root: Path, files: dict[str, bytes | str]) -> str:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(root)


def settings_of(uri: str, **options: Any) -> SourceConfig:
    return SourceConfig(uri=uri, **options)


def voc(name: str, boxes: list[tuple[str, float, float, float, float]], extra: str = "") -> str:
    """Boxes are given as xyxy with exclusive ends and written 1-based and inclusive."""
    items = "".join(
        f"<object><name>{c}</name>{extra}<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for c, x1, y1, x2, y2 in boxes
    )
    return f"<annotation><filename>{name}</filename>{items}</annotation>"


# -- tiles ----------------------------------------------------------------------------------------


@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    size=st.integers(1, 300),
    data=st.data(),
)
@settings(deadline=None)
def test_tiles_cover_every_pixel(width: int, height: int, size: int, data: st.DataObject) -> None:
    size = max(size, max(width, height) // 12)
    overlap = data.draw(st.integers(0, size // 2))
    windows = tile_windows(width, height, size, overlap)
    seen = np.zeros((height, width), int)
    for x, y, w, h in windows:
        assert (w, h) == (min(size, width), min(size, height))
        assert 0 <= x <= width - w and 0 <= y <= height - h
        seen[y : y + h, x : x + w] += 1
    assert seen.min() >= 1 and len(set(windows)) == len(windows)
    columns = sorted({x for x, *_ in windows})
    shared = [a + size - b for a, b in itertools.pairwise(columns)]
    assert all(s == overlap for s in shared[:-1]) and all(s >= overlap for s in shared)


def test_untiled_photo_is_one_window() -> None:
    assert tile_windows(640, 480, 0, 0) == [(0, 0, 640, 480)]
    assert tile_windows(400, 400, 400, 100) == [(0, 0, 400, 400)]
    assert [w[0] for w in tile_windows(1000, 10, 400, 100)] == [0, 300, 600]
    assert [w[0] for w in tile_windows(1001, 10, 400, 100)] == [0, 300, 600, 601]


def test_tiles_show_the_photos_pixels(tmp_path: Path) -> None:
    photo = noise(1, 90, 70)
    uri = put(tmp_path, {"b/photo.png": encoded(photo)})
    images, _ = collect_images(open_source(uri), "b", settings_of(uri, tile={"size": 40, "overlap": 10}))
    parent = image_id((tmp_path / "b/photo.png").read_bytes())
    assert set(images.column("parent_id").to_pylist()) == {parent}
    assert len(set(images.column("image_id").to_pylist())) == images.num_rows == 6
    reader = Reader()
    for row in images.to_pylist():
        x, y, w, h = row["tile_x"], row["tile_y"], row["width"], row["height"]
        assert row["image_id"] == tile_id(parent, (x, y, w, h))
        assert np.array_equal(reader.read(row), np.asarray(photo)[y : y + h, x : x + w])


def test_photo_no_larger_than_a_tile_is_itself(tmp_path: Path) -> None:
    uri = put(tmp_path, {"b/1.png": encoded(noise(1, 40, 40))})
    images, _ = collect_images(open_source(uri), "b", settings_of(uri, tile={"size": 40}))
    assert images.column("image_id").to_pylist() == images.column("parent_id").to_pylist()


# -- images ---------------------------------------------------------------------------------------


def damaged_files() -> dict[str, tuple[bytes, str]]:
    """A hundred files that no decoder can use -> the reasons that may be given."""
    files: dict[str, tuple[bytes, str]] = {}
    rng = np.random.default_rng(3)
    for i, share in enumerate(rng.uniform(0.1, 0.9, 20)):
        data = encoded(noise(i), "JPEG", quality=90)
        files[f"cut{i:02d}.jpg"] = data[: int(len(data) * share)], "damaged"
    for i, share in enumerate(rng.uniform(0.1, 0.9, 20)):
        data = encoded(noise(i))
        files[f"cut{i:02d}.png"] = data[: int(len(data) * share)], "damaged"
    for i, kind in enumerate(["GIF", "BMP", "TIFF", "WEBP", "JPEG2000"] * 2):
        data = encoded(noise(i), kind)
        files[f"half{i}.{kind.lower()}"] = data[: len(data) // (2 + i // 5)], "damaged|not_an_image"
    for i in range(10):
        files[f"empty{i}.jpg"] = b"", "empty"
    for i in range(10):
        files[f"text {i}.jpg"] = f"Not found ({404 + i})".encode(), "not_an_image"
    for i in range(10):
        data = bytearray(encoded(noise(i)))
        data[16:24] = (60000 + i).to_bytes(4, "big") * 2  # the size that a PNG claims; its checksum follows
        data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
        files[f"bomb{i}.png"] = bytes(data), "too_large"
    for i in range(10):
        files[f"random{i}.tif"] = rng.bytes(2000 + i), "not_an_image"
    for i, data in enumerate((b"%PDF-1.7\n", b"PK\x03\x04", b"\x1f\x8b\x08", b"MZ\x90", b"<html></html>")):
        files[f"wrong{i}.jpg"] = data + bytes([i]) * 50, "not_an_image"
    for i in range(5):
        data = bytearray(encoded(noise(i)))
        middle = data.index(b"IDAT") + 30
        data[middle : middle + 40] = bytes(40)  # the compressed pixels, so that their checksum fails
        files[f"flipped ✗ {i}.png"] = bytes(data), "damaged"
    assert len(files) == 100
    return files


def good_files() -> dict[str, tuple[bytes, str]]:
    """Odd files that are photos all the same -> the mode to be noted."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2026:07:01 18:30:05"
    first, second = noise(100), noise(101)
    grey16 = Image.fromarray(np.random.default_rng(0).integers(0, 65535, (48, 64)).astype(np.uint16))
    return {
        "plain.jpg": (encoded(noise(110), "JPEG"), "RGB"),
        "cmyk.jpg": (encoded(noise(111).convert("CMYK"), "JPEG"), "CMYK"),
        "deep.png": (encoded(grey16), "I;16"),
        "palette.png": (encoded(noise(112).quantize(16)), "P"),
        "animated.gif": (encoded(first, "GIF", save_all=True, append_images=[second]), "P"),
        "animated.png": (encoded(first, "PNG", save_all=True, append_images=[second]), "RGB"),
        "turned.jpg": (encoded(noise(113, 48, 64), "JPEG", exif=exif), "RGB"),
        "really a png.jpg": (encoded(noise(114)), "RGB"),
        "no extension": (encoded(noise(115)), "RGB"),
        "ünï 码 #%20?&.png": (encoded(noise(116)), "RGB"),
        "alpha.png": (encoded(noise(117).convert("RGBA")), "RGBA"),
        "new\nline.png": (encoded(noise(118)), "RGB"),
    }


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("troubled")
    put(root, {f"b/{name}": data for name, (data, _) in (damaged_files() | good_files()).items()})
    put(root, {"b/notes.txt": "hello", "b/meta.json": "{}", "b/README.md": "#", "b/.DS_Store": b"\0"})
    return root


def test_a_hundred_damaged_files_are_listed_and_good_ones_used(troubled: Path) -> None:
    uri = str(troubled)
    images, rejected = collect_images(open_source(uri), "b", settings_of(uri))
    expected = {name: reasons for name, (_, reasons) in damaged_files().items()}
    found = {r["file_name"]: r for r in rejected.to_pylist()}
    assert sorted(found) == sorted(expected)
    for name, reasons in expected.items():
        assert found[name]["reason"] in reasons.split("|"), (name, found[name])
        assert found[name]["detail"] and found[name]["bytes"] == (troubled / "b" / name).stat().st_size
    modes = {r["file_name"]: r["mode"] for r in images.to_pylist()}
    assert modes == {name: mode for name, (_, mode) in good_files().items()}
    assert set(zip(images["width"].to_pylist(), images["height"].to_pylist(), strict=True)) == {(64, 48)}
    assert [r["orientation"] for r in images.to_pylist() if r["file_name"] == "turned.jpg"] == [6]
    taken = images.filter(pc.is_valid(images["captured_at"])).select(["file_name", "captured_at"]).to_pylist()
    assert taken == [{"file_name": "turned.jpg", "captured_at": datetime(2026, 7, 1, 18, 30, 5)}]
    for name, rows in (("images", images), ("rejected_files", rejected)):
        assert rows.schema == schema.table(name).schema and not schema.table(name).duplicate_keys(rows)
    assert len([p for p in Reader().read_rows(images) if p is not None]) == images.num_rows


def test_collecting_twice_gives_the_same_table(troubled: Path) -> None:
    uri = str(troubled)
    config = settings_of(uri, tile={"size": 30, "overlap": 5})
    first, second = (collect_images(open_source(uri), "b", config) for _ in range(2))
    assert first[0].equals(second[0]) and first[1].equals(second[1])


def test_same_bytes_twice_are_used_once(tmp_path: Path) -> None:
    data = encoded(noise(1))
    uri = put(
        tmp_path,
        {"b/2.png": data, "b/1.png": data, "b/sub/3.png": data, "c/1.png": data, "b/4.png": b"", "b/5.png": b""},
    )
    images, rejected = collect_images(open_source(uri), "b", settings_of(uri))
    assert images["file_name"].to_pylist() == ["1.png"]
    rows = {r["file_name"]: r["reason"] for r in rejected.to_pylist()}
    assert rows == {"2.png": "duplicate_file", "sub/3.png": "duplicate_file", "4.png": "empty", "5.png": "empty"}
    assert collect_images(open_source(uri), "c", settings_of(uri))[0].num_rows == 1


def test_file_too_large_to_read_is_not_read(tmp_path: Path) -> None:
    uri = put(tmp_path, {"b/1.png": encoded(noise(1))})
    with (tmp_path / "b" / "huge.jpg").open("wb") as file:
        file.truncate(3 * 1024**3)  # sparse: 3 GiB that are not there
    _, rejected = collect_images(open_source(uri), "b", settings_of(uri))
    assert [(r["file_name"], r["reason"]) for r in rejected.to_pylist()] == [("huge.jpg", "too_large")]


def test_attributes_and_location(tmp_path: Path) -> None:
    files = {"2026-north/cam1_0001.png": encoded(noise(1)), "2026-north/other.png": encoded(noise(2))}
    uri = put(tmp_path, files)
    pattern = r"(?P<site>north|south)/(cam(?P<camera>\d))?"
    images, _ = collect_images(
        open_source(uri), "2026-north", settings_of(uri, attributes=pattern, location=r"cam\d+(?=_)")
    )
    rows = {r["file_name"]: r for r in images.to_pylist()}
    assert rows["cam1_0001.png"]["attributes"] == [("site", "north"), ("camera", "1")]
    assert rows["other.png"]["attributes"] == [("site", "north")]
    assert rows["cam1_0001.png"]["location"] == "cam1"
    assert rows["other.png"]["location"] == "2026-north/other.png"


def test_empty_batch_gives_empty_tables(tmp_path: Path) -> None:
    uri = put(tmp_path, {"b/readme.txt": "nothing here"})
    source, config = open_source(uri), settings_of(uri)
    images, rejected = collect_images(source, "b", config)
    assert images.num_rows == rejected.num_rows == 0
    for rows in collect_ground_truth(source, "b", images, ONTOLOGY, config):
        assert rows.num_rows == 0


def test_progress_counts_every_file(tmp_path: Path) -> None:
    uri = put(tmp_path, {f"b/{i}.png": encoded(noise(i)) for i in range(3)} | {"b/bad.png": b"x", "b/x.txt": ""})
    seen: list[tuple[int, int]] = []
    told = Compute(progress=lambda done, total: seen.append((done, total)))
    collect_images(open_source(uri), "b", settings_of(uri), told)
    assert seen == [(4, 4)]


@pytest.mark.parametrize("mode", ["local", pytest.param("auto", marks=pytest.mark.ray)])
def test_collecting_elsewhere_gives_the_same_tables(troubled: Path, mode: str, tmp_path: Path) -> None:
    for k in range(270):  # more than a shard, and the last file's bytes are in the first shard, too
        (tmp_path / f"{k:03d}.png").write_bytes(encoded(noise(k % 269, 8, 8)))
    for folder, batch in ((troubled, "b"), (tmp_path, "default")):
        source, config = open_source(str(folder)), settings_of(str(folder), tile={"size": 30, "overlap": 5})
        here, there = (collect_images(source, batch, config, Compute(m, 2)) for m in ("inline", mode))
        assert here[0].equals(there[0]) and here[1].equals(there[1])
    assert [(r["file_name"], r["detail"]) for r in here[1].to_pylist()] == [
        ("269.png", "the same bytes as 000.png; nothing need be done")
    ]


def killed(source: Source, config: SourceConfig, staging: Staging) -> None:
    """A collection in a process of its own, which does not survive it."""
    child = get_context("fork").Process(
        target=collect.collect_images, args=(source, "default", config, Compute(), staging)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards of files, small ones since each halving of one starts a process, and a folder for notes."""
    monkeypatch.setattr(collect, "_FILES_PER_SHARD", 16)
    (tmp_path / "notes").mkdir()
    (tmp_path / "photos").mkdir()
    data = encoded(noise(1, 8, 8))
    for k in range(20):
        (tmp_path / "photos" / f"{k:03d}.png").write_bytes(data + bytes([k]))
    return tmp_path


@pytest.mark.parametrize("mode", ["inline", "local"])
def test_a_file_that_kills_its_reader_is_listed_with_the_signal(many: Path, mode: str) -> None:
    uri = str(many / "photos")
    source, config = Fatal(uri, many / "notes", "012.png", once=False), settings_of(uri)
    expected = collect_images(open_source(uri), "default", config)[0]
    staging = Store(str(many / "store")).staging("images", "default", "f")
    if mode == "inline":  # the first run is lost, the second one knows which shard it was
        killed(source, config, staging)
    images, rejected = collect.collect_images(source, "default", config, Compute(mode, 2), staging)
    assert images.equals(expected.filter(pc.not_equal(expected["file_name"], "012.png"))) and images.num_rows == 19
    (row,) = rejected.to_pylist()
    assert row["file_name"] == "012.png" and row["reason"] == "fatal" and "(SIGKILL)" in row["detail"]
    assert row["bytes"] == (many / "photos" / "012.png").stat().st_size


def test_a_killed_collection_does_only_the_shard_in_hand_again(many: Path) -> None:
    uri = str(many / "photos")
    source, config = Fatal(uri, many / "notes", "018.png", once=True), settings_of(uri)
    staging = Store(str(many / "store")).staging("images", "default", "f")
    killed(source, config, staging)
    images, rejected = collect.collect_images(source, "default", config, Compute(), staging)
    assert images.equals(collect_images(open_source(uri), "default", config)[0]) and not rejected.num_rows
    times = {path.name: len(path.read_text().split()) for path in (many / "notes").glob("*.png")}
    again = sorted(name for name, n in times.items() if n > 1)
    assert len(times) == 20 and set(times.values()) == {1, 2}
    assert again[0] == "016.png" and "018.png" in again


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    yield boto3.client("s3", endpoint_url=f"http://{host}:{port}", **keys)
    server.stop()


def test_s3_gives_the_same_tables_as_a_folder(tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: data for name, (data, _) in (damaged_files() | good_files()).items()}
    del files["new\nline.png"]  # moto takes no such key
    put(tmp_path, {f"b/{name}": data for name, data in files.items()})
    put(tmp_path, {"b/labels.csv": "image,xmin,ymin,xmax,ymax,label\nplain.jpg,1,2,30,40,cat\nalpha.png,,,,,\n"})
    s3.create_bucket(Bucket="photos")
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file():
            s3.put_object(Bucket="photos", Key=f"in/{path.relative_to(tmp_path).as_posix()}", Body=path.read_bytes())
    tables = []
    for source in (open_source(str(tmp_path)), open_source("s3://photos/in", s3)):
        config = settings_of(source.uri, tile={"size": 32, "overlap": 8})
        images, rejected = collect_images(source, "b", config)
        truth, annotated = collect_ground_truth(source, "b", images, ONTOLOGY, config)
        tables.append([images.drop(["uri"]), rejected.drop(["uri"]), truth, annotated, images])
    assert all(a.equals(b) for a, b in zip(tables[0][:4], tables[1][:4], strict=True))
    assert tables[0][2].num_rows > 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.meta.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    elsewhere, _ = collect_images(source, "b", config, Compute("local", 1))
    assert elsewhere.equals(tables[1][4])
    local, remote = (Reader().read_rows(t[4]) for t in tables)
    assert all(np.array_equal(a, b) for a, b in zip(local, remote, strict=True))


# -- ground truth ---------------------------------------------------------------------------------


def truth_of(root: Path, batch: str = "b", **options: Any) -> tuple[Any, Any, Any]:
    source, config = open_source(str(root)), settings_of(str(root), **options)
    images, _ = collect_images(source, batch, config)
    return images, *collect_ground_truth(source, batch, images, ONTOLOGY, config)


def test_boxes_keep_their_place(tmp_path: Path) -> None:
    put(tmp_path, {"b/1.png": encoded(noise(1)), "b/1.xml": voc("1.png", [("Kitty", 3, 4, 20, 30)])})
    images, truth, annotated = truth_of(tmp_path)
    (row,) = truth.to_pylist()
    assert (row["x1"], row["y1"], row["x2"], row["y2"]) == (3, 4, 20, 30)
    assert row["class_name"] == "cat" and row["producer"] == "human" and row["score"] == 1
    assert not (row["truncated"] or row["ignore"] or row["is_crowd"])
    assert annotated.to_pylist() == [{"image_id": images["image_id"][0].as_py(), "batch": "b", "source": "1.xml"}]


@given(
    boxes=st.lists(
        st.tuples(st.integers(0, 85), st.integers(0, 65), st.integers(1, 60), st.integers(1, 60)),
        min_size=1,
        max_size=6,
    ),
    size=st.integers(20, 60),
    least=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=30)
def test_pieces_in_tiles_follow_the_pixels(
    tmp_path_factory: pytest.TempPathFactory, boxes: list[tuple[int, int, int, int]], size: int, least: float
) -> None:
    """Against painting each box on the photo and cutting the painting into tiles."""
    width, height = 90, 70
    corners = [(x, y, min(x + w, width), min(y + h, height)) for x, y, w, h in boxes]
    root = tmp_path_factory.mktemp("tiles")
    put(root, {"b/p.png": encoded(noise(5, width, height)), "b/p.xml": voc("p.png", [("dog", *c) for c in corners])})
    tile = TileConfig(size=size, overlap=size // 4, min_visible=least)
    images, truth, annotated = truth_of(root, tile=tile.model_dump())
    expected: Counter[tuple[Any, ...]] = Counter()
    for row in images.to_pylist():
        x, y, w, h = row["tile_x"], row["tile_y"], row["width"], row["height"]
        for x1, y1, x2, y2 in corners:
            painted = np.zeros((height, width), bool)
            painted[y1:y2, x1:x2] = True
            ys, xs = np.nonzero(painted[y : y + h, x : x + w])
            if ys.size:
                share = ys.size / painted.sum()
                box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
                expected[(row["image_id"], *map(int, box), share < 1, share < least)] += 1
    found = Counter(
        (r["image_id"], r["x1"], r["y1"], r["x2"], r["y2"], r["truncated"], r["ignore"]) for r in truth.to_pylist()
    )
    assert found == expected
    assert annotated.num_rows == images.num_rows
    assert len(set(truth["annotation_id"].to_pylist())) == truth.num_rows


def test_masks_are_cut_with_their_tiles(tmp_path: Path) -> None:
    photo = np.zeros((70, 90), bool)
    photo[10:60, 20:40] = True
    photo[50:60, 20:80] = True
    entry = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [20, 10, 60, 50],
        "segmentation": {"size": [70, 90], "counts": masks.encode(photo)},
    }
    coco = {
        "images": [{"id": 1, "file_name": "p.png"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [entry],
    }
    put(tmp_path, {"b/p.png": encoded(noise(1, 90, 70)), "b/a.json": json.dumps(coco)})
    images, truth, _ = truth_of(tmp_path, tile={"size": 40, "overlap": 10, "min_visible": 0.0})
    tiles = {r["image_id"]: r for r in images.to_pylist()}
    seen = set()
    for row in truth.to_pylist():
        tile = tiles[row["image_id"]]
        x, y, w, h = tile["tile_x"], tile["tile_y"], tile["width"], tile["height"]
        assert np.array_equal(masks.decode(row["mask"], h, w), photo[y : y + h, x : x + w])
        seen.add(row["image_id"])
    # The box reaches into every tile; the tile at its empty corner shows nothing of the object.
    shown = {i for i, t in tiles.items() if photo[t["tile_y"] : t["tile_y"] + 40, t["tile_x"] : t["tile_x"] + 40].any()}
    assert seen == shown and len(shown) < len(tiles)


def test_boxes_outside_are_clipped_or_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    boxes = [("cat", -5, -5, 10, 10), ("cat", 60, 40, 90, 90), ("cat", 70, 0, 90, 10), ("dog", 5, 5, 5, 9)]
    put(tmp_path, {"b/1.png": encoded(noise(1)), "b/1.xml": voc("1.png", boxes)})
    _, truth, _ = truth_of(tmp_path)
    found = [(r["x1"], r["y1"], r["x2"], r["y2"]) for r in truth.to_pylist()]
    assert found == [(0, 0, 10, 10), (60, 40, 64, 48)]
    assert "left out 2 empty boxes" in caplog.text


def test_difficult_and_truncated_are_kept(tmp_path: Path) -> None:
    flags = "<truncated>1</truncated><difficult>1</difficult>"
    put(tmp_path, {"b/1.png": encoded(noise(1)), "b/1.xml": voc("1.png", [("cat", 1, 1, 9, 9)], flags)})
    _, truth, _ = truth_of(tmp_path)
    assert truth["ignore"].to_pylist() == [True] and truth["truncated"].to_pylist() == [True]


def test_images_without_boxes_are_annotated_all_the_same(tmp_path: Path) -> None:
    put(tmp_path, {"b/1.png": encoded(noise(1)), "b/1.xml": voc("1.png", []), "b/2.png": encoded(noise(2))})
    images, truth, annotated = truth_of(tmp_path)
    assert truth.num_rows == 0 and annotated.num_rows == 1 and images.num_rows == 2


def test_unlabelled_batch(tmp_path: Path) -> None:
    put(tmp_path, {"b/1.png": encoded(noise(1))})
    for kind in ("auto", "none", "voc", "coco", "yolo", "csv", "folders"):
        _, truth, annotated = truth_of(tmp_path, annotations=kind)
        assert truth.num_rows == annotated.num_rows == 0


def test_class_folders(tmp_path: Path) -> None:
    files = {"b/cat/1.png": 1, "b/train/Kitty/2.png": 2, "b/dog/old/3.png": 3, "b/4.png": 4, "b/horse/5.png": 5}
    put(tmp_path, {name: encoded(noise(i)) for name, i in files.items()})
    images, truth, annotated = truth_of(tmp_path)
    names = dict(zip(images["image_id"].to_pylist(), images["file_name"].to_pylist(), strict=True))
    found = {names[r["image_id"]]: r["class_name"] for r in truth.to_pylist()}
    assert found == {"cat/1.png": "cat", "train/Kitty/2.png": "cat", "dog/old/3.png": "dog"}
    assert truth["x1"].null_count == 3 and annotated.num_rows == 3
    assert set(annotated["source"].to_pylist()) == {"cat/", "train/Kitty/", "dog/old/"}


def test_labels_of_damaged_photos_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    box = [("cat", 1, 1, 9, 9)]
    put(
        tmp_path,
        {
            "b/1.png": encoded(noise(1)),
            "b/1.xml": voc("1.png", box),
            "b/2.png": b"damaged",
            "b/2.xml": voc("2.png", box),
        },
    )
    _, truth, annotated = truth_of(tmp_path)
    assert truth.num_rows == annotated.num_rows == 1
    assert "2.xml names 1 images that are missing or cannot be used" in caplog.text


def test_exact_repeats_have_their_own_ids(tmp_path: Path) -> None:
    put(tmp_path, {"b/1.png": encoded(noise(1)), "b/1.xml": voc("1.png", [("cat", 1, 1, 9, 9)] * 3)})
    _, truth, _ = truth_of(tmp_path)
    assert len(set(truth["annotation_id"].to_pylist())) == 3 and not schema.table("ground_truth").duplicate_keys(truth)


def test_two_formats_in_one_batch_are_refused_unless_chosen(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "b/1.png": encoded(noise(1)),
            "b/1.xml": voc("1.png", [("cat", 1, 1, 9, 9)]),
            "b/boxes.csv": "image,xmin,ymin,xmax,ymax,label\n1.png,2,2,8,8,dog\n",
        },
    )
    with pytest.raises(DataError, match="several formats") as error:
        truth_of(tmp_path)
    assert "source.annotations" in error.value.remedy
    assert truth_of(tmp_path, annotations="csv")[1]["class_name"].to_pylist() == ["dog"]
    assert truth_of(tmp_path, annotations="voc")[1]["class_name"].to_pylist() == ["cat"]


@pytest.mark.weights
def test_samples_have_the_boxes_that_people_drew() -> None:
    """Crowns cut by a tile's edge are kept on both sides; each is whole, and counted, in some tile."""
    from pipeline.config import find_project

    project = find_project("trees")
    source, config = open_source(project.source_uri), project.config.source
    expected = {"2026-06-01-yell": 382 + 164, "2026-07-01-yell": 203, "2026-08-01-osbs": 61, "2026-08-15-soap": 37}
    for batch in source.batches():
        images, rejected = collect_images(source, batch, config)
        truth, annotated = collect_ground_truth(source, batch, images, project.ontology, config)
        assert rejected.num_rows == 0 and set(images["width"].to_pylist()) == {400}
        offset = {r["image_id"]: (r["parent_id"], r["tile_x"], r["tile_y"]) for r in images.to_pylist()}
        placed = set()
        for row in truth.filter(pc.invert(truth["truncated"])).to_pylist():
            parent, x, y = offset[row["image_id"]]
            placed.add((parent, row["x1"] + x, row["y1"] + y, row["x2"] + x, row["y2"] + y))
        assert len(placed) <= expected.get(batch, 0) and len(placed) >= 0.93 * expected.get(batch, 0)
        assert (annotated.num_rows > 0) == (batch in expected)


@pytest.mark.parametrize("left", [True, False])
def test_where_the_folder_is_not_mounted_no_file_is_rejected(tmp_path: Path, left: bool) -> None:
    uri = put(tmp_path / "photos", {"b/a.png": encoded(noise(1))})
    source = open_source(uri)
    rows = pa.table({name: [getattr(f, name) for f in source.files("b")] for name in collect._FILES.names})
    worker = collect.CollectWorker(source, "b", settings_of(uri))
    assert worker(rows)["reason"].to_pylist() == [None]
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    if left:
        (tmp_path / "photos").mkdir()  # a mount point
    with pytest.raises(ComputeError, match=f"is not on {socket.gethostname()}"):
        worker(rows)


def test_a_folder_that_goes_away_in_the_middle_rejects_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = put(tmp_path / "photos", {"b/a.png": encoded(noise(1))})
    source = open_source(uri)
    read = source.read

    def unmounted(file: SourceFile) -> bytes:
        (tmp_path / "photos").rename(tmp_path / "elsewhere")
        return read(file)

    monkeypatch.setattr(source, "read", unmounted)
    with pytest.raises(ComputeError, match="is not on"):
        collect_images(source, "b", settings_of(uri))
