from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from pipeline import detect as detect_module
from pipeline import schema
from pipeline.compute import Compute
from pipeline.config import Project
from pipeline.detect import DetectWorker, Found, detect, detection_rows, find, part_of, vocabulary
from pipeline.errors import DataError
from pipeline.models.grounding_dino import GroundingDino
from pipeline.models.profiles import build_labeller
from pipeline.store import Staging, Store
from tests.pipeline.models import small
from tests.pipeline.photo_rows import row, save, speckled, tiny_config

MINE = """
import numpy as np
from pipeline.models.roles import Detections

class Corners:
    def __init__(self, ontology, boxes, fail_at=-1):
        self.ontology, self.boxes, self.fail_at = ontology, np.array(boxes, float), fail_at
    def detect(self, images):
        if any(i[0, 0, 0] == self.fail_at for i in images):
            raise ValueError("bad pixels")
        n = len(self.boxes)
        return [Detections(self.boxes, np.linspace(0.9, 0.1, n), ("dog",) * n) for _ in images]
"""


def project(folder: Path, boxes: list[list[float]], **options: object) -> Project:
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    mine = {"name": "mine", "path": "mine.py:Corners", "options": {"boxes": boxes, **options}}
    labellers = [{"name": "tiny", "kind": "profile"}, mine]
    return Project(tiny_config(labelling={"labellers": labellers}), folder)


def staging(folder: Path, name: str = "f") -> Staging:
    return Store(str(folder / "store")).staging("detections", "b", name)


def test_every_labeller_sees_every_image_in_order(tmp_path: Path) -> None:
    images = save(tmp_path, [speckled(k) for k in range(3)])
    task = project(tmp_path, [[1, 2, 30, 40], [5, 5, 9, 9]])
    found = detect(images, task, Compute(), staging(tmp_path))
    names = [p.split("@")[0] for p in found.column("producer").to_pylist()]
    assert names == ["tiny", "mine", "mine"] * 3
    assert found.column("image_id").to_pylist() == np.repeat(images.column("image_id").to_pylist(), 3).tolist()
    assert schema.table("detections").duplicate_keys(found) == 0
    bright = speckled(0).mean(2) > speckled(0).mean()
    y, x = np.nonzero(bright)
    assert schema.box_array(found)[0].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_boxes_are_cut_to_the_image_and_those_outside_dropped(tmp_path: Path) -> None:
    images = save(tmp_path, [speckled(0)])
    boxes = [[-10, -5, 200, 300], [100, 10, 120, 20], [30, 30, 30, 40], [40, 30, 20, 50], [79.5, 59.5, 90, 90]]
    found = detect(images, project(tmp_path, boxes), Compute(), staging(tmp_path)).slice(1)
    assert schema.box_array(found).tolist() == [[0, 0, 80, 60], [79.5, 59.5, 80, 60]]
    np.testing.assert_allclose(found.column("score").to_numpy(), [0.9, 0.1])


def test_truncated_means_cut_by_a_tile_s_inner_edge(tmp_path: Path) -> None:
    save(tmp_path, [speckled(0, 100, 120)])
    boxes = [[0, 10, 20, 30], [10, 0, 20, 30], [30, 10, 50, 30], [10, 20, 20, 40], [10, 10, 20, 20]]
    worker = DetectWorker(project(tmp_path, boxes).config, str(tmp_path))

    def flags(x: int, y: int) -> list[bool]:
        place = {"tile_x": x, "tile_y": y, "photo_width": 120, "photo_height": 100}
        rows = schema.table("images").from_rows([row(tmp_path / "000.png", 50, 40, **place)])
        found = part_of(worker(rows), "detections")
        return [r["truncated"] for r in found.to_pylist() if r["producer"].startswith("mine")]

    assert flags(20, 10) == [True, True, True, True, False]
    assert flags(0, 0) == [False, False, True, True, False]
    assert flags(70, 60) == [True, True, False, False, False]


def test_each_labeller_s_time_is_known_and_leaves_no_rows(tmp_path: Path) -> None:
    images = save(tmp_path, [speckled(k) for k in range(5)])
    task = project(tmp_path, [[1, 2, 30, 40]])
    found = find(images, task, Compute(batch_size=2, batches_per_shard=1), staging(tmp_path))
    assert found.detections.equals(detect(images, task, Compute(batch_size=2), staging(tmp_path, "other")))
    took = found.seconds
    assert sorted(p.split("@")[0] for p in took) == ["mine", "tiny"] and all(s > 0 for s in took.values())
    again = find(images, task, Compute(batch_size=2, batches_per_shard=1), staging(tmp_path))
    assert again.seconds == took, "what an interrupted run took is remembered"


def test_a_bad_image_does_not_lose_its_batch(tmp_path: Path) -> None:
    images = save(tmp_path, [speckled(k) for k in range(4)])
    (tmp_path / "002.png").write_bytes(b"")
    task = project(tmp_path, [[1, 2, 30, 40]])
    found = find(images, task, Compute(), staging(tmp_path))
    ids = images.column("image_id").to_pylist()
    assert found.detections.column("image_id").unique().to_pylist() == [ids[k] for k in (0, 1, 3)]
    lost = [(r["image_id"], r["producer"].split("@")[0], r["reason"]) for r in found.unanswered.to_pylist()]
    assert lost == [(ids[2], "tiny", "empty"), (ids[2], "mine", "empty")]


def test_a_labeller_looks_only_at_what_it_has_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image more, one gone, one of which a file was damaged, a labeller changed: as from scratch each time."""
    shown: list[tuple[str, int]] = []
    build = detect_module.build_labeller

    def watched(labeller, *where):
        made = build(labeller, *where)
        look = made.detect
        made.detect = lambda images: shown.append((labeller.name, len(images))) or look(images)
        return made

    monkeypatch.setattr(detect_module, "build_labeller", watched)
    images = save(tmp_path, [*(speckled(k) for k in range(3)), np.zeros((20, 20, 3), np.uint8), speckled(4)])
    mine = [[70, 50, 80, 60], [70, 50, 80, 60]]  # beyond the edge of the small one
    task = project(tmp_path, mine)
    first = find(images.slice(0, 4), task, Compute(), staging(tmp_path, "1"))
    zeros = first.detection_counts.filter(pc.equal(first.detection_counts["found"], 0))
    assert zeros["image_id"].unique().to_pylist() == [images["image_id"][3].as_py()], "that nothing is there is known"

    def again(name: str, task: Project, known: Found) -> dict[str, int]:
        shown.clear()
        found = find(images.slice(1), task, Compute(), staging(tmp_path, name), known)
        asked = dict(shown)
        scratch = find(images.slice(1), task, Compute(), staging(tmp_path, f"{name} from scratch"))
        assert found.detections.equals(scratch.detections) and found.detection_counts.equals(scratch.detection_counts)
        return asked

    assert again("2", task, first) == {"tiny": 1, "mine": 1}
    assert again("3", project(tmp_path, mine[:1]), first) == {"tiny": 1, "mine": 4}, "another producer"
    lost = replace(first, detections=first.detections.slice(2))  # of another run than its counts
    assert again("4", task, lost) == {"tiny": 1, "mine": 1}
    assert again("5", task, replace(first, detections=first.detections.slice(5))) == {"tiny": 2, "mine": 2}


def test_a_labeller_that_fails_is_named(tmp_path: Path) -> None:
    images = save(tmp_path, [np.full((20, 20, 3), 7, np.uint8)])
    with pytest.raises(DataError, match=r"'mine'.*ValueError: bad pixels"):
        detect(images, project(tmp_path, [[1, 1, 5, 5]], fail_at=7), Compute(), staging(tmp_path))


def test_no_images_no_boxes_and_no_labellers_are_fine(tmp_path: Path) -> None:
    empty, images = schema.table("images").empty(), save(tmp_path, [speckled(0)])
    task = project(tmp_path, [])
    assert detect(empty, task, Compute(), staging(tmp_path)).equals(schema.table("detections").empty())
    assert detect(images, task, Compute(), staging(tmp_path, "g")).num_rows == 1
    alone = Project(tiny_config(), tmp_path)
    assert detect(images, alone, Compute(), staging(tmp_path, "h")).num_rows == 0
    assert vocabulary(alone).equals(schema.table("vocabulary").empty())


def test_the_vocabulary_has_a_row_for_each_labeller_and_prompt(tmp_path: Path) -> None:
    rows = vocabulary(project(tmp_path, [])).to_pylist()
    assert [(r["producer"].split("@")[0], r["class_name"], r["matched"]) for r in rows] == [
        ("tiny", "cat", "cat"),
        ("tiny", "dog", "dog"),
        ("mine", "cat", "cat"),
        ("mine", "dog", "dog"),
    ]


@pytest.mark.weights
def test_what_a_labeller_has_no_word_for_is_null(tmp_path: Path) -> None:
    labelling = {"labellers": [{"name": "compact", "kind": "profile"}]}
    config = tiny_config(profile="compact", classes={"tree": {}, "dog": {"prompts": ["puppy"]}}, labelling=labelling)
    assert vocabulary(Project(config, tmp_path)).column("matched").to_pylist() == [None, "dog"]


# -- labellers that answer prompts one by one -----------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.dino_checkpoint(tmp_path_factory.mktemp("dino"))


def prompted(
    folder: Path, checkpoint: Path, classes: dict[str, object] | None = None, *, others: int = 1, **options: object
) -> Project:
    """A foundation project of small models, and perhaps a plain labeller beside it."""
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    mine = {"name": "mine", "path": "mine.py:Corners", "options": {"boxes": [[1, 2, 30, 40]]}}
    dino = {"name": "dino", "kind": "profile", "options": {"box_threshold": 0.3, "captions": "class", **options}}
    config = tiny_config(
        profile="foundation",
        models={"detector": str(checkpoint)},
        classes=classes or {"cat": {}, "dog": {"prompts": ["dog", "small dog"]}},
        labelling={"labellers": [dino, *[mine] * others]},
    )
    return Project(config, folder)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(images, captions) of each batch of looks that the network is asked."""
    seen: list[tuple[int, int]] = []
    ask = GroundingDino._ask

    def counting(self, looks, pixels):
        seen.append((len(looks), sum(len(look.captions) for look in looks)))
        return ask(self, looks, pixels)

    monkeypatch.setattr(GroundingDino, "_ask", counting)
    return seen


@pytest.mark.weights
def test_proposals_are_kept_and_only_what_is_new_is_asked(
    tmp_path: Path, checkpoint: Path, counted: list[tuple[int, int]]
) -> None:
    images = save(tmp_path, [speckled(k) for k in range(3)])
    first = find(images, prompted(tmp_path, checkpoint), Compute(), staging(tmp_path, "1"))
    assert counted == [(3, 6)]
    assert schema.table("proposals").duplicate_keys(first.proposals) == 0
    names = [p.split("@")[0] for p in first.detections.column("producer").to_pylist()]
    assert set(names) == {"dino", "mine"}
    order = first.detections.column("image_id").to_pylist()
    assert order == sorted(order, key=images.column("image_id").to_pylist().index)

    def again(name: str, **how: object) -> Found:
        counted.clear()
        return find(images, prompted(tmp_path, checkpoint, **how), Compute(), staging(tmp_path, name), first)

    same = again("2", others=0)
    assert counted == [] and same.proposals.equals(first.proposals)
    stricter = again("3", others=0, box_threshold=0.6)
    scores = stricter.detections.column("score").to_numpy()
    assert counted == [] and (scores >= 0.6).all()
    changed = again("4", others=0, classes={"cat": {}, "dog": {"prompts": ["wolf"]}})
    assert counted == [(3, 3)], "only the changed class's caption is asked"
    cats = [f.detections.filter(pc.equal(f.detections["class_name"], "cat")).select(BOX) for f in (first, changed)]
    assert cats[1].equals(cats[0].filter(pc.is_valid(cats[0]["x1"])))
    fresh = find(
        images,
        prompted(tmp_path, checkpoint, {"cat": {}, "dog": {"prompts": ["wolf"]}}, others=0),
        Compute(),
        staging(tmp_path, "5"),
    )
    assert fresh.detections.select(BOX).equals(changed.detections.select(BOX))


@pytest.mark.weights
def test_what_settles_is_what_the_detector_itself_says(tmp_path: Path, checkpoint: Path) -> None:
    images = save(tmp_path, [speckled(k) for k in range(3)])
    task = prompted(tmp_path, checkpoint, others=0, one_class=True)
    found = detect(images, task, Compute(), staging(tmp_path))
    detector = build_labeller(task.config.labelling.labellers[0], tmp_path, task.config)
    expected = detection_rows(
        [
            (row, detector.producer, said)
            for row, said in zip(images.to_pylist(), detector.detect([speckled(k) for k in range(3)]), strict=True)
        ]
    )
    assert found.num_rows > 0
    assert found.select(["image_id", "class_name", "producer"]).equals(
        expected.select(["image_id", "class_name", "producer"])
    )
    np.testing.assert_allclose(schema.box_array(found), schema.box_array(expected), atol=1e-3)


@pytest.mark.weights
def test_labellers_that_share_a_network_ask_it_once(
    tmp_path: Path, checkpoint: Path, counted: list[tuple[int, int]]
) -> None:
    images = save(tmp_path, [speckled(k) for k in range(2)])
    task = prompted(tmp_path, checkpoint, others=0)
    dino = task.config.labelling.labellers[0]
    strict = dino.model_copy(update={"name": "strict", "options": {**dino.options, "box_threshold": 0.6}})
    both = task.config.labelling.model_copy(update={"labellers": [dino, strict]})
    task = Project(task.config.model_copy(update={"labelling": both}), tmp_path)
    found = find(images, task, Compute(), staging(tmp_path))
    assert sum(captions for _, captions in counted) == 4
    by_name = {r["producer"].split("@")[0] for r in found.detections.to_pylist()}
    assert by_name == {"dino", "strict"} and schema.table("proposals").duplicate_keys(found.proposals) == 0


@pytest.mark.weights
def test_an_image_that_a_network_cannot_take_costs_only_itself(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = save(tmp_path, [speckled(k) for k in range(3)])
    propose = GroundingDino.propose

    def fragile(self, pixels, asked=None):
        if any((image == speckled(1)).all() for image in pixels):
            raise RuntimeError("out of memory\nmore")
        return propose(self, pixels, asked)

    monkeypatch.setattr(GroundingDino, "propose", fragile)
    found = find(images, prompted(tmp_path, checkpoint, others=0), Compute(), staging(tmp_path))
    ids = images.column("image_id").to_pylist()
    (lost,) = found.unanswered.to_pylist()
    assert (lost["image_id"], lost["reason"]) == (ids[1], "RuntimeError: out of memory")
    assert set(found.proposals.column("image_id").to_pylist()) == {ids[0], ids[2]}


@pytest.mark.weights
def test_the_vocabulary_of_a_network_needs_no_weights(tmp_path: Path, checkpoint: Path) -> None:
    gone = tmp_path / "gone.safetensors"
    gone.write_bytes(b"not needed")
    rows = vocabulary(prompted(tmp_path, gone, others=0)).to_pylist()
    assert [r["matched"] for r in rows] == ["cat", "dog", "small dog"]


BOX = ["image_id", "class_name", "x1", "y1", "x2", "y2", "score"]


@pytest.mark.parametrize("mode", ["local", pytest.param("auto", marks=pytest.mark.ray)])
def test_every_compute_gives_the_same_table(tmp_path: Path, mode: str) -> None:
    images = save(tmp_path, [speckled(k) for k in range(7)])
    task = project(tmp_path, [[1, 2, 30, 40], [1, 2, 30, 40]])
    plain = detect(images, task, Compute(), staging(tmp_path, "plain"))
    spread = detect(images, task, Compute(mode, 2, 2, 1), staging(tmp_path, mode))
    assert spread.equals(plain)


@pytest.mark.weights
def test_compact_boxes_are_equal_bit_for_bit_in_other_processes(tmp_path: Path) -> None:
    images = save(tmp_path, [speckled(k, 200, 240) for k in range(4)])
    classes = {name: {} for name in ("kite", "book", "tv", "person", "bird")}
    labelling = {"labellers": [{"name": "compact", "kind": "profile", "options": {"floor": 0.01}}]}
    task = Project(tiny_config(profile="compact", classes=classes, labelling=labelling), tmp_path)
    plain = detect(images, task, Compute(), staging(tmp_path, "plain"))
    assert plain.num_rows > 0
    assert detect(images, task, Compute("local", 2, 1, 1), staging(tmp_path, "local")).equals(plain)
