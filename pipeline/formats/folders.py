"""Class folders: an image's class is the name of the nearest folder above it that is a class."""

from __future__ import annotations

from pathlib import PurePosixPath

from pipeline.formats.records import Folder, Labels, Record


def applies(folder: Folder) -> bool:
    """Whether any image of the batch lies in the folder of a class."""
    return any(folder.ontology.resolve(part) for name in folder.sizes for part in PurePosixPath(name).parent.parts)


def read(folder: Folder, labels: Labels) -> None:
    """Add the class of each image to `labels`. Images in no class's folder are unlabelled.

    Raises:
        DataError: a folder's name is so like a class that it must be a slip.
    """
    for name in sorted(folder.sizes):
        above = PurePosixPath(name).parent.parts
        for part in reversed(above):
            if found := folder.ontology.resolve(part):
                labels.annotate(name, f"{'/'.join(above)}/")
                labels.records.append(Record(name, found, None))
                break
        else:
            for part in above:
                folder.resolve(part, labels, f"folder {part!r}")
