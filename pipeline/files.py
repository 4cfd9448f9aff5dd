"""Files of the store, in a folder or an S3 bucket: each appears whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.fs as fs

from pipeline import s3
from pipeline.errors import PipelineError, StoreError, StoreUnavailable

_TRIES = 5
_PART = 16 << 20  # bytes; larger objects go up in parts of this size
_AT_ONCE = 4
_END = 64 << 10
_BLOCK = 4096
_DELETED_AT_ONCE = 1000  # as S3 allows


class Superseded(StoreError):
    """Somebody else has written that file since it was read; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file. `stamp` changes whenever it is written again."""

    path: str
    bytes: int
    stamp: str


class Files(Protocol):
    """Paths have no scheme: absolute ones of a disk, or BUCKET/KEY."""

    fs: fs.FileSystem

    def put(self, path: str, data: Any, over: str | None = "any") -> None:
        """Write a file whole.

        Args:
            data: bytes or an Arrow buffer.
            over: 'any' replaces what is there; a stamp, only the file of that stamp; None, nothing at all.

        Raises:
            Superseded: what is there is not what `over` says.
            StoreUnavailable: no space, no permission, no such place, no answer.
        """

    def open(self, path: str) -> pa.NativeFile:
        """A file as it is now: one that is replaced while it is read stays the same to its reader.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read.
            StoreUnavailable: no answer, or it may not be read.
        """

    def open_end(self, path: str) -> pa.NativeFile:
        """As `open`, but maybe only the last _END bytes, which hold a Parquet file's footer."""

    def stamp(self, path: str) -> str | None:
        """Stamp of a file; None where there is none."""

    def entries(self, folder: str) -> Iterator[Entry]:
        """Every file below a folder, at any depth."""

    def folders(self, folder: str) -> list[str]:
        """Names of the folders right below a folder, sorted."""

    def delete(self, paths: Iterable[str]) -> None:
        """Remove files; those that are gone already are no error."""

    def clear(self, folder: str) -> None:
        """Remove a folder and all below it."""


def open_files(uri: str) -> tuple[Files, str]:
    """The files of a folder or an s3:// URI, and its path among them.

    Raises:
        StoreError: another scheme.
    """
    if uri.startswith("s3://"):
        return S3Files(), uri.removeprefix("s3://").rstrip("/")
    if "://" in uri and not uri.startswith("file://"):
        raise StoreError(f"cannot open {uri}", "use a folder or s3://bucket/prefix")
    return LocalFiles(), str(Path(uri.removeprefix("file://")).expanduser().resolve())


# -- a disk ---------------------------------------------------------------------------------------


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A place beside `path` to write a file to: it becomes `path` when the block ends well, else it is gone.

    Raises:
        StoreUnavailable: the disk is full, or the folder may not be written.
    """
    target = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield target
        target.replace(path)
    except PipelineError:
        raise
    except Exception as error:
        reason = _of_the_disk(error, target)
        if reason is None:
            raise
        raise _unwritable(path, reason) from error
    finally:
        with suppress(OSError):
            target.unlink(missing_ok=True)


def _of_the_disk(error: Exception, target: Path) -> Exception | None:
    """The disk's own error, which libraries put into words of theirs or lose: then the disk is asked again."""
    if isinstance(error, OSError) or "(os error " in str(error):  # as Rust has it
        return error
    try:
        with target.open("ab") as file:
            file.write(bytes(_BLOCK))
            file.flush()
            os.fsync(file.fileno())
    except OSError as own:
        return own
    return None


@contextmanager
def writing(place: Path | str) -> Iterator[None]:
    """While something is written to a folder or file.

    Raises:
        StoreUnavailable: the disk is full, or the place may not be written.
    """
    try:
        yield
    except OSError as error:
        # Networks' errors are OSErrors, too, but not the system's; and a reader that has gone is no fault of the disk.
        if error.errno is None or isinstance(error, BrokenPipeError):
            raise
        raise _unwritable(place, error) from error


def _unwritable(path: Path | str, error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"cannot write {path}: {error}", "check free space and permissions there")


def _unreadable(path: str, error: OSError) -> StoreUnavailable:
    return StoreUnavailable(f"cannot read {path}: {error}", "check that disk, its mount, and permissions there")


class LocalFiles:
    """A file is written beside its place, made durable, and renamed into it."""

    def __init__(self) -> None:
        self.fs = fs.LocalFileSystem()

    def put(self, path: str, data: Any, over: str | None = "any") -> None:
        for attempt in range(_TRIES):
            try:
                with _written(path, data) as made:
                    if over == "any":
                        made.replace(path)
                        return
                    with _locked(Path(path).parent):
                        if self.stamp(path) != over:
                            raise Superseded(f"{path} was written by another run meanwhile", "run again")
                        made.replace(path)
                        return
            except FileNotFoundError as error:  # another run swept the folder away between two of these lines
                if attempt == _TRIES - 1:
                    raise StoreError(f"cannot write {path}: {error}", "let one run finish, then run again") from error
            except OSError as error:
                raise _unwritable(path, error) from error

    def open(self, path: str) -> pa.NativeFile:
        try:
            return self.fs.open_input_file(path)
        except PermissionError as error:
            raise _unreadable(path, error) from error

    def open_end(self, path: str) -> pa.NativeFile:
        return self.open(path)

    def stamp(self, path: str) -> str | None:
        try:
            return _stamp(Path(path).stat())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(path, error) from error

    def entries(self, folder: str) -> Iterator[Entry]:
        try:
            with os.scandir(folder) as found:
                for entry in found:
                    if entry.is_dir(follow_symlinks=False):
                        yield from self.entries(entry.path)
                    elif not entry.name.endswith(".tmp"):
                        with suppress(FileNotFoundError):
                            info = entry.stat()
                            yield Entry(entry.path, info.st_size, _stamp(info))
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unreadable(folder, error) from error

    def folders(self, folder: str) -> list[str]:
        try:
            with os.scandir(folder) as found:
                return sorted(entry.name for entry in found if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _unreadable(folder, error) from error

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            with writing(Path(path).parent):
                Path(path).unlink(missing_ok=True)

    def clear(self, folder: str) -> None:
        for _ in range(_TRIES):
            with suppress(OSError):  # something was put there meanwhile
                shutil.rmtree(folder)
            if not Path(folder).exists():
                return


def _stamp(info: os.stat_result) -> str:
    return f"{info.st_mtime_ns}-{info.st_size}-{info.st_ino}"


@contextmanager
def _written(path: str, data: Any) -> Iterator[Path]:
    """`data` in a file beside `path`, on the disk; it is gone afterwards unless it was renamed."""
    target = Path(f"{path}.{uuid.uuid4().hex}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield target
    finally:
        target.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time compares and swaps in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# -- S3 -------------------------------------------------------------------------------------------


class S3Files:
    """An object appears when its PUT, or the completion of its parts, succeeds."""

    def __init__(self) -> None:
        self.fs = s3.arrow()

    def put(self, path: str, data: Any, over: str | None = "any") -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, key = _split(path)
        condition = {} if over == "any" else {"IfNoneMatch": "*"} if over is None else {"IfMatch": over}
        view = memoryview(data)
        hashes = [
            hashlib.md5(view[at : at + _PART], usedforsecurity=False) for at in range(0, max(len(view), 1), _PART)
        ]
        try:
            s3.patiently(lambda: _put(bucket, key, view, condition))
        except ClientError as error:
            if condition and _code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                if self.stamp(path) == _etag(hashes):
                    return  # ours: it was written, but the answer was lost, and it was tried again
                raise Superseded(f"s3://{path} was written by another run meanwhile", "run again") from error
            raise s3.unavailable("write", path, error) from error
        except BotoCoreError as error:
            raise s3.unavailable("write", path, error) from error

    def open(self, path: str) -> pa.NativeFile:
        return _got(path)

    def open_end(self, path: str) -> pa.NativeFile:
        return _got(path, Range=f"bytes=-{_END}")

    def stamp(self, path: str) -> str | None:
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, key = _split(path)
        try:
            return str(s3.patiently(lambda: s3.client().head_object(Bucket=bucket, Key=key))["ETag"])
        except ClientError as error:
            if _code(error) in ("404", "NoSuchKey", "NotFound"):
                return None
            raise s3.unavailable("read", path, error) from error
        except BotoCoreError as error:
            raise s3.unavailable("read", path, error) from error

    def entries(self, folder: str) -> Iterator[Entry]:
        bucket, prefix = _split(f"{folder}/")
        for page in s3.pages(bucket, prefix):
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):
                    yield Entry(f"{bucket}/{item['Key']}", item["Size"], item["ETag"])

    def folders(self, folder: str) -> list[str]:
        bucket, prefix = _split(f"{folder}/")
        found = (p["Prefix"] for page in s3.pages(bucket, prefix, "/") for p in page.get("CommonPrefixes", []))
        return sorted(name[len(prefix) :].rstrip("/") for name in found)

    def delete(self, paths: Iterable[str]) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        split = [_split(path) for path in paths]
        for at in range(0, len(split), _DELETED_AT_ONCE):
            some = split[at : at + _DELETED_AT_ONCE]
            wanted = {"Objects": [{"Key": key} for _, key in some], "Quiet": True}
            remove = partial(s3.client().delete_objects, Bucket=some[0][0], Delete=wanted)
            try:
                answer = s3.patiently(remove)
            except (BotoCoreError, ClientError) as error:
                raise s3.unavailable("delete", "/".join(some[0]), error) from error
            for refused in answer.get("Errors", []):
                raise s3.unavailable("delete", f"{some[0][0]}/{refused['Key']}", refused.get("Message", "refused"))

    def clear(self, folder: str) -> None:
        self.delete([entry.path for entry in self.entries(folder)])


def _got(path: str, **part: str) -> pa.NativeFile:
    try:
        return pa.BufferReader(s3.get(*_split(path), **part))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise s3.unavailable("read", path, error) from error


def _put(bucket: str, key: str, view: memoryview, condition: dict[str, str]) -> None:
    client = s3.client()
    if len(view) <= _PART:
        client.put_object(Bucket=bucket, Key=key, Body=bytes(view), **condition)
        return
    where = {"Bucket": bucket, "Key": key}
    upload = client.create_multipart_upload(**where)["UploadId"]

    def send(number: int) -> dict[str, Any]:
        body = bytes(view[(number - 1) * _PART : number * _PART])
        sent = client.upload_part(**where, UploadId=upload, PartNumber=number, Body=body)
        return {"PartNumber": number, "ETag": sent["ETag"]}

    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            parts = list(pool.map(send, range(1, -(-len(view) // _PART) + 1)))
        client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts}, **condition)
    except BaseException:
        with suppress(Exception):  # what remains of an upload is invisible, and buckets can expire it
            client.abort_multipart_upload(**where, UploadId=upload)
        raise


def _etag(hashes: list[Any]) -> str:
    """The ETag that S3 gives to an object of these parts (where it does not encrypt with keys of a KMS)."""
    if len(hashes) == 1:
        return f'"{hashes[0].hexdigest()}"'
    whole = hashlib.md5(b"".join(part.digest() for part in hashes), usedforsecurity=False)
    return f'"{whole.hexdigest()}-{len(hashes)}"'


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.partition("/")
    return bucket, key


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
