from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from pipeline.chain import Chain, photos
from pipeline.cli import app
from pipeline.config import load_project
from pipeline.errors import ConfigError
from pipeline.images import Pixels
from pipeline.images import decode as real
from pipeline.models import zero_shot
from pipeline.models.roles import Detections, Segments
from pipeline.models.tiny import TinyDetector, TinyEncoder, TinySegmenter
from pipeline.ontology import Class, Ontology

ONTOLOGY = Ontology((Class("a", ("a thing",)), Class("b", ("b thing",))))
TEMPLATES = ["a photo of {}"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    paths = [folder / f"p{i:02d}.png" for i in range(11)]
    for i, path in enumerate(paths):
        Image.fromarray(random.integers(0, 255, (60 + i, 80, 3)).astype(np.uint8)).save(path)
    paths[4].write_bytes(paths[4].read_bytes()[:400])
    return paths


def chain(detector: Any = None, segmenter: Any = None, encoder: Any = None, **more: Any) -> Chain:
    models = (detector or TinyDetector(ONTOLOGY), segmenter or TinySegmenter(), encoder or TinyEncoder())
    return Chain(*models, ONTOLOGY, TEMPLATES, **{"batch": 3} | more)


def test_it_sees_what_each_model_sees_alone_and_decodes_once(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import chain as module

    decoded: list[int] = []
    monkeypatch.setattr(module, "decode", lambda data, most: decoded.append(len(data)) or real(data, most))
    seen = list(chain().run(files))
    assert [s.path for s in seen] == files and len(decoded) == len(files)
    detector, segmenter, encoder = TinyDetector(ONTOLOGY), TinySegmenter(), TinyEncoder()
    for path, said in zip(files, seen, strict=True):
        if path == files[4]:
            continue
        pixels = np.asarray(Image.open(path))
        (found,) = detector.detect([pixels])
        order = np.argsort(-found.scores, kind="stable")
        np.testing.assert_array_equal(said.detections.boxes, found.boxes[order])
        (drawn,) = segmenter.segment([pixels], [said.detections.boxes])
        assert said.segments.masks == drawn.masks and (said.height, said.width) == pixels.shape[:2]
        vector = encoder.encode_images([pixels])
        np.testing.assert_allclose(said.vector, vector[0], atol=1e-6)
        np.testing.assert_allclose(said.tags, zero_shot.probabilities(vector, ONTOLOGY, TEMPLATES, encoder)[0])


class Failing:
    """A model that does not survive images of one height."""

    def __init__(self, model: Any, height: int) -> None:
        self._model, self._height = model, height
        self.producer = model.producer

    def detect(self, images: Sequence[Pixels]) -> list[Detections]:
        self._look(images)
        return self._model.detect(images)  # type: ignore[no-any-return]

    def segment(self, images: Sequence[Pixels], boxes: Sequence[np.ndarray]) -> list[Segments]:
        self._look(images)
        return self._model.segment(images, boxes)  # type: ignore[no-any-return]

    def _look(self, images: Sequence[Pixels]) -> None:
        if any(image.shape[0] == self._height for image in images):
            raise RuntimeError(f"cannot take {self._height} rows")


def test_one_failing_photo_costs_itself_only(files: list[Path]) -> None:
    plain = list(chain().run(files))
    some = list(chain(Failing(TinyDetector(ONTOLOGY), 61), Failing(TinySegmenter(), 62)).run(files))
    for i, (said, before) in enumerate(zip(some, plain, strict=True)):
        if i == 4:
            assert said.error.startswith("UnusableImage") and not said.width and said.vector is None
        elif i == 1:
            assert "cannot take 61 rows" in said.error and not said.detections.classes and said.tags is not None
        elif i == 2:
            assert "cannot take 62 rows" in said.error and said.detections.classes == before.detections.classes
        else:
            assert said.error == "" and said.segments.masks == before.segments.masks


def test_a_mistake_in_a_model_is_not_taken_for_a_bad_photo(files: list[Path]) -> None:
    class Bug(Failing):
        def _look(self, images: Sequence[Pixels]) -> None:
            raise AttributeError("no such name")

    with pytest.raises(AttributeError):
        list(chain(Bug(TinyDetector(ONTOLOGY), 0)).run(files[:2]))


def test_results_stream_and_stages_overlap(files: list[Path]) -> None:
    inside: set[str] = set()
    together: list[set[str]] = []
    lock = threading.Lock()

    class Slow(Failing):
        def _look(self, images: Sequence[Pixels]) -> None:
            with lock:
                inside.add(type(self._model).__name__)
                together.append(set(inside))
            time.sleep(0.02)
            with lock:
                inside.discard(type(self._model).__name__)

    asked: list[Path] = []

    def given() -> Any:
        for path in files * 8:
            asked.append(path)
            yield path

    running = chain(Slow(TinyDetector(ONTOLOGY), 0), Slow(TinySegmenter(), 0)).run(given())
    next(running)
    assert len(asked) < 40  # the first result is there long before the last photo is opened
    assert len(list(running)) == len(files) * 8 - 1
    assert any(len(names) == 2 for names in together)


def test_boxes_below_the_floor_get_no_mask(files: list[Path]) -> None:
    (said,) = chain(mask_floor=0.999).run(files[:1])
    assert len(said.segments.masks) == (said.detections.scores >= 0.999).sum() < len(said.detections.scores)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    text = {"name": "p", "profile": "tiny", "source": {"uri": "x"}, "classes": {"a": {}, "b": {}}}
    text["labelling"] = {"labellers": [{"name": "tiny", "kind": "profile"}], "mask_floor": 0.0}
    (tmp_path / "project.yaml").write_text(yaml.safe_dump(text))
    return tmp_path


def test_cvp_look_writes_a_line_a_photo(project: Path, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "seen.jsonl"
    result = CliRunner().invoke(app.app, ["look", str(project), str(files[0].parent), "--vectors", "-o", str(out)])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["file"] for line in lines] == [str(p) for p in files] and "error" in lines[4]
    assert lines[0]["objects"] and set(lines[0]["tags"]) == {"a", "b"} and len(lines[0]["vector"]) > 1
    assert all(o["mask"] is not None for o in lines[0]["objects"])


def test_what_is_not_there_is_named(project: Path) -> None:
    with pytest.raises(ConfigError, match="no labeller 'b'"):
        Chain.of(load_project(project), "b")
    with pytest.raises(ConfigError, match="there is no"):
        photos([project / "gone.jpg"])
