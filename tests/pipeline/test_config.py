from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline import config
from pipeline.config import data, section
from pipeline.errors import ConfigError

LEAST: dict[str, Any] = {"name": "birds", "classes": {"bird": {}}, "source": {"uri": "photos"}}


def test_the_least_file_has_every_default() -> None:
    found = config.parse_config(LEAST)
    assert (found.profile, found.compute, found.task) == ("compact", "inline", "detection")
    assert found.ontology.prompts() == [("bird", "bird")]
    assert config.parse_config(found.model_dump()) == found


@pytest.mark.parametrize(
    ("change", "place", "nearest"),
    [
        ({"profle": "tiny"}, "profle", "'profile'"),
        ({"curation": {"splits": {"assgn": []}}}, "curation.splits.assgn", "'assign'"),
        (
            {"curation": {"splits": {"assign": [{"split": "test", "wher": "true"}]}}},
            "curation.splits.assign.0.wher",
            "'where'",
        ),
        ({"curation": {"quality": {"blury": 3}}}, "curation.quality.blury", "'blurry'"),
        ({"classes": {"bird": {"promts": []}}}, "classes.bird.promts", "'prompts'"),
        ({"drift": {"alfa": 0.1}}, "drift.alfa", "'alpha'"),
    ],
)
def test_unknown_keys_name_their_place_and_the_nearest(change: dict[str, Any], place: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse_config(LEAST | change, "birds/project.yaml")
    assert caught.value.what.startswith("birds/project.yaml: ") and f"unknown key {place!r}" in caught.value.what
    assert f"did you mean {nearest}?" in caught.value.remedy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Birds!"}, "name: use lower-case"),
        ({"classes": {}}, "classes: name at least one"),
        ({"compute": "gpu"}, "compute: must be inline"),
        ({"source": {"uri": "x", "tile": {"size": 10, "overlap": 10}}}, "source.tile: overlap must be smaller"),
        ({"source": {"uri": "x", "location": "("}}, "source.location: not a regular expression"),
        ({"curation": {"splits": {"val": 0.6, "test": 0.6}}}, "curation.splits: val and test together"),
        ({"trust": {"target": 1.5}}, "trust.target"),
        ({"compute": "ray://"}, "compute: name the cluster's head"),
        ({"compute": "ray://head:port"}, "compute: name the cluster's head"),
        ({"compute": "ray://head"}, "compute: name the cluster's head"),
        ({"ray": {"gpus": 1.5}}, "ray.gpus: a share below 1, or a whole number"),
        ({"ray": {"cpus": 0}}, "ray.cpus"),
        ({"workers": 2, "ray": {"min_workers": 3}}, "ray.min_workers must not exceed workers"),
        ({"training": {"workers": 2, "min_workers": 3}}, "training: min_workers must not exceed workers"),
    ],
)
def test_wrong_values_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse_config(LEAST | change)
    assert message in caught.value.what


def test_missing_keys_are_named() -> None:
    with pytest.raises(ConfigError, match="source: Field required"):
        config.parse_config({"name": "birds", "classes": {"bird": {}}})


def _sections(model: type[BaseModel]) -> set[type[BaseModel]]:
    found = {model}
    for field in model.model_fields.values():
        inner = section.section_of(field.annotation)
        if inner is not None and inner not in found:
            found |= _sections(inner)
    return found


def test_every_section_refuses_unknown_keys_and_names_its_own() -> None:
    sections = _sections(config.ProjectConfig)
    assert data.SplitRule in sections and data.QualityConfig in sections and data.ClassConfig in sections
    assert all(s.model_config["extra"] == "forbid" and s.model_config["frozen"] for s in sections)


def test_a_section_s_hash_changes_with_any_value() -> None:
    drift = config.DriftConfig()
    assert drift.hash() == config.DriftConfig().hash() != config.DriftConfig(alpha=0.02).hash()


# -- files ----------------------------------------------------------------------------------------


def write(folder: Path, text: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "project.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_project_is_found_by_name_folder_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "birds", "\ufeffname: birds\nclasses: {bird: {}}\nsource: {uri: photos}\n")
    monkeypatch.setenv("CVP_PROJECTS", str(tmp_path))
    monkeypatch.setenv("CVP_STORE", "s3://bucket/root/")
    for name in ("birds", str(path), str(path.parent)):
        project = config.find_project(name)
        assert project.name == "birds" and project.source_uri == str(tmp_path / "birds" / "photos")
        assert project.store_uri == "s3://bucket/root/birds"
    assert config.find_projects() == [tmp_path / "birds"]
    with pytest.raises(ConfigError, match="did you mean 'birds'"):
        config.find_project("brids")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not YAML"),
        ("- a", "holds no keys"),
        ("", "holds no keys"),
        (b"\xff\xfe\x00", "cannot read"),
        ("!!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_files_that_are_no_project_say_why(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load_project(write(tmp_path, text))


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cvp new"):
        config.load_project(tmp_path)


@pytest.mark.parametrize("uri", ["samples://trees", "s3://bucket/photos", "$PHOTOS/here", "/absolute"])
def test_sources_resolve(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVP_SAMPLES", str(tmp_path / "samples"))
    monkeypatch.setenv("PHOTOS", str(tmp_path))
    project = config.Project(config.parse_config(LEAST | {"source": {"uri": uri}}), tmp_path)
    expected = {"samples://trees": f"{tmp_path}/samples/trees", "$PHOTOS/here": f"{tmp_path}/here"}
    assert project.source_uri == expected.get(uri, uri)


@pytest.mark.parametrize("folder", sorted((Path(config.__file__).parents[1] / "projects").glob("*/project.yaml")))
def test_the_shipped_projects_are_valid(folder: Path) -> None:
    assert config.load_project(folder).name == folder.parent.name


def test_epochs_lengthen_the_training_alone(tmp_path: Path) -> None:
    (tmp_path / "project.yaml").write_text("name: a\nclasses: {b: {}}\nsource: {uri: x}\ntraining: {steps: 300}\n")
    project = config.load_project(tmp_path)
    assert project.with_training(2.5).config.training.steps == 750
    assert project.with_training(1).config == project.config
