"""Downloads that go on where they stopped: HTTP with Range, and S3.

What has come lies in `NAME.part`, and in `NAME.part.tag` the server's tag of the content (ETag), without
which a part cannot be told from the beginning of another file and is begun again.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline import s3
from pipeline.errors import WeightsError

Progress = Callable[[int, int], None]  # bytes that are here, bytes in all (0: not known)

ATTEMPTS = 6
PAUSE = 1.0  # seconds before the second attempt; doubled each time
_LONGEST_PAUSE = 60.0
_TIMEOUT = (15, 60)  # seconds to connect, and between two pieces
_PIECE = 1 << 17  # what a break can cost
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TRUE = ("1", "ON", "YES", "TRUE")


class Interrupted(Exception):
    """A transfer that may succeed when it is tried again, `after` so many seconds if the server says so."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


@dataclass(frozen=True)
class Stream:
    """What a server sends: from byte `start` on, of `total` bytes (0: not said), tagged `tag`."""

    start: int
    total: int
    tag: str
    pieces: Iterator[bytes]


Open = Callable[[int, str], AbstractContextManager[Stream]]  # (bytes that are here, their tag) -> the rest


def fetch(uri: str, part: Path, progress: Progress | None = None) -> None:
    """Bring the whole of `uri` (https, http on loopback, s3, hf-hub or file) into `part`.

    Raises:
        WeightsError: it is not there, may not be read, or broke off in every attempt; what has come is kept
            in `part` for the next call.
    """
    tell = progress or (lambda done, total: None)
    if uri.startswith("file://"):
        _copy(local_file(uri), part, tell)
    elif uri.startswith("s3://"):
        _persist(_s3(uri), uri, part, tell)
    elif uri.startswith("hf-hub:"):
        _from_hub(uri, part, tell)
    else:
        _persist(_http(_checked(uri), {}), _shown(uri), part, tell)


def local_file(uri: str) -> Path:
    """The path of a file:// URI.

    Raises:
        WeightsError: nothing is there.
    """
    from pipeline.presence import local_path

    path = local_path(uri)
    if not path.is_file():
        raise WeightsError(f"there is no file {path}", "correct the path, or mount what holds it")
    return path


def tag_of(part: Path) -> Path:
    """Where the server's tag of what lies in `part` is kept."""
    return part.with_name(f"{part.name}.tag")


def discard(part: Path) -> None:
    """Delete a part and its tag."""
    part.unlink(missing_ok=True)
    tag_of(part).unlink(missing_ok=True)


def _persist(open_: Open, name: str, part: Path, tell: Progress) -> None:
    for attempt in range(ATTEMPTS):
        try:
            _once(open_, part, tell)
            return
        except Interrupted as error:
            last = error
        if attempt + 1 < ATTEMPTS:
            pause = last.after if last.after is not None else PAUSE * 2**attempt
            time.sleep(min(pause, _LONGEST_PAUSE))
    raise WeightsError(
        f"{name} broke off {ATTEMPTS} times: {last}", "run the same command again: it goes on where it stopped"
    )


def _once(open_: Open, part: Path, tell: Progress) -> None:
    tag = tag_of(part).read_text(encoding="utf-8") if part.is_file() and tag_of(part).is_file() else ""
    have = part.stat().st_size if tag else 0
    with open_(have, tag) as stream:
        if stream.start not in (0, have):
            discard(part)
            raise Interrupted(f"the server went on at byte {stream.start}, not {have}", after=0.0)
        _check_room(part, stream)
        if not stream.start:
            discard(part)
            tag_of(part).write_text(stream.tag, encoding="utf-8")
        done = stream.start
        tell(done, stream.total)
        with part.open("ab" if stream.start else "wb") as sink:
            for piece in stream.pieces:
                sink.write(piece)
                done += len(piece)
                tell(done, stream.total)
    if stream.total and done != stream.total:
        raise Interrupted(f"{done:,} of {stream.total:,} bytes came")


def _check_room(part: Path, stream: Stream) -> None:
    missing, free = stream.total - stream.start, shutil.disk_usage(part.parent).free
    if missing > free:
        raise WeightsError(
            f"{missing / 1e9:.1f} GB are to come, but {part.parent} has {free / 1e9:.1f} GB free",
            "free some space, or set CVP_WEIGHTS to a folder on a larger disk",
        )


# -- HTTP -----------------------------------------------------------------------------------------


def _http(url: str, headers: dict[str, str]) -> Open:
    import requests

    @contextmanager
    def open_(have: int, tag: str) -> Iterator[Stream]:
        asked = {**headers, "Accept-Encoding": "identity"}
        if have:
            asked |= {"Range": f"bytes={have}-", "If-Range": tag}
        try:
            # Redirects to another host lose the token: requests takes Authorization off there.
            with requests.get(url, headers=asked, stream=True, timeout=_TIMEOUT) as answer:
                yield _stream(answer, have)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise Interrupted(_shown_error(error)) from error
        except requests.RequestException as error:
            raise WeightsError(f"cannot fetch {_shown(url)}: {_shown_error(error)}", "correct the URI") from error

    return open_


def _stream(answer: Any, have: int) -> Stream:
    if answer.status_code == 416 and have:  # nothing is left to send, or the file has become another one
        total = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
        if total and int(total[1]) == have:
            return Stream(have, have, "", iter(()))
        return Stream(-1, 0, "", iter(()))
    if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
        raise Interrupted(f"the server said {answer.status_code} {answer.reason}", _retry_after(answer.headers))
    if answer.status_code not in (200, 206):
        raise WeightsError(f"{_shown(answer.url)}: {answer.status_code} {answer.reason}", _remedy(answer.status_code))
    length = int(answer.headers.get("Content-Length", 0))
    tag = answer.headers.get("ETag", "")
    tag = answer.headers.get("Last-Modified", "") if tag.startswith("W/") or not tag else tag
    pieces = answer.iter_content(_PIECE)
    if answer.status_code == 200:
        return Stream(0, length, tag, pieces)
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if not span:
        return Stream(-1, 0, "", iter(()))
    start = int(span[1])
    return Stream(start, start + length if span[2] == "*" else int(span[2]), tag, pieces)


def _retry_after(headers: Any) -> float | None:
    value = headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "it needs leave: accept its terms on its page, and export HF_TOKEN (or put a login into ~/.netrc)"
    if status in (404, 410):
        return "it has moved: correct the URI in project.yaml, or bring the file with: cvp models pull --from DIR"
    return "open the address in a browser; or bring the file with: cvp models pull --from DIR"


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise WeightsError(f"{_shown(url)} would travel unprotected", "use https://")
    return url


def _shown(url: str) -> str:
    return url.partition("?")[0]


def _shown_error(error: Exception) -> str:
    """The kind of failure; requests' own words hold the whole address, and an address can hold a signature."""
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return type(reason).__name__ if isinstance(reason, Exception) else type(error).__name__


# -- the Hugging Face hub -------------------------------------------------------------------------


def hub_place(uri: str) -> tuple[str, str, str]:
    """(repository, revision, path) of `hf-hub:ORG/NAME[@REVISION]/path`.

    Raises:
        WeightsError: it names no file of a repository.
    """
    found = re.fullmatch(r"hf-hub:([\w.-]+/[\w.-]+)(?:@([\w.-]+))?/(.+)", uri)
    if not found:
        raise WeightsError(f"{uri} names no file of a repository", "write hf-hub:ORG/NAME/file or …NAME@REVISION/file")
    return found[1], found[2] or "main", found[3]


def is_offline() -> bool:
    """Whether the hub may not be asked: HF_HUB_OFFLINE."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE


def _from_hub(uri: str, part: Path, tell: Progress) -> None:
    """From the hub's own cache on this machine, else from the hub."""
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers

    repository, revision, path = hub_place(uri)
    cached = try_to_load_from_cache(repository, path, revision=revision)
    if isinstance(cached, str):
        _copy(Path(cached), part, tell)
        return
    if is_offline():
        raise WeightsError(
            f"HF_HUB_OFFLINE is set, and the hub's cache on this machine does not hold {uri}",
            "unset it, or bring the file with: cvp models pull --from DIR",
        )
    url = hf_hub_url(repository, path, revision=revision, endpoint=os.environ.get("HF_ENDPOINT"))
    _persist(_http(url, build_hf_headers()), uri, part, tell)


# -- S3 and folders -------------------------------------------------------------------------------


def _s3(uri: str) -> Open:
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    client = s3.client()

    @contextmanager
    def open_(have: int, tag: str) -> Iterator[Stream]:
        try:
            head = client.head_object(Bucket=bucket, Key=key)
            total, current = int(head["ContentLength"]), head["ETag"]
            start = have if current == tag else 0
            if start == total and total:
                yield Stream(start, total, current, iter(()))
                return
            answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-", IfMatch=current)
            yield Stream(start, total, current, answer["Body"].iter_chunks(_PIECE))
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if status == 412 or status >= 500:  # replaced meanwhile, or S3's own trouble
                raise Interrupted(str(error)) from error
            raise WeightsError(f"cannot read {uri}: {error}", "check its name, region, endpoint and keys") from error
        except BotoCoreError as error:
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError"):
                raise WeightsError(f"cannot read {uri}: {error}", "check its name, and AWS_… variables") from error
            raise Interrupted(str(error)) from error

    return open_


def _copy(source: Path, part: Path, tell: Progress) -> None:
    discard(part)
    total, done = source.stat().st_size, 0
    try:
        with source.open("rb") as reader, part.open("wb") as sink:
            while piece := reader.read(_PIECE):
                sink.write(piece)
                done += len(piece)
                tell(done, total)
    except OSError as error:
        raise WeightsError(
            f"cannot copy {source} to {part}: {error}", "check that it may be read, and the disk"
        ) from error
