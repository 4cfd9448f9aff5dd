from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError, DataError, PipelineError
from pipeline.models.roles import Detections, Detector
from pipeline.models.user import UserLabeller, producer
from pipeline.ontology import Class, Ontology

ONTOLOGY = Ontology((Class("cat", ("a cat",)), Class("dog", ("a dog", "puppy"))))
IMAGES = [np.zeros((10, 20, 3), np.uint8)] * 2
GOOD = """
import numpy as np
from pipeline.models.roles import Detections

class Finder:
    def __init__(self, ontology, size=4):
        self.name, self.size = ontology.names[0], size
    def detect(self, images):
        return [Detections(np.array([[0, 0, self.size, self.size]]), np.array([0.5]), (self.name,)) for _ in images]
"""


def labeller(folder: Path, text: str, path: str = "mine.py:Finder", **options: Any) -> UserLabeller:
    (folder / "mine.py").write_text(text, encoding="utf-8")
    return UserLabeller("mine", path, folder, ONTOLOGY, options)


def returning(folder: Path, expression: str) -> UserLabeller:
    head, _, _ = GOOD.partition("        return")
    return labeller(folder, f"{head}        return {expression}\n")


def test_a_user_s_class_fills_the_role(tmp_path: Path) -> None:
    mine = labeller(tmp_path, GOOD, size=7)
    assert isinstance(mine, Detector)
    found = mine.detect(IMAGES)
    assert [f.boxes.tolist() for f in found] == [[[0, 0, 7, 7]]] * 2
    assert found[0].boxes.dtype == found[0].scores.dtype == np.float32
    assert [(t.class_name, t.prompt, t.matched) for t in mine.vocabulary()] == [
        ("cat", "a cat", "a cat"),
        ("dog", "a dog", "a dog"),
        ("dog", "puppy", "puppy"),
    ]


def test_the_producer_follows_text_options_version_and_prompts(tmp_path: Path) -> None:
    first = labeller(tmp_path, GOOD).producer
    assert first.startswith("mine@1#") and first == labeller(tmp_path, GOOD).producer
    assert first == producer("mine", "mine.py:Finder", tmp_path, ONTOLOGY, {})
    other_prompts = UserLabeller("mine", "mine.py:Finder", tmp_path, Ontology((Class("cat", ("tom",)),)), {}).producer
    edited = labeller(tmp_path, GOOD + "# edited\n")
    versioned = labeller(tmp_path, GOOD.replace("class Finder:", "class Finder:\n    version = '7'")).producer
    changed = {other_prompts, edited.producer, versioned, labeller(tmp_path, GOOD, size=5).producer}
    assert len(changed) == 4 and first not in changed
    assert versioned.startswith("mine@7#")


def test_an_edited_file_is_imported_anew(tmp_path: Path) -> None:
    labeller(tmp_path, GOOD)
    again = labeller(tmp_path, GOOD.replace("0.5", "0.25"))
    assert again.detect(IMAGES)[0].scores.tolist() == [0.25]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("mine.py", "FILE.py:CLASS"),
        ("mine.py:", "FILE.py:CLASS"),
        ("mime.py:Finder", "did you mean 'mine.py'"),
        ("mine.py:Findre", "did you mean 'Finder'"),
        ("mine.py:np", "no class"),
    ],
)
def test_a_wrong_path_says_what_was_meant(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        labeller(tmp_path, GOOD, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Finder:\n  def __init__(self, ontology): pass\n", "no detect"),
        ("class Finder:\n  def detect(self, images): return []\n", "cannot be made"),
        ("def broken(:\n", "SyntaxError"),
        ("raise RuntimeError('at import')\n", "RuntimeError: at import"),
        ("import no_such_package\n", "no_such_package"),
    ],
)
def test_a_class_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        labeller(tmp_path, text)


def test_an_unknown_option_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sice"):
        labeller(tmp_path, GOOD, sice=3)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("[]", "0 results for 2 images"),
        ("None", "TypeError"),
        ("[None, None]", "NoneType, not Detections"),
        ("1 / 0", "ZeroDivisionError"),
        ("[Detections(np.zeros((2, 4)), np.zeros(1), ('cat',))] * 2", "2 boxes, 1 scores and 1 classes"),
        ("[Detections(np.zeros((1, 4)), np.array([1.5]), ('cat',))] * 2", "outside"),
        ("[Detections(np.zeros((1, 4)), np.array([np.nan]), ('cat',))] * 2", "outside"),
        ("[Detections(np.full((1, 4), np.inf), np.array([0.5]), ('cat',))] * 2", "not finite"),
        ("[Detections(np.zeros((1, 3)), np.array([0.5]), ('cat',))] * 2", "not numbers"),
        ("[Detections(np.zeros((1, 4)), np.array([0.5]), ('cta',))] * 2", "did you mean 'cat'"),
    ],
)
def test_wrong_results_are_refused_by_name(tmp_path: Path, expression: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        returning(tmp_path, expression).detect(IMAGES)
    assert "'mine'" in str(raised.value) and isinstance(raised.value, PipelineError)


def test_no_boxes_are_fine(tmp_path: Path) -> None:
    assert returning(tmp_path, "[Detections()] * 2").detect(IMAGES)[1].classes == ()
    assert isinstance(Detections().boxes, np.ndarray)


def test_a_class_may_have_its_own_vocabulary(tmp_path: Path) -> None:
    own = "    def vocabulary(self):\n        return [Term('cat', 'a cat', None, 0.0)]\n"
    (term,) = labeller(tmp_path, GOOD.replace("Detections\n", "Detections, Term\n", 1) + own).vocabulary()
    assert term.matched is None
