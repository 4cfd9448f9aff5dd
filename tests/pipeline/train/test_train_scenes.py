from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import schema
from pipeline.boxes import in_window, iou
from pipeline.images import UnusableImage
from pipeline.train.scenes import Crops, make_scenes

DARK, BRIGHT = 40, 200


def image_row(path: Path, image: str, window: tuple[int, int, int, int], photo: tuple[int, int]) -> dict[str, Any]:
    x, y, width, height = window
    return {
        "image_id": image,
        "batch": "b",
        "uri": str(path),
        "file_name": path.name,
        "parent_id": path.name,
        "tile_x": x,
        "tile_y": y,
        "width": width,
        "height": height,
        "photo_width": photo[0],
        "photo_height": photo[1],
        "format": "PNG",
        "mode": "RGB",
        "orientation": 1,
        "bytes": 1,
        "location": "l",
        "attributes": [],
    }


def tiled(path: Path, boxes: np.ndarray, photo: tuple[int, int], size: int, step: int) -> tuple[pa.Table, pa.Table]:
    """Tiles of a photo and its boxes as each tile shows them."""
    rows, found = [], []
    for y in range(0, photo[1] - size + 1, step):
        for x in range(0, photo[0] - size + 1, step):
            image = f"{x}_{y}"
            rows.append(image_row(path, image, (x, y, size, size), photo))
            inside, share = in_window(boxes, (x, y, size, size))
            seen = share > 0
            n = int(seen.sum())
            found.append(
                schema.annotations(  # type: ignore[operator]
                    "training_set",
                    image_ids=[image] * n,
                    batch="b",
                    producer="human",
                    classes=["Tree"] * n,
                    boxes=inside[seen],
                    truncated=share[seen] < 1,
                    ignore=share[seen] < 0.25,
                    split=["train"] * n,
                    origin=["gold"] * n,
                    snapshot=["s"] * n,
                )
            )
    return schema.table("images").from_rows(rows), pa.concat_tables(found)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 25))
def test_tiles_put_together_give_back_the_photos_boxes(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    low = random.integers(0, 260, (n, 2))
    boxes = np.hstack([low, low + random.integers(8, 40, (n, 2))]).astype(float)
    apart: list[int] = []
    for i in range(n):  # touching crowns are told apart by people, not by geometry
        if not (iou(boxes[i], boxes[apart]) > 0).any():
            apart.append(i)
    images, annotations = tiled(Path("p.png"), boxes[apart], (300, 300), size=120, step=60)
    (scene,) = make_scenes(images, annotations, ["Tree"])
    assert not scene.ignore.any()
    assert {tuple(b) for b in scene.boxes.tolist()} == {tuple(b) for b in boxes[apart].tolist()}


def test_two_boxes_of_one_tile_are_never_merged() -> None:
    boxes = np.array([[10.0, 10, 50, 50], [12.0, 12, 52, 52]])
    images, annotations = tiled(Path("p.png"), boxes, (100, 100), size=100, step=100)
    (scene,) = make_scenes(images, annotations, ["Tree"])
    assert len(scene.boxes) == 2


def test_unknown_classes_and_crowds_are_ignored_regions() -> None:
    images, annotations = tiled(Path("p.png"), np.array([[10.0, 10, 50, 50]]), (100, 100), size=100, step=100)
    (scene,) = make_scenes(images, annotations, ["Car"])
    assert scene.ignore.tolist() == [True]


def test_images_without_boxes_are_ground() -> None:
    images, _ = tiled(Path("p.png"), np.zeros((0, 4)), (100, 100), size=100, step=100)
    (scene,) = make_scenes(images, schema.table("training_set").empty(), ["Tree"])
    assert scene.boxes.shape == (0, 4)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A dark photo with bright boxes; its right fifth, held out, is pure red."""
    random = np.random.default_rng(1)
    pixels = np.full((300, 400, 3), DARK, np.uint8)
    boxes = []
    for y in range(20, 260, 60):
        for x in range(20, 290, 60):
            width, height = random.integers(15, 40, 2)
            boxes.append((x, y, min(x + width, 320), y + height))
            pixels[y : y + height, x : min(x + width, 320)] = BRIGHT
    pixels[:, 320:] = (255, 0, 0)
    path = tmp_path_factory.mktemp("photo") / "p.png"
    Image.fromarray(pixels).save(path)
    return path, np.array(boxes, float)


def painted_crops(painted: tuple[Path, np.ndarray], **options: Any) -> Crops:
    path, boxes = painted
    images, annotations = tiled(path, boxes, (400, 300), size=160, step=70)
    # Tiles that reach into the red part are held out.
    inside = np.array(images["tile_x"]) + 160 <= 320
    kept = images.filter(pa.array(inside))
    annotations = schema.where_in(annotations, "image_id", kept["image_id"].to_pylist())
    settings = {"edge": (90, 200), "size": 128, "min_visible": 0.25, "rotate": True, "seed": 3}
    return Crops(make_scenes(kept, annotations, ["Tree"]), **{**settings, **options})


def test_boxes_follow_the_pixels_through_every_change(painted: tuple[Path, np.ndarray]) -> None:
    crops = painted_crops(painted)
    for i in range(40):
        crop = crops.draw(i)
        grey = crop.pixels.astype(float).mean(axis=2)
        inside = np.zeros((128, 128), bool)
        inner = np.zeros((128, 128), bool)
        for x1, y1, x2, y2 in np.round(crop.boxes).astype(int):
            inside[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = True
            inner[y1 + 2 : max(0, y2 - 2), x1 + 2 : max(0, x2 - 2)] = True
        # Outside of the tiles the crop has one filling colour, between dark and bright.
        assert not inner.any() or grey[inner].min() > 1.8 * np.percentile(grey, 1)
        bright = grey > 0.92 * grey.max() if inner.any() else np.zeros_like(inside)
        assert (bright & ~inside).mean() < 0.002


def test_no_crop_shows_a_held_out_pixel(painted: tuple[Path, np.ndarray]) -> None:
    crops = painted_crops(painted, edge=(150, 390))
    for i in range(40):
        red, green, blue = crops.draw(i).pixels.reshape(-1, 3).astype(int).T
        assert not ((red > 150) & (green < 60) & (blue < 60)).any()


def test_slivers_of_cut_boxes_are_ignored(painted: tuple[Path, np.ndarray]) -> None:
    crops = painted_crops(painted, min_visible=0.6)
    all_visible = painted_crops(painted, min_visible=0.0)
    ignored = 0
    for i in range(30):
        strict, lax = crops.draw(i), all_visible.draw(i)
        assert np.array_equal(strict.boxes, lax.boxes) and not lax.ignore.any()
        inner = (lax.boxes > 0.5).all(axis=1) & (lax.boxes < 127.5).all(axis=1)
        assert not strict.ignore[inner].any()
        ignored += int(strict.ignore.sum())
    assert ignored > 5


def test_a_crop_depends_on_seed_and_number_alone(painted: tuple[Path, np.ndarray]) -> None:
    first, again = painted_crops(painted), painted_crops(painted)
    again.draw(7)
    assert np.array_equal(first.draw(5).pixels, again.draw(5).pixels)
    assert not np.array_equal(first.draw(5).pixels, first.draw(6).pixels)
    assert not np.array_equal(first.draw(5).pixels, painted_crops(painted, seed=4).draw(5).pixels)


def test_a_missing_photo_is_found_before_training(painted: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "there.png").touch()
    images, annotations = tiled(tmp_path / "gone.png", np.array([[1.0, 1, 9, 9]]), (100, 100), size=100, step=100)
    crops = Crops(make_scenes(images, annotations, ["Tree"]), (50, 100), 64, 0.25, True, 0)
    assert isinstance(crops.unreadable(), UnusableImage)
    assert painted_crops(painted).unreadable() is None
