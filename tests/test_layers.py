"""Who may import whom, read from the syntax tree."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEAVES = {
    "ahead",
    "errors",
    "logs",
    "schema",
    "ids",
    "boxes",
    "masks",
    "ontology",
    "config",
    "torch_compat",
    "intervals",
    "calibration",
}
BASE = LEAVES | {
    "store",
    "vectors",
    "compute",
    "looked",
    "weights",
    "images",
    "presence",
    "sources",
    "matching",
    "curves",
    "tide",
    "predicates",
    "journal",
    "lines",
    "pulse",
    "files",
    "s3",
}
# What stages share besides tables: models are roles, not stages; plots draw for any of them.
SHARED = BASE | {"models", "formats", "plots", "train"}
# These tie stages together for people and may use any of them.
TOP = {"cli", "report", "warehouse", "samples", "scaffold", "doctor", "exchange", "reviewing"}


def _modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _room(path: Path) -> str:
    return path.relative_to(ROOT / "pipeline").with_suffix("").parts[0]


def _rooms_used(path: Path) -> set[str]:
    used = {name.split(".")[1] for name in _imports(path) if name.startswith("pipeline.")}
    known = {_room(p) for p in _modules("pipeline")}
    return (used & known) - {_room(path)}


@pytest.mark.parametrize("path", _modules("pipeline"), ids=lambda p: str(p.relative_to(ROOT)))
def test_pipeline_never_imports_dagster_or_assets(path: Path) -> None:
    roots = {name.split(".")[0] for name in _imports(path)}
    assert not {r for r in roots if r.startswith("dagster")} and "assets" not in roots


@pytest.mark.parametrize("path", _modules("pipeline"), ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_keep_their_layer(path: Path) -> None:
    room = _room(path)
    if room in TOP or room == "__init__":
        return
    allowed = LEAVES if room in LEAVES else BASE if room in BASE else SHARED
    assert _rooms_used(path) <= allowed, f"{room} may not import {_rooms_used(path) - allowed}"


@pytest.mark.parametrize("path", _modules("assets"), ids=lambda p: str(p.relative_to(ROOT)))
def test_assets_keep_annotations_at_run_time(path: Path) -> None:
    assert "__future__.annotations" not in _imports(path), "it breaks dg.Config"
