"""Is everything there that a run needs? Each finding says what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pipeline import s3, weights
from pipeline.config import ProjectConfig, find_projects, home, load_project, store_root
from pipeline.errors import PipelineError
from pipeline.files import Files, Superseded, open_files
from pipeline.models import profiles

State = Literal["ok", "warning", "broken"]
DISTRIBUTION = "cv-pipeline"

_SHOWN = ("torch", "torchvision", "dagster", "ray", "lancedb", "duckdb", "pyarrow", "onnxruntime")
_DISK_NEEDED, _DISK_WANTED = 1e9, 5e9  # bytes
_PATIENCE = 2.0  # seconds to wait for a cluster to answer


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `remedy` is empty when nothing needs to be done."""

    subject: str
    state: State
    found: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Look at everything, cheap things first; nothing is changed or fetched."""
    yield _python()
    yield from _packages()
    yield _accelerator()
    yield _disk()
    yield _store()
    yield _dagster_home()
    configs = []
    for folder in find_projects():
        finding, config = _project(folder)
        yield finding
        configs += [config] if config else []
    yield from _weights(configs)
    yield from _samples(configs)
    yield _ray(configs)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Finding("python", "ok", version)
    return Finding("python", "broken", version, "make the environment again with Python 3.11 or 3.12: make test")


def _packages() -> Iterator[Finding]:
    """Installed versions against those that the project asks for."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(r) for r in importlib.metadata.requires(DISTRIBUTION) or []]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "broken", f"{DISTRIBUTION} is not installed", "run: pip install -e .")
        return
    versions: dict[str, str] = {}
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            versions[requirement.name] = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(requirement.name, "broken", "not installed", "run: pip install -e .")
            continue
        if not requirement.specifier.contains(versions[requirement.name], prereleases=True):
            found = f"{versions[requirement.name]}, but {requirement.specifier} is needed"
            yield Finding(requirement.name, "broken", found, "run: pip install -e .")
    shown = ", ".join(f"{n} {versions[n].split('+')[0]}" for n in _SHOWN if n in versions)
    yield Finding("packages", "ok", f"{len(versions)} of {len(wanted)} are there: {shown}")


def _accelerator() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", "broken", f"cannot be imported: {error}", "run: pip install --force-reinstall torch")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("accelerator", "ok", names)
    return Finding("accelerator", "ok", f"none; {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads")


def _disk() -> Finding:
    folder = home()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free at {home()}"
    if free < _DISK_WANTED:
        state: State = "broken" if free < _DISK_NEEDED else "warning"
        return Finding("disk", state, found, "free some space, or set CVP_HOME to a larger disk")
    return Finding("disk", "ok", found)


def _store() -> Finding:
    """Write, read back and delete a small file at the store's root, and try to write it where it is already."""
    uri = store_root()
    probe = b"cvp doctor"
    try:
        files, root = open_files(uri)
        path = f"{root}/.doctor-{uuid.uuid4().hex}"
        with s3.hurried():
            files.put(path, probe, over=None)
            try:
                with files.open(path) as source:
                    intact = source.read() == probe
                heeded = _refuses(files, path)
            finally:
                files.delete([path])
    except (OSError, PipelineError) as error:
        return Finding("store", "broken", f"{uri}: {error}", "check CVP_STORE, its permissions and its credentials")
    if not intact:
        return Finding("store", "broken", f"{uri} gives back other bytes than were written", "check that disk")
    if not heeded:
        what = f"{uri} writes over what is there although it is told not to (If-None-Match)"
        return Finding("store", "warning", what, "let no two runs compact costs at once, or take a newer server")
    return Finding("store", "ok", f"{uri} can be written")


def _refuses(files: Files, path: str) -> bool:
    try:
        files.put(path, b"another run", over=None)
    except Superseded:
        return True
    return False


def _dagster_home() -> Finding:
    given = os.environ.get("DAGSTER_HOME")
    path = Path(given or home() / "dagster").expanduser()
    if given and not path.is_absolute():
        return Finding("DAGSTER_HOME", "broken", f"{given} is not an absolute path", "export an absolute path")
    if not path.is_dir():
        return Finding("DAGSTER_HOME", "ok", f"{path} will be made by the first run")
    if not os.access(path, os.W_OK):
        return Finding("DAGSTER_HOME", "broken", f"{path} cannot be written", "change its permissions, or set another")
    return Finding("DAGSTER_HOME", "ok", f"{path} can be written")


def _project(folder: Path) -> tuple[Finding, ProjectConfig | None]:
    try:
        project = load_project(folder)
    except PipelineError as error:
        return Finding(f"project {folder.name}", "broken", error.what, error.remedy), None
    config = project.config
    found = f"{config.task}, profile {config.profile}, compute {config.compute}"
    return Finding(f"project {folder.name}", "ok", found), config


def _weights(configs: list[ProjectConfig]) -> Iterator[Finding]:
    """The checkpoints of every project, and those of the profile that everybody begins with."""
    needed: dict[str, dict[str, weights.Checkpoint]] = {}
    for config in configs:
        try:
            items = profiles.checkpoints(config)
        except PipelineError as error:
            yield Finding(f"weights, {config.name}", "broken", error.what, error.remedy)
            continue
        needed.setdefault(config.profile, {}).update({item.name: item for item in items})
    unused = {item.name: item for item in weights.profile_checkpoints("compact")}
    for profile, wanted in sorted(({"compact": unused} | needed).items()):
        yield _present(profile, list(wanted.values()), "broken" if profile in needed else "warning")


def _present(profile: str, items: list[weights.Checkpoint], lacking: State) -> Finding:
    missing = [i for i in items if not weights.location(i).is_file()]
    damaged = [i for i in items if i not in missing and not weights.is_intact(i)]
    bad = damaged or missing
    if bad:
        state = "damaged" if damaged else f"{len(missing)} of {len(items)} missing"
        remedy = "; ".join(dict.fromkeys(weights.pull_command(i) for i in bad))
        return Finding(f"weights, {profile}", lacking, f"{state}: {', '.join(i.name for i in bad)}", f"run: {remedy}")
    return Finding(f"weights, {profile}", "ok", f"all {len(items)} there, with the right hashes")


def _samples(configs: list[ProjectConfig]) -> Iterator[Finding]:
    from pipeline import samples

    for config in configs:
        name = config.source.uri.removeprefix("samples://")
        if name == config.source.uri or name not in samples.SAMPLES:
            continue
        if samples.is_complete(name):
            yield Finding(f"sample {name}", "ok", f"complete in {samples.sample_path(name)}")
        else:
            yield Finding(f"sample {name}", "warning", "not here, or not whole", f"run: cvp samples pull {name}")


def _ray(configs: list[ProjectConfig]) -> Finding:
    """Whether the clusters that projects name answer; Ray is not started for this."""
    modes = sorted({c.compute for c in configs if c.compute not in ("inline", "local")})
    if not modes:
        return Finding("ray", "ok", "not needed: every project computes inline or in local processes")
    addresses = {m for m in modes if m.startswith("ray://")}
    if "auto" in modes and os.environ.get("RAY_ADDRESS"):
        addresses.add(os.environ["RAY_ADDRESS"])
    silent = sorted(a for a in addresses if not _answers(a))
    if silent:
        remedy = "start the cluster with `ray start --head`, or set compute: inline in project.yaml"
        return Finding("ray", "broken", f"nothing answers at {', '.join(silent)}", remedy)
    if addresses:
        return Finding("ray", "ok", f"{', '.join(sorted(addresses))} answers")
    return Finding("ray", "ok", "will be started on this machine when it is needed")


def _answers(address: str) -> bool:
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        port = parts.port or 10001
        with socket.create_connection((parts.hostname or "", port), timeout=_PATIENCE):
            return True
    except (OSError, ValueError):
        return False
