"""People's annotations in the formats that tools export. One module reads one format."""

from __future__ import annotations

from types import ModuleType

from pipeline.errors import DataError
from pipeline.formats import coco, csv_boxes, cvat, folders, image_folder, label_studio, labelme, voc, yolo
from pipeline.formats.records import Folder, Labels, Record
from pipeline.sources import SourceFile

__all__ = ["FILE_FORMATS", "Folder", "Labels", "Record", "read_labels"]

FILE_FORMATS: dict[str, ModuleType] = {
    "coco": coco,
    "voc": voc,
    "yolo": yolo,
    "csv": csv_boxes,
    "labelme": labelme,
    "cvat": cvat,
    "label-studio": label_studio,
    "imagefolder": image_folder,
}


def read_labels(folder: Folder, kind: str = "auto") -> Labels:
    """What people labelled in a batch.

    Args:
        kind: a format; `folders` for class folders; `none`; or `auto`, which looks for files of
            each format, then for class folders. A batch without annotations is unlabelled.

    Raises:
        DataError: malformed files, two formats in one batch under `auto`, or annotations of which
            nothing fits the batch's images or the project's classes.
    """
    labels = Labels()
    if kind == "none":
        return labels
    if kind == "folders":
        folders.read(folder, labels)
        return labels
    found = _found(folder, FILE_FORMATS if kind == "auto" else {kind: FILE_FORMATS[kind]})
    if len(found) > 1:
        both = " and ".join(f"{files[0].name} ({name})" for name, files in found.items())
        raise DataError(f"annotations in several formats: {both}", "choose one with source.annotations in project.yaml")
    for name, files in found.items():
        FILE_FORMATS[name].read(folder, files, labels)
        _check_fit(labels, files)
    if not found and kind == "auto" and folders.applies(folder):
        folders.read(folder, labels)
    return labels


def _found(folder: Folder, formats: dict[str, ModuleType]) -> dict[str, list[SourceFile]]:
    found = {name: module.find(folder) for name, module in formats.items()}
    return {name: files for name, files in found.items() if files}


def _check_fit(labels: Labels, files: list[SourceFile]) -> None:
    """Annotations of which nothing can be used are a mistake that would look like empty images."""
    if labels.unmatched and not labels.annotated:
        raise DataError(
            f"{files[0].name} fits no image of the batch ({sum(labels.unmatched.values())} that it names are missing)",
            "keep photos and their annotations in one batch",
        )
    if labels.unasked and not labels.records:
        names = ", ".join(repr(name) for name in sorted(labels.unasked)[:5])
        raise DataError(
            f"{files[0].name} has no annotation of a class of the project, only of {names}",
            "add them to classes (or to a class's aliases) in project.yaml, or to source.ignored_classes",
        )
