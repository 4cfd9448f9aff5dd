"""A project's finished labels as a dataset for other tools: one folder, split into train, val and test.

A module knows one format. Each has `picture(split, task) -> path inside the folder`, `write(split, tasks,
classes, folder) -> losses` for each split, and `finish(splits, classes, folder)`. What a format cannot hold is in
the list of losses, item by item; everything else is read back as it was by `pipeline/formats`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import decisions, schema
from pipeline.config import Project, ProjectConfig
from pipeline.dataset import TRUSTED
from pipeline.errors import ConfigError, StoreError, suggest
from pipeline.exchange import tasks
from pipeline.exchange.dataset import coco, csv_boxes, cvat, image_folder, label_studio, labelme, voc, yolo
from pipeline.exchange.pictures import Pictures
from pipeline.exchange.sync import LOSSES, Sent
from pipeline.exchange.tasks import Loss, Task
from pipeline.images import Reader
from pipeline.store import Store


class Format(Protocol):
    """One format of a dataset."""

    def picture(self, split: str, task: Task) -> str:
        """Where the task's picture lies inside the folder."""

    def write(self, split: str, tasks: Iterator[Task], classes: Sequence[str], folder: Path) -> list[Loss]:
        """Write the labels of a split."""

    def finish(self, splits: Sequence[str], classes: Sequence[str], folder: Path) -> None:
        """Write what is about all splits."""


FORMATS: dict[str, Format] = {
    "coco": coco,
    "yolo": yolo,
    "voc": voc,
    "labelme": labelme,
    "cvat": cvat,
    "label-studio": label_studio,
    "csv": csv_boxes,
    "imagefolder": image_folder,
}


def export(project: Project, name: str, folder: Path) -> Sent:
    """Write every image that people have labelled, and every other one with trusted labels, to `folder`.

    Doing it again changes nothing that has not changed, and removes nothing.

    Args:
        name: one of FORMATS.

    Raises:
        ConfigError: unknown format. StoreError: no tables yet, or the folder cannot be written.
    """
    if name not in FORMATS:
        raise ConfigError(f"there is no dataset format {name!r}", suggest(name, FORMATS))
    if folder.is_file():
        raise StoreError(f"{folder} is a file", "name a folder")
    images, labels, split_of = gather(Store(project.store_uri), project.config)
    pictures = Pictures(images, Reader(project.config.source.max_pixels))
    losses, count = write(name, images, labels, split_of, project.ontology.names, folder, pictures)
    tasks.write_lines(folder / LOSSES, [json.dumps([asdict(x) for x in losses], indent=1, ensure_ascii=False)])
    return Sent(count, labels.num_rows, losses)


def write(
    name: str,
    images: pa.Table,
    labels: pa.Table,
    split_of: dict[str, str],
    classes: Sequence[str],
    folder: Path,
    pictures: Pictures | None = None,
) -> tuple[list[Loss], int]:
    """Write rows of `images` with their `labels`; what was lost, and the number of images.

    Args:
        split_of: image_id -> train, val or test. pictures: also written, if given.
    """
    module = FORMATS[name]
    losses: list[Loss] = []
    count = 0
    splits = [s for s in ("train", "val", "test") if s in set(split_of.values())]
    for split in splits:
        rows = schema.where_in(images, "image_id", [image for image, at in split_of.items() if at == split])
        count += rows.num_rows
        given = _wanted(tasks.tasks(rows, labels), set(classes), losses)
        if pictures is not None:
            given = _illustrated(given, module, split, folder, pictures, losses)
        losses += module.write(split, given, classes, folder)
    module.finish(splits, classes, folder)
    return losses, count


def _wanted(given: Iterator[Task], classes: set[str], losses: list[Loss]) -> Iterator[Task]:
    """Tasks without labels of classes that the project does not have any more."""
    for task in given:
        for row in task.labels:
            if row["class_name"] not in classes:
                what = f"{row['class_name']!r} is no class of the project: left out"
                losses.append(Loss(f"label {row['annotation_id']}", what))
        yield replace(task, labels=tuple(row for row in task.labels if row["class_name"] in classes))


def _illustrated(
    given: Iterator[Task], module: Format, split: str, folder: Path, pictures: Pictures, losses: list[Loss]
) -> Iterator[Task]:
    """Tasks whose pictures have been written."""
    for task in given:
        losses += pictures.write(replace(task, name=module.picture(split, task)), folder)
        yield task


def gather(store: Store, config: ProjectConfig) -> tuple[pa.Table, pa.Table, dict[str, str]]:
    """Rows of `images`, of `labels`, and the split of each image, once an image.

    Images that people have labelled have people's labels, as corrected since; the others the trusted ones, and train.
    """
    gold = store.read_or_empty("annotated_images").column("image_id").unique()
    found = schema.where_in(decisions.current(store, config), "status", TRUSTED)
    people = pc.equal(found.column("producer"), "human")
    labels = found.filter(pc.or_(people, pc.invert(pc.is_in(found.column("image_id"), gold))))
    splits = store.read_or_empty("splits")
    drawn = dict(zip(splits.column("image_id").to_pylist(), splits.column("split").to_pylist(), strict=True))
    wanted = sorted({*gold.to_pylist(), *labels.column("image_id").to_pylist()})
    images = schema.where_in(store.read("images"), "image_id", wanted)
    # An image that arrived twice is there once, in its first batch, with the labels of that one.
    images = images.sort_by([("image_id", "ascending"), ("batch", "ascending")])
    seen: Counter[str] = Counter()
    first = []
    for image in images.column("image_id").to_pylist():
        first.append(not seen[image])
        seen[image] += 1
    images = images.filter(pa.array(first, pa.bool_()))
    labels = labels.filter(pc.is_in(tasks.pairs(labels), tasks.pairs(images)))
    split = {i: drawn.get(i, "train") for i in images.column("image_id").to_pylist()}
    return images, labels, {i: "train" if s == "unlabelled" else s for i, s in split.items()}
