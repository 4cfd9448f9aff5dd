"""Where files come from: a folder or an S3 prefix. One sub-folder is one batch."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from pipeline import s3
from pipeline.config import samples_root
from pipeline.errors import DataError
from pipeline.images import UnusableImage, original
from pipeline.presence import is_sidecar, require_folder

DEFAULT_BATCH = "default"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a batch.

    Attributes:
        name: path inside the batch, '/' separated, always valid Unicode.
        uri: what `pipeline.images.Reader` opens: a path, a file:// URI with escapes, or s3://bucket/key.
        bytes: its size.
        stamp: changes when the content does: modification time, or the object's ETag.
        refused: why it must not be read; empty for all others.
    """

    name: str
    uri: str
    bytes: int
    stamp: str
    refused: str = ""

    @property
    def is_sidecar(self) -> bool:
        return is_sidecar(self.name)


class Source(Protocol):
    """A place with batches of files."""

    uri: str

    def batches(self) -> list[str]:
        """Names of the sub-folders, sorted. Files right under the root form the batch `default`, unless
        all of them are sidecars such as a README."""

    def files(self, batch: str) -> list[SourceFile]:
        """All files of a batch, at any depth, sorted by name. Hidden ones are left out."""

    def read(self, file: SourceFile) -> bytes:
        """A file's bytes.

        Raises:
            UnusableImage: it is gone, may not be read, or is refused.
            ComputeError: nothing of the folder can be read on this machine.
            StoreUnavailable: S3 does not answer, or lets us read nothing there.
        """

    def require_here(self) -> None:
        """Files that are unreadable only because their folder is not on this machine must not be rejected for it.

        Raises:
            ComputeError: the folder is not here, or nothing is mounted there.
        """

    def fingerprint(self, batch: str) -> str:
        """Changes when a file of the batch is added, removed or changed; reads no contents."""

    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of every batch, in one pass over the source."""


def open_source(uri: str, s3_client: Any = None) -> Source:
    """The source at `uri`, a folder or s3://bucket/prefix.

    Args:
        s3_client: a boto3 S3 client; that of `pipeline.s3` when left out.

    Raises:
        DataError: another scheme.
    """
    if uri.startswith("s3://"):
        return S3Source(uri, s3_client)
    if "://" in uri and not uri.startswith("file://"):
        raise DataError(f"cannot read images from {uri}", "use a folder, s3://bucket/prefix or samples://NAME")
    return FolderSource(uri.removeprefix("file://"))


def _visible(name: str) -> bool:
    return not any(part.startswith(".") for part in name.split("/"))


def _identity(files: Iterable[SourceFile]) -> str:
    """Of files in order of their names, one at a time: a million of them are never held."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{json.dumps(file.name)} {file.bytes} {file.stamp}\n".encode())
    return digest.hexdigest()[:16]


# -- folders --------------------------------------------------------------------------------------


class FolderSource:
    """A local folder.

    Links are followed as long as they stay inside it; one that leaves it is listed as a refused file.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._root = Path(uri).expanduser().resolve()

    def batches(self) -> list[str]:
        return sorted(self._by_batch())

    def files(self, batch: str) -> list[SourceFile]:
        found = self._by_batch()
        if batch not in found and batch != DEFAULT_BATCH:
            raise DataError(f"no batch {batch!r} in {self.uri}", "it was renamed or removed; look at the folder")
        return self._files(found.get(batch, []))

    def read(self, file: SourceFile) -> bytes:
        if file.refused:
            raise UnusableImage("refused", f"{file.name}: {file.refused}", "put the file itself into the source folder")
        return original(file.uri, str(self._root))

    def require_here(self) -> None:
        require_folder(self._root)

    def fingerprint(self, batch: str) -> str:
        return _identity(self.files(batch))

    def fingerprints(self) -> dict[str, str]:
        return {batch: _identity(self._files(entries)) for batch, entries in sorted(self._by_batch().items())}

    def _by_batch(self) -> dict[str, list[os.DirEntry[str]]]:
        """What the root holds of each batch: folders shown under one name, and loose files unless all are sidecars."""
        found: dict[str, list[os.DirEntry[str]]] = {}
        loose: list[os.DirEntry[str]] = []
        for entry in self._entries(self._root):
            mine = found.setdefault(_printable(entry.name), []) if self._is_folder(entry) else loose
            mine.append(entry)
        if DEFAULT_BATCH in found or not all(is_sidecar(e.name) for e in loose):
            found.setdefault(DEFAULT_BATCH, []).extend(loose)
        return found

    def _files(self, entries: Sequence[os.DirEntry[str]]) -> list[SourceFile]:
        found: list[SourceFile] = []
        for entry in entries:
            found += self._walk(entry, "", ()) if self._is_folder(entry) else [self._file(entry, "")]
        return sorted(found, key=lambda file: file.name)

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return [entry for entry in entries if not entry.name.startswith(".")]
        except FileNotFoundError as error:
            raise DataError(f"there is no folder {folder}", self._remedy()) from error
        except OSError as error:
            raise DataError(f"cannot list {folder}: {error}", "check that it is a folder and may be read") from error

    def _remedy(self) -> str:
        if self._root.parent == samples_root():
            return f"run: cvp samples pull {self._root.name}"
        return "correct source.uri in project.yaml, or make the folder"

    def _walk(self, folder: os.DirEntry[str], prefix: str, above: tuple[str, ...]) -> Iterator[SourceFile]:
        real = os.path.realpath(folder.path)
        for entry in self._entries(Path(folder.path)):
            if not self._is_folder(entry):
                yield self._file(entry, prefix)
            elif os.path.realpath(entry.path) not in (*above, real, str(self._root)):  # a link to where we are
                yield from self._walk(entry, f"{prefix}{_printable(entry.name)}/", (*above, real))

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        return entry.is_dir() and not self._leaves(entry)

    def _leaves(self, entry: os.DirEntry[str]) -> bool:
        return entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(self._root)

    def _file(self, entry: os.DirEntry[str], prefix: str) -> SourceFile:
        outside = self._leaves(entry)
        try:
            info = entry.stat(follow_symlinks=not outside)
        except OSError:  # a link to nothing: `read` says so
            info = entry.stat(follow_symlinks=False)
        refused = "it links to a place outside the source" if outside else ""
        if not refused and not (stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode)):
            refused = "it is a pipe, socket or device"  # reading one could wait forever
        name, uri = f"{prefix}{_printable(entry.name)}", _uri(entry.path)
        return SourceFile(name, uri, info.st_size, str(info.st_mtime_ns), refused)


def _printable(name: str) -> str:
    """`name` as valid Unicode: bytes that are not UTF-8 are shown as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _uri(path: str) -> str:
    """A path as it is, or as an escaped file:// URI where tables could not hold it."""
    return path if _printable(path) == path else f"file://{quote(os.fsencode(path))}"


# -- S3 -------------------------------------------------------------------------------------------


class S3Source:
    """A prefix of an S3 bucket.

    Args:
        uri: s3://bucket/prefix.
        client: a boto3 S3 client.
    """

    def __init__(self, uri: str, client: Any = None) -> None:
        self.uri = uri
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not self._bucket:
            raise DataError(f"{uri} names no bucket", "write s3://bucket/prefix")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._given = client

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.uri,)  # elsewhere it makes a client of its own

    def batches(self) -> list[str]:
        names, loose = set(), False
        for page in self._pages(self._prefix, "/"):
            folders = (p["Prefix"][len(self._prefix) :].strip("/") for p in page.get("CommonPrefixes", []))
            names |= {name for name in folders if name and _visible(name)}
            loose = loose or any(not f.is_sidecar for f in self._listed(page, self._prefix))
        return sorted(names | ({DEFAULT_BATCH} if loose else set()))

    def files(self, batch: str) -> list[SourceFile]:
        prefix = f"{self._prefix}{batch}/"
        found = [file for page in self._pages(prefix) for file in self._listed(page, prefix)]
        if batch == DEFAULT_BATCH:
            found += [f for page in self._pages(self._prefix, "/") for f in self._listed(page, self._prefix)]
        elif not found:
            raise DataError(f"no batch {batch!r} in {self.uri}", "it was renamed or removed; look at the bucket")
        return sorted(found, key=lambda file: file.name)

    def read(self, file: SourceFile) -> bytes:
        return original(file.uri, f"s3://{self._bucket}/{self._prefix}".rstrip("/"), self._given)

    def require_here(self) -> None:
        """S3 is everywhere."""

    def fingerprint(self, batch: str) -> str:
        return _identity(self.files(batch))

    def fingerprints(self) -> dict[str, str]:
        """One flat listing, a thousand objects a request; a listing a batch would ask once more for each."""
        files = (f for page in self._pages(self._prefix) for f in self._listed(page, self._prefix))
        found: dict[str, str] = {}
        ours: list[SourceFile] = []  # of the batch `default`: in its folder, or loose under the root
        loose = False
        # Keys come in order, so the files of a batch follow each other.
        for batch, group in groupby(files, key=lambda f: f.name.partition("/")[0] if "/" in f.name else None):
            if batch is None:
                mine = list(group)
                ours, loose = ours + mine, loose or not all(f.is_sidecar for f in mine)
                continue
            inside = (replace(f, name=f.name.partition("/")[2]) for f in group)
            if batch == DEFAULT_BATCH:
                ours, loose = ours + list(inside), True
            else:
                found[batch] = _identity(inside)
        if loose:
            found[DEFAULT_BATCH] = _identity(sorted(ours, key=lambda f: f.name))
        return dict(sorted(found.items()))

    def _pages(self, prefix: str, delimiter: str = "") -> Iterator[dict[str, Any]]:
        return s3.pages(self._bucket, prefix, delimiter, self._given)

    def _listed(self, page: dict[str, Any], prefix: str) -> Iterator[SourceFile]:
        for item in page.get("Contents", []):
            name = item["Key"][len(prefix) :]
            # A key that ends in '/' is how consoles mark an empty folder.
            if name and not name.endswith("/") and _visible(name):
                yield SourceFile(name, f"s3://{self._bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))
