"""Whose fault an unreadable photo is: its own, or that of a machine without its folder, or of S3.

A photo that is left out is a label that is silently lost. So before one is, its neighbours are tried: where none of
them can be read either, a disk is not mounted, a bucket is gone or keys are wrong, and the work must stop.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote_to_bytes

from pipeline import s3
from pipeline.errors import ComputeError, StoreUnavailable

# Files that describe images rather than being some: never decoded, never rejected.
SIDECARS = frozenset({".xml", ".json", ".jsonl", ".csv", ".txt", ".yaml", ".yml", ".names", ".md"})
_NEIGHBOURS = 16  # are tried, before all are taken for unreadable
_LISTED = 200
_DEEPEST = 8  # folders below one another; links may go in circles


def is_sidecar(name: str) -> bool:
    """Whether a file of this name describes images rather than being one."""
    return PurePosixPath(name).suffix.lower() in SIDECARS


def local_path(uri: str) -> Path:
    """The path that a table's `uri` stands for: a plain path, or a file:// URI whose escapes are bytes."""
    return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://")))) if uri.startswith("file://") else Path(uri)


def batch_folder(uri: str, file_name: str) -> str:
    """URI of the folder that a batch's file was collected from; `file_name` is its path inside it."""
    return uri.rsplit("/", file_name.count("/") + 1)[0]


def require_folder(folder: Path) -> None:
    """Raises:
    ComputeError: the folder is not on this machine, or nothing is mounted there.
    """
    try:
        here = any(folder.iterdir())  # where nothing is mounted, an empty folder may lie
    except OSError:
        here = False
    if not here:
        raise ComputeError(
            f"the photos' folder {folder} is not on {socket.gethostname()}",
            "mount it at the same place on every node (docs/cluster.md), or set `compute: local` in project.yaml",
        )


def require_neighbours(uri: str, folder: str, s3_client: Any = None) -> None:
    """Make sure that a photo which cannot be read is alone in that: something else in its folder can be.

    Args:
        uri: the photo's. folder: the URI of a folder above it, as of its batch.
        s3_client: a boto3 S3 client; that of `pipeline.s3` when left out.

    Raises:
        ComputeError: this machine has no such folder, or can read nothing in it.
        StoreUnavailable: S3 does not answer, has no such bucket, or lets us read nothing there.
    """
    if folder.startswith("s3://"):
        _require_objects(uri, folder, s3_client)
        return
    path = local_path(folder)
    require_folder(path)
    reasons = _none_readable(f for f in _files(path) if f != str(local_path(uri)))
    if reasons:
        raise ComputeError(
            f"no photo in {path} can be read on {socket.gethostname()}: {reasons[0]}",
            "check there that it is mounted and may be read by the user who runs this (docs/cluster.md)",
        )


def _files(folder: Path | str, depth: int = _DEEPEST) -> Iterator[str]:
    """Photos below a folder, as they come: of a hundred thousand only a few are wanted."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                if not is_sidecar(entry.name):
                    yield entry.path
            elif depth:
                yield from _files(entry.path, depth - 1)


def _none_readable(paths: Iterable[str]) -> list[OSError]:
    """Why none of some photos can be read; empty where one can."""
    reasons = []
    try:
        for path in islice(paths, _NEIGHBOURS):
            try:
                with open(path, "rb") as file:
                    file.read(1)
                return []
            except OSError as error:
                reasons.append(error)
    except OSError as error:  # a folder that cannot be listed
        reasons.append(error)
    return reasons or [FileNotFoundError("there is no other")]


def _require_objects(uri: str, folder: str, client: Any) -> None:
    bucket, _, prefix = f"{folder}/".removeprefix("s3://").partition("/")
    page = next(s3.pages(bucket, prefix, given=client, MaxKeys=_LISTED))
    keys = (item["Key"] for item in page.get("Contents", []))
    others = [key for key in keys if f"s3://{bucket}/{key}" != uri and not key.endswith("/") and not is_sidecar(key)]
    why: object = "there is no other"
    for key in others[:_NEIGHBOURS]:
        try:
            s3.get(bucket, key, client, Range="bytes=0-0")
            return
        except (FileNotFoundError, PermissionError) as error:
            why = error
        except OSError as error:
            raise s3.unavailable("read", f"{bucket}/{key}", error) from error
    raise StoreUnavailable(
        f"S3 lets {socket.gethostname()} read no photo under {folder}: {why}",
        "check the keys or the role of that machine: `cvp doctor` there",
    )
