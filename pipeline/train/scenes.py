"""Photos and boxes to random training crops. Tiles of one photo are put together again first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.boxes import area, clip, coverage, in_window, intersection, iou
from pipeline.images import READ, Pixels, Reader, UnusableImage
from pipeline.models.fcos import MEAN

# Boxes of two tiles are one object when they overlap this much, or when this much of a box that its
# tile's edge cuts lies in a whole one.
SAME_IOU = 0.5
SAME_COVERAGE = 0.8


@dataclass(frozen=True)
class Scene:
    """What may be trained on of one photo.

    Attributes:
        rows: its rows of `images` (one unless tiled); only their windows are ever looked at.
        boxes: (n, 4) xyxy in the photo. classes: (n,) indices. ignore: (n,) neither object nor ground.
    """

    rows: tuple[dict[str, Any], ...]
    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    ignore: NDArray[np.bool_]

    @property
    def windows(self) -> NDArray[np.int64]:
        """(m, 4) xyxy of its tiles in the photo."""
        corner = np.array([(r["tile_x"], r["tile_y"]) for r in self.rows], np.int64)
        return np.hstack([corner, corner + np.array([(r["width"], r["height"]) for r in self.rows], np.int64)])


def training_images(
    images: pa.Table, training_set: pa.Table, splits: pa.Table, annotated_images: pa.Table, split: str = "train"
) -> pa.Table:
    """Rows of `images` to train on: those of `training_set`, and people's images without any object."""
    labelled = schema.where_in(training_set, "split", (split,))["image_id"].to_pylist()
    gold = schema.where_in(splits.filter(splits["gold"]), "split", (split,))
    complete = schema.where_in(gold, "image_id", annotated_images["image_id"].to_pylist())["image_id"].to_pylist()
    return schema.where_in(images, "image_id", sorted({*labelled, *complete}))


def make_scenes(images: pa.Table, annotations: pa.Table, classes: Sequence[str]) -> list[Scene]:
    """The photos of `images` with their boxes, ordered by photo and place.

    Args:
        images: the rows to train on; those without annotations are ground only.
        annotations: rows of training_set. Classes that are not in `classes` are ignored regions.
    """
    ordered = images.sort_by([("parent_id", "ascending"), ("tile_y", "ascending"), ("tile_x", "ascending")])
    by_image = _boxes_by_image(annotations, classes)
    photos: dict[str, list[dict[str, Any]]] = {}
    for row in ordered.select(["parent_id", "image_id", *READ]).to_pylist():
        photos.setdefault(row["parent_id"], []).append(row)
    return [_scene(rows, by_image) for rows in photos.values()]


@dataclass(frozen=True)
class _Boxes:
    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    ignore: NDArray[np.bool_]
    truncated: NDArray[np.bool_]


def _boxes_by_image(annotations: pa.Table, classes: Sequence[str]) -> dict[str, _Boxes]:
    drawn = annotations.filter(pa.compute.is_valid(annotations.column("x1")))
    boxes = schema.box_array(drawn)
    index = {name: i for i, name in enumerate(classes)}
    label = np.array([index.get(c, -1) for c in drawn.column("class_name").to_pylist()], np.int64)
    ignored, crowd, truncated = (
        drawn.column(k).to_numpy(zero_copy_only=False).astype(bool) for k in ("ignore", "is_crowd", "truncated")
    )
    ignore = ignored | crowd | (label < 0)
    members: dict[str, list[int]] = {}
    for i, image in enumerate(drawn.column("image_id").to_pylist()):
        members.setdefault(image, []).append(i)
    return {
        image: _Boxes(boxes[at], np.maximum(label[at], 0), ignore[at], truncated[at]) for image, at in members.items()
    }


def _scene(rows: list[dict[str, Any]], by_image: dict[str, _Boxes]) -> Scene:
    boxes, classes, ignore, truncated, tile = [np.zeros((0, 4))], [], [], [], []
    for number, row in enumerate(rows):
        found = by_image.get(row["image_id"])
        if found is None:
            continue
        boxes.append(found.boxes + np.array([row["tile_x"], row["tile_y"]] * 2))
        classes += found.classes.tolist()
        ignore += found.ignore.tolist()
        truncated += found.truncated.tolist()
        tile += [number] * len(found.boxes)
    all_boxes = np.concatenate(boxes)
    label, ignored = np.array(classes, np.int64), np.array(ignore, bool)
    kept = merge(all_boxes, label, ignored, np.array(truncated, bool), np.array(tile, np.int64))
    return Scene(tuple({k: r[k] for k in READ} for r in rows), all_boxes[kept], label[kept], ignored[kept])


def merge(
    boxes: NDArray[np.float64],
    classes: NDArray[np.int64],
    ignore: NDArray[np.bool_],
    truncated: NDArray[np.bool_],
    tile: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Indices that are left when an object seen in several tiles is kept once, where it is seen best.

    Args:
        boxes: (n, 4) xyxy in the photo. classes, ignore, truncated: (n,). tile: (n,) where each was seen.
    """
    order = np.lexsort((np.arange(len(boxes)), -area(boxes), truncated, ignore))
    kept: list[int] = []
    for j in order:
        others = [i for i in kept if tile[i] != tile[j] and (classes[i] == classes[j] or ignore[j])]
        if others:
            same = iou(boxes[j], boxes[others])[0] >= SAME_IOU
            if truncated[j]:
                same |= coverage(boxes[j], boxes[others])[0] >= SAME_COVERAGE
            if same.any():
                continue
        kept.append(int(j))
    return np.array(sorted(kept), np.int64)


@dataclass(frozen=True)
class Crop:
    """One training example: (s, s, 3) uint8 pixels and its boxes in them, as in `Scene`."""

    pixels: Pixels
    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    ignore: NDArray[np.bool_]


class Crops:
    """Draws crops: the i-th is the same whoever draws it, and whenever.

    Args:
        edge: smallest and largest edge of the square window, in pixels of the photo.
        size: edge that windows are resized to.
        min_visible: a cut box that shows less becomes an ignored region.
        rotate: also turn by quarters and flip upside down, for views from above.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        edge: tuple[int, int],
        size: int,
        min_visible: float,
        rotate: bool,
        seed: int,
        keep: int = 32,
    ) -> None:
        self.scenes = scenes
        self.edge = edge
        self.size = size
        self.min_visible = min_visible
        self.rotate = rotate
        self.seed = seed
        self._reader = Reader(keep=keep)
        self._tiles = [(s, t) for s, scene in enumerate(scenes) for t in range(len(scene.rows))]

    def draw(self, index: int) -> Crop:
        """The crop number `index`.

        Raises:
            UnusableImage: its photo is gone or has changed since it was collected.
        """
        random = np.random.default_rng([self.seed, index])
        number, tile = self._tiles[random.integers(len(self._tiles))]
        scene = self.scenes[number]
        window = self._window(scene, tile, random)
        boxes, visible = in_window(scene.boxes, window)
        seen = visible > 0
        ignore = scene.ignore[seen] | (visible[seen] < self.min_visible)
        crop = Crop(self._pixels(scene, window), boxes[seen].astype(np.float64), scene.classes[seen], ignore)
        turned = _turned(_resized(crop, self.size), random, self.rotate)
        return replace(turned, pixels=recoloured(turned.pixels, random))

    def _window(self, scene: Scene, tile: int, random: np.random.Generator) -> tuple[int, int, int, int]:
        edge = round(float(np.exp(random.uniform(*np.log(self.edge)))))
        x1, y1, x2, y2 = scene.windows[tile]
        centre = random.uniform([x1, y1], [x2, y2])
        low, high = scene.windows[:, :2].min(axis=0), scene.windows[:, 2:].max(axis=0) - edge
        # Stay inside what was annotated where that is large enough; otherwise centre it.
        corner = np.where(high >= low, np.clip(centre - edge / 2, low, high), (low + high) / 2)
        x, y = np.round(corner).astype(int).tolist()
        return x, y, edge, edge

    def _pixels(self, scene: Scene, window: tuple[int, int, int, int]) -> Pixels:
        x, y, width, height = window
        canvas = np.empty((height, width, 3), np.uint8)
        canvas[:] = np.round(MEAN)
        here = np.array([[x, y, x + width, y + height]])
        overlapping = np.flatnonzero(intersection(here, scene.windows)[0] > 0)
        inside = clip(scene.windows - np.array([x, y, x, y]), width, height).astype(int)
        for number in overlapping:
            row, (left, top, right, bottom) = scene.rows[number], inside[number]
            offset_x, offset_y = x - row["tile_x"], y - row["tile_y"]
            pixels = self._reader.read(row)
            part = pixels[top + offset_y : bottom + offset_y, left + offset_x : right + offset_x]
            canvas[top:bottom, left:right] = part
        return canvas

    def unreadable(self) -> UnusableImage | None:
        """The first photo's error when a photo of these scenes cannot be read; None when all can."""
        for scene in self.scenes:
            try:
                self._reader.read(scene.rows[0])
            except UnusableImage as error:
                return error
        return None


def _resized(crop: Crop, size: int) -> Crop:
    import cv2

    height, width = crop.pixels.shape[:2]
    pixels = cv2.resize(crop.pixels, (size, size), interpolation=cv2.INTER_LINEAR)
    boxes = crop.boxes * np.array([size / width, size / height] * 2)
    return Crop(np.asarray(pixels, np.uint8), boxes, crop.classes, crop.ignore)


def _turned(crop: Crop, random: np.random.Generator, rotate: bool) -> Crop:
    pixels, boxes, size = crop.pixels, crop.boxes, crop.pixels.shape[0]
    mirror, down, swap = random.random(3) < 0.5
    if mirror:
        pixels = pixels[:, ::-1]
        boxes = np.stack([size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], axis=1)
    if rotate and down:
        pixels = pixels[::-1]
        boxes = np.stack([boxes[:, 0], size - boxes[:, 3], boxes[:, 2], size - boxes[:, 1]], axis=1)
    if rotate and swap:
        pixels = pixels.transpose(1, 0, 2)
        boxes = boxes[:, [1, 0, 3, 2]]
    return Crop(np.ascontiguousarray(pixels), boxes, crop.classes, crop.ignore)


def recoloured(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Brightness, contrast and each channel's gain, within the range of cameras and daylight."""
    gain = random.uniform(0.75, 1.3) * random.uniform(0.93, 1.07, 3)
    contrast, values = random.uniform(0.8, 1.25), pixels.astype(np.float32)
    middle = values.mean(axis=(0, 1))
    changed = ((values - middle) * contrast + middle) * gain.astype(np.float32)
    return np.clip(np.round(changed), 0, 255).astype(np.uint8)
