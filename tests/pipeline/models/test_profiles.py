from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import LabellerConfig, ProjectConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.models import profiles
from pipeline.models.roles import Detector, Encoder, Segmenter
from tests.pipeline.photo_rows import tiny_config


def labeller(**more: object) -> LabellerConfig:
    return LabellerConfig.model_validate({"name": "boxes", "kind": "profile"} | more)


def config(profile: str, **more: object) -> ProjectConfig:
    return tiny_config(profile=profile, **more)


@pytest.mark.parametrize("profile", ["tiny", pytest.param("compact", marks=pytest.mark.weights)])
def test_a_profile_fills_every_role_under_the_announced_names(profile: str, tmp_path: Path) -> None:
    given = pickle.loads(pickle.dumps(config(profile)))  # noqa: S301 - as it reaches a worker
    encoder, segmenter = profiles.build_encoder(given), profiles.build_segmenter(given)
    detector = profiles.build_labeller(labeller(), tmp_path, given)
    assert isinstance(encoder, Encoder) and isinstance(segmenter, Segmenter) and isinstance(detector, Detector)
    assert encoder.producer == profiles.encoder_producer(given)
    assert segmenter.producer == profiles.segmenter_producer(given)
    assert detector.producer == profiles.labeller_producer(labeller(), tmp_path, given)
    assert detector.producer.startswith("boxes@")


@pytest.mark.parametrize("build", [profiles.build_encoder, profiles.build_segmenter])
def test_missing_weights_name_the_command(build: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVP_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match="cvp models pull compact"):
        build(config("compact"))  # type: ignore[operator]


def test_names_need_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVP_WEIGHTS", str(tmp_path))
    given = config("compact")
    assert profiles.encoder_producer(given) and profiles.segmenter_producer(given)
    assert profiles.labeller_producer(labeller(), tmp_path, given)


def test_options_and_models_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no option 'flor'"):
        profiles.build_labeller(labeller(options={"flor": 0.1}), tmp_path, config("compact"))
    with pytest.raises(ConfigError, match="`models`"):
        profiles.build_encoder(config("compact", models={"encoder": "x"}))


def test_the_detector_s_threshold_is_part_of_its_name(tmp_path: Path) -> None:
    names = {
        profiles.labeller_producer(labeller(options=o), tmp_path, c)
        for o in ({}, {"floor": 0.2})
        for c in (config("compact"), config("compact", labelling={"nms_iou": 0.4}))
    }
    assert len(names) == 4


def test_tiny_models_keep_their_roles_promises() -> None:
    given = tiny_config()
    image = np.zeros((1, 9, 3), np.uint8)
    encoder = profiles.build_encoder(given)
    vectors = np.concatenate([encoder.encode_images([image]), encoder.encode_texts(["x"])])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    (found,) = profiles.build_segmenter(given).segment([image], [np.array([[0, 0, 4, 1]])])
    assert len(found.masks) == len(found.area) == len(found.scores) == 1
    assert profiles.build_labeller(labeller(), ".", given).detect([image])[0].classes == ()
