"""What prompts bring in and what they imagine, against plain loops over the same rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import prompts, schema
from pipeline.config import Project
from pipeline.detect import settled
from pipeline.intervals import wilson
from pipeline.models import proposals
from pipeline.models.dino_questions import Questions
from pipeline.models.profiles import labeller_questions
from pipeline.models.settle import Proposals
from tests.pipeline.conftest import Tables
from tests.pipeline.photo_rows import tiny_config

pytestmark = pytest.mark.weights

CLASSES = {
    "car": {"prompts": ["car", "van"], "negatives": ["toy car"], "box_threshold": 0.5},
    "dog": {},
    "unicorn": {"box_threshold": 0.9},
}
IDS = [f"image{k}" for k in range(12)]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(b"only its hash is needed")
    labelling = {"labellers": [{"name": "dino", "kind": "profile", "options": {"text_threshold": 0.2}}]}
    models = {"detector": str(weights)}
    return Project(tiny_config(profile="foundation", models=models, classes=CLASSES, labelling=labelling), tmp_path)


@pytest.fixture
def asked(project: Project) -> Questions:
    found = labeller_questions(project.config.labelling.labellers[0], project.config)
    assert found is not None
    return found


@pytest.fixture
def given(asked: Questions) -> Proposals:
    """Random boxes; nothing like a unicorn."""
    rng = np.random.default_rng(0)
    n = 200
    prompt = rng.integers(0, len(asked.prompts), n)
    unicorn = [text for _, text in asked.prompts].index("unicorn")
    scores = np.where(prompt == unicorn, rng.uniform(0, 0.4, n), rng.uniform(0, 1, n)).astype(np.float32)
    low = rng.uniform(0, 60, (n, 2))
    boxes = np.hstack([low, low + rng.uniform(5, 35, (n, 2))])
    return Proposals(rng.integers(0, len(IDS), n), prompt, boxes, scores, scores * np.float32(0.9))


@pytest.fixture
def rows(asked: Questions, given: Proposals) -> pa.Table:
    return proposals.rows_of(given, [{"image_id": i, "batch": "b"} for i in IDS], asked)


def test_proposals_come_back_as_they_went(asked: Questions, given: Proposals, rows: pa.Table) -> None:
    assert schema.table("proposals").duplicate_keys(rows) == 0
    order = np.lexsort((-given.scores, given.prompt, given.image))
    shuffled = rows.take(pa.array(np.random.default_rng(1).permutation(rows.num_rows)))
    back = proposals.read_back(shuffled, IDS, asked)
    for name in ("image", "prompt", "scores", "text"):
        assert np.array_equal(getattr(back, name), getattr(given, name)[order])
    np.testing.assert_allclose(back.boxes, given.boxes[order], rtol=1e-6)
    some = proposals.read_back(rows, IDS[3:5], asked)
    assert set(some.image.tolist()) <= {0, 1} and len(some.image) == np.isin(given.image, [3, 4]).sum()


def test_what_is_unasked_is_known_image_by_image(asked: Questions, rows: pa.Table) -> None:
    (key,) = [caption.key for caption in asked.captions]
    seen = set(rows["image_id"].to_pylist())
    assert proposals.unasked(rows, [*IDS, "new"], asked) == [[] if i in seen else [0] for i in [*IDS, "new"]]
    other = rows.set_column(rows.schema.get_field_index("producer"), "producer", pa.array(["x@1#0"] * rows.num_rows))
    assert proposals.unasked(other, IDS[:2], asked) == [[0], [0]]
    assert key in rows["caption"].to_pylist()


def _detections(rows: pa.Table, asked: Questions) -> pa.Table:
    return settled(Tables.images(IDS), rows, asked)


def test_yields_count_what_stands_and_say_what_is_silent(project: Project, asked: Questions, rows: pa.Table) -> None:
    found = _detections(rows, asked)
    lost = {"image_id": "gone", "batch": "b", "producer": asked.producer, "reason": "damaged"}
    unanswered = schema.table("unanswered").from_rows([lost])
    images = Tables.images([*IDS, "gone"])
    table = prompts.yields("b", images, found, rows, unanswered, project)
    brought = {(r["class_name"], r["prompt"]): r for r in table.to_pylist()}
    assert list(brought) == [
        *(("car", ""), ("car", "car"), ("car", "van"), ("car", "toy car")),
        *(("dog", ""), ("dog", "dog"), ("unicorn", ""), ("unicorn", "unicorn")),
    ]
    said = rows.to_pylist()
    for (name, prompt), row in brought.items():
        assert row["images"] == len(IDS)
        threshold = CLASSES[name].get("box_threshold", 0.1)
        if prompt:
            mine = [r for r in said if r["prompt"] == prompt]
            enough = [r for r in mine if r["score"] >= threshold and r["text_score"] >= np.float32(0.2)]
            assert row["boxes"] == len(enough) and row["images_with"] == len({r["image_id"] for r in enough})
            assert row["best"] == max(r["score"] for r in mine)
        else:
            assert row["boxes"] == sum(r["class_name"] == name for r in found.to_pylist())
    silent = brought["unicorn", ""]
    assert silent["boxes"] == 0 and silent["best"] == brought["unicorn", "unicorn"]["best"] > 0
    assert silent["note"] == f"nothing at 0.9 or above: the best score seen is {silent['best']:.3f}"
    assert brought["car", ""]["note"] == "" and brought["car", "toy car"]["negative"]


def test_errors_are_counted_on_images_that_lack_the_class(project: Project, asked: Questions, rows: pa.Table) -> None:
    found = _detections(rows, asked)
    truth = Tables.truth([(IDS[0], "car", (0, 0, 9, 9)), (IDS[1], "dog", (0, 0, 9, 9)), (IDS[1], "car", (0, 0, 9, 9))])
    gold = IDS[:7]
    table = prompts.errors(gold, truth, found, rows, project)
    measured = {(r["class_name"], r["prompt"]): r for r in table.to_pylist()}
    assert ("car", "toy car") not in measured, "a negative prompt that fires is no error"
    lacking = {"car": gold[2:], "dog": [gold[0], *gold[2:]], "unicorn": gold}
    for (name, prompt), row in measured.items():
        threshold = CLASSES[name].get("box_threshold", 0.1)
        boxes = [
            r
            for r in (rows if prompt else found).to_pylist()
            if r["image_id"] in lacking[name]
            and (
                (r["prompt"] == prompt and r["score"] >= threshold and r["text_score"] >= np.float32(0.2))
                if prompt
                else r["class_name"] == name
            )
        ]
        wrong = len({r["image_id"] for r in boxes})
        assert (row["images"], row["false_images"]) == (len(lacking[name]), wrong)
        assert row["rate"] == pytest.approx(wrong / len(lacking[name]))
        assert (row["low"], row["high"]) == pytest.approx(wilson(wrong, len(lacking[name]), 0.95))
        assert row["boxes_per_image"] == pytest.approx(len(boxes) / len(lacking[name]))
        assert row["worst"] == (max(r["score"] for r in boxes) if boxes else None)
    assert measured["unicorn", ""]["rate"] == 0


def test_without_gold_or_labellers_nothing_is_measured(project: Project, asked: Questions, rows: pa.Table) -> None:
    none = prompts.errors([], schema.table("ground_truth").empty(), _detections(rows, asked), rows, project)
    assert none.num_rows == 7 and none["rate"].null_count == 7
    nobody = Project(tiny_config(), project.folder)
    empty = schema.table("detections").empty()
    assert (
        prompts.yields("b", Tables.images(IDS), empty, rows, schema.table("unanswered").empty(), nobody).num_rows == 0
    )


def test_plain_labellers_are_measured_by_class(tmp_path: Path) -> None:
    labelling = {"labellers": [{"name": "tiny", "kind": "profile"}]}
    project = Project(tiny_config(labelling=labelling), tmp_path)
    from pipeline.models.profiles import labeller_producer

    name = labeller_producer(project.config.labelling.labellers[0], tmp_path, project.config)
    found = Tables.boxes([(IDS[0], "cat", (0, 0, 9, 9), 0.5), (IDS[0], "cat", (20, 0, 29, 9), 0.4)], name)
    none = schema.table("proposals").empty()
    brought = prompts.yields("b", Tables.images(IDS), found, none, schema.table("unanswered").empty(), project)
    assert [(r["class_name"], r["boxes"], r["images_with"], r["best"], r["note"]) for r in brought.to_pylist()] == [
        ("cat", 2, 1, 0.5, ""),
        ("dog", 0, 0, None, "nothing found"),
    ]
    measured = prompts.errors(IDS[:4], schema.table("ground_truth").empty(), found, none, project).to_pylist()
    assert [(r["class_name"], r["rate"], r["boxes_per_image"]) for r in measured] == [("cat", 0.25, 0.5), ("dog", 0, 0)]
