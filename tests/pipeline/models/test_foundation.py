from __future__ import annotations

import types
from pathlib import Path

import pytest
import yaml

from pipeline import weights
from pipeline.config import LabellerConfig, ProjectConfig, load_project, parse_config
from pipeline.errors import ConfigError, WeightsError
from pipeline.models import foundation, profiles
from tests.pipeline.photo_rows import tiny_config


def config(**models: object) -> ProjectConfig:
    return tiny_config(profile="foundation", models=models)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[foundation.Chosen, dict[str, object]]]:
    """A family that fills every role and remembers how it was asked."""
    asked: list[tuple[foundation.Chosen, dict[str, object]]] = []
    family = types.SimpleNamespace(
        build=lambda chosen, **how: asked.append((chosen, how)) or "model",
        producer=lambda chosen, **how: asked.append((chosen, how)) or f"{chosen.role}@1",
    )
    monkeypatch.setattr(foundation, "_family", lambda role: family)
    return asked


def test_roles_have_defaults_and_project_yaml_chooses_others() -> None:
    assert foundation.choose(config(), "encoder").architecture == "ViT-B-32/laion2b_s34b_b79k"
    assert foundation.choose(config(), "detector").checkpoint.name == "grounding_dino_swin_t"
    chosen = foundation.choose(config(segmenter="sam_vit_h"), "segmenter")
    assert (chosen.checkpoint.name, chosen.architecture) == ("sam_vit_h", "vit_h")
    own = {"checkpoint": "s3://b/net.pth", "architecture": "vit_l", "options": {"precision": "bf16"}}
    chosen = foundation.choose(config(segmenter=own), "segmenter")
    assert (chosen.checkpoint.uri, chosen.architecture) == ("s3://b/net.pth", "vit_l")
    assert chosen.options == {"precision": "bf16"} and chosen.checkpoint.uri in str(chosen.identity)
    with pytest.raises(WeightsError, match="sam_vit_k"):
        foundation.choose(config(segmenter="sam_vit_k"), "segmenter")


def test_a_project_s_checkpoints_are_what_its_roles_read() -> None:
    names = [c.name for c in foundation.checkpoints(config())]
    assert sorted(names) == sorted(c.name for c in weights.profile_checkpoints("foundation"))
    assert "sam_vit_l" in [c.name for c in profiles.checkpoints(config(segmenter="sam_vit_l"))]
    assert profiles.checkpoints(tiny_config()) == []


def test_a_missing_checkpoint_says_which_command_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVP_WEIGHTS", str(tmp_path))
    for models, command in (
        ({}, "cvp models pull foundation"),
        ({"encoder": "clip_vit_b_32_openai"}, "cvp models pull clip_vit_b_32_openai"),
        ({"encoder": "https://x.example/a.pth"}, "cvp models pull https://x.example/a.pth"),
    ):
        with pytest.raises(WeightsError) as caught:
            _ = foundation.choose(config(**models), "encoder").path
        assert caught.value.remedy == f"run: {command}"


def test_a_family_gets_what_the_role_needs(made: list[tuple[foundation.Chosen, dict[str, object]]]) -> None:
    given = config(segmenter="sam_vit_l")
    boxes = LabellerConfig.model_validate({"name": "boxes", "kind": "profile", "options": {"floor": 0.1}})
    assert profiles.encoder_producer(given) == "encoder@1" and profiles.build_segmenter(given) == "model"
    assert profiles.labeller_producer(boxes, ".", given) == "detector@1"
    assert profiles.build_labeller(boxes, ".", given) == "model"
    assert [chosen.role for chosen, _ in made] == ["encoder", "segmenter", "detector", "detector"]
    assert made[1][0].checkpoint.name == "sam_vit_l" and made[1][1] == {}
    assert made[3][1] == {"ontology": given.ontology, "nms_iou": 0.5, "name": "boxes", "options": {"floor": 0.1}}


def test_an_unknown_option_names_the_nearest() -> None:
    chosen = foundation.choose(config(encoder={"checkpoint": "clip_vit_b_32", "options": {"precison": 1}}), "encoder")
    with pytest.raises(ConfigError, match="'precison'") as caught:
        chosen.check_options({"precision", "batch_size"})
    assert "'precision'" in caught.value.remedy


def test_a_relative_path_is_taken_from_project_yaml(tmp_path: Path) -> None:
    text = {"name": "p", "profile": "foundation", "classes": {"cat": {}}, "source": {"uri": "."}}
    text["models"] = {"encoder": {"checkpoint": "nets/mine.safetensors", "architecture": "ViT-B-32"}, "detector": None}
    (tmp_path / "project.yaml").write_text(yaml.safe_dump(text))
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "mine.safetensors").write_bytes(b"x")
    chosen = foundation.choose(load_project(tmp_path).config, "encoder")
    assert chosen.path == tmp_path / "nets" / "mine.safetensors"
    before = chosen.identity
    chosen.path.write_bytes(b"other")
    assert chosen.identity != before


def test_a_role_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"models\.encodr") as caught:
        parse_config({"name": "p", "classes": {"c": {}}, "source": {"uri": "."}, "models": {"encodr": "x"}})
    assert "'encoder'" in caught.value.remedy
