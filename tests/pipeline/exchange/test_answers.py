from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import decisions, schema
from pipeline.config import parse_config
from pipeline.exchange import FORMATS, answers, label_studio, tasks
from pipeline.exchange.tasks import Answer, Reading, Seen
from pipeline.journal import Decision
from tests.pipeline.decided import table
from tests.pipeline.exchange import made

CONFIG = parse_config({"name": "p", "classes": {c: {} for c in made.CLASSES}, "source": {"uri": "."}})
NONE = schema.table("decisions").empty()
RULES = answers.Rules("cvat", "ann", now=datetime(2026, 11, 23, tzinfo=UTC))


def project(images: pa.Table, labels: pa.Table, decided: pa.Table = NONE) -> answers.Project:
    return answers.Project(images, labels, decided, CONFIG.ontology)


def words(found: list[Decision]) -> Counter[str]:
    return Counter(d.verdict for d in found)


# -- a file that nobody changed ----------------------------------------------------------------------


@pytest.mark.parametrize("module", FORMATS.values(), ids=FORMATS)
def test_untouched_files_say_nothing_or_yes_to_all(module: ModuleType, tmp_path: Path) -> None:
    images = made.images()
    labels = made.labels(images)
    module.write(tasks.tasks(images, labels), made.CLASSES, tmp_path)
    reading = module.read(tmp_path / module.FILE)
    nothing, losses = answers.decide(reading, project(images, labels), RULES)
    assert nothing == [] and losses == []
    found, _ = answers.decide(reading, project(images, labels), replace(RULES, unchanged_is_yes=True))
    assert words(found) == {"yes": 1000} and len({d.annotation_id for d in found}) == 1000
    after = decisions.apply(labels, table(*found), images, CONFIG)
    made.equal(after.drop(["status", "decided_by"]), labels.drop(["status", "decided_by"]))
    assert set(after.column("status").to_pylist()) == {"human"}


# -- random changes, through each format --------------------------------------------------------------


def changed(some: list[tasks.Task], draw: np.random.Generator) -> tuple[list[tasks.Task], dict[str, tuple]]:
    """Tasks as a person might leave them, and what was done: id -> (verdict, row)."""
    done: dict[str, tuple] = {}
    left = []
    for task in some:
        rows = []
        for row in task.labels:
            kind = draw.choice(["leave", "no", "class", "move"])
            new: dict[str, Any] | None = dict(row)
            if kind == "no":
                new = None
                done[row["annotation_id"]] = ("no", row)
            elif kind == "class":
                others = [c for c in made.CLASSES if c != row["class_name"]]
                new = row | {"class_name": others[int(draw.integers(len(others)))]}
                done[row["annotation_id"]] = ("fix", new)
            elif kind == "move" and row["x1"] is not None:
                box = [0.0, 0.0, task.width / 2, task.height / 3 + 1]
                if np.abs(np.array(box) - [row[k] for k in ("x1", "y1", "x2", "y2")]).max() > 0.02:
                    new = row | dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
                    done[row["annotation_id"]] = ("fix", new)
            rows += [new] if new else []
        left.append(replace(task, labels=tuple(rows)))
    return left, done


@pytest.mark.parametrize("name", FORMATS)
def test_every_change_arrives_and_nothing_else(name: str, tmp_path: Path) -> None:
    """A person works on the file; the file still knows, in its own data, what had been sent."""
    images = made.images()
    labels = made.labels(images)
    module = FORMATS[name]
    before = list(tasks.tasks(images, labels))
    module.write(before, made.CLASSES, tmp_path / "sent")
    sent = module.read(tmp_path / "sent" / module.FILE)
    after, done = changed(before, np.random.default_rng(3))
    module.write(after, made.CLASSES, tmp_path / "back")
    back = module.read(tmp_path / "back" / module.FILE)
    originals = {s.annotation_id: s.carried for a in sent.answers for s in a.seen}
    back.answers = [
        replace(a, shown=s.shown, seen=tuple(replace(x, carried=originals[x.annotation_id]) for x in a.seen))
        for a, s in zip(back.answers, sent.answers, strict=True)
    ]
    found, losses = answers.decide(back, project(images, labels), RULES)
    assert losses == []
    assert {d.annotation_id: d.verdict for d in found} == {k: v for k, (v, _) in done.items()}
    for d in found:
        row = done[d.annotation_id][1]
        if d.verdict == "fix":
            assert d.class_name == row["class_name"]
            if row["x1"] is not None:
                np.testing.assert_allclose(d.box, [row[k] for k in ("x1", "y1", "x2", "y2")], atol=0.01)
            assert d.asked_class == originals[d.annotation_id]["class_name"]
    again, _ = answers.decide(back, project(images, labels, table(*found)), RULES)
    assert again == []


# -- one image ------------------------------------------------------------------------------------------

IMAGE = made.images(1)
NAME, BATCH = IMAGE["image_id"][0].as_py(), IMAGE["batch"][0].as_py()
W, H = IMAGE["width"][0].as_py(), IMAGE["height"][0].as_py()
BOX = (2.0, 2.0, 12.0, 12.0)


def row(name: str, box: tuple[float, ...] | None = BOX) -> dict[str, Any]:
    base = made.labels(IMAGE, 1).to_pylist()[0] | {"annotation_id": name, "class_name": "cat", "mask": None}
    return base | dict(zip(("x1", "y1", "x2", "y2"), box or (None,) * 4, strict=True))


LABELS = schema.table("labels").from_rows([row("s1")])


def answer(*seen: Seen, **more: Any) -> Reading:
    given: dict[str, Any] = {"image_id": NAME, "name": "", "batch": BATCH, "shown": frozenset(["s1"])}
    return Reading([Answer(seen=seen, **(given | more))])


def decide(reading: Reading, *known: Decision, labels: pa.Table = LABELS, **rules: Any) -> list[Decision]:
    found, losses = answers.decide(reading, project(IMAGE, labels, table(*known)), replace(RULES, **rules))
    assert losses == []
    return found


def test_verdicts_in_so_many_words() -> None:
    (yes,) = decide(answer(Seen("s1", "cat", BOX, verdict="yes")))
    (no,) = decide(answer(Seen("s1", "cat", BOX, verdict="no")))
    assert (yes.verdict, yes.box, yes.asked_box) == ("yes", BOX, BOX)
    assert (no.verdict, no.box, no.asked_class, no.asked_box) == ("no", None, "cat", BOX)


def test_an_image_that_was_handed_in_confirms_what_was_left_alone() -> None:
    assert decide(answer(Seen("s1", "cat", BOX))) == []
    (yes,) = decide(answer(Seen("s1", "cat", (2.004, 2, 12, 12)), complete=True, reviewer="ben"))
    assert yes.verdict == "yes" and yes.reviewer == "ben" and yes.box == BOX


def test_a_file_that_does_not_say_what_was_sent_deletes_nothing() -> None:
    assert decide(answer(shown=None)) == []
    (no,) = decide(answer())
    assert no.verdict == "no" and no.asked_class == "cat"


def test_what_a_person_draws_is_added_once_moved_and_deleted() -> None:
    first = answer(Seen("s1", "cat", BOX), Seen(None, "cat", (20.0, 2.0, 24.0, 20.0)))
    (add,) = decide(first)
    assert add.verdict == "add" and add.asked_class is None
    assert decide(first, add) == []
    (moved,) = decide(answer(Seen("s1", "cat", BOX), Seen(None, "cat", (20.0, 3.0, 24.0, 21.0))), add)
    assert moved.annotation_id == add.annotation_id and moved.verdict == "fix"
    moved = replace(moved, at=datetime(2026, 11, 24, tzinfo=UTC))
    (gone,) = decide(answer(Seen("s1", "cat", BOX)), add, moved)
    assert gone.annotation_id == add.annotation_id and gone.verdict == "no"
    gone = replace(gone, at=datetime(2026, 11, 25, tzinfo=UTC))
    assert decide(answer(Seen("s1", "cat", BOX)), add, moved, gone) == []


def test_what_was_added_and_sent_again_is_one_label() -> None:
    (add,) = decide(answer(Seen("s1", "cat", BOX), Seen(None, "cat", (20.0, 2.0, 24.0, 20.0))))
    labels = schema.table("labels").from_rows([row("s1"), row(add.annotation_id, (20.0, 2.0, 24.0, 20.0))])
    shown = frozenset(["s1", add.annotation_id])
    same = answer(Seen("s1", "cat", BOX), Seen(add.annotation_id, "cat", (20.0, 2.0, 24.0, 20.0)), shown=shown)
    assert decide(same, add, labels=labels) == []
    (gone,) = decide(answer(Seen("s1", "cat", BOX), shown=shown), add, labels=labels)
    assert gone.verdict == "no" and gone.annotation_id == add.annotation_id


def test_a_copy_of_a_label_is_a_new_one() -> None:
    found = decide(answer(Seen("s1", "cat", BOX), Seen("s1", "cat", (20.0, 2.0, 24.0, 20.0))))
    assert words(found) == {"add": 1} and found[0].annotation_id != "s1"


def test_the_tool_s_own_ids_tell_drawings_apart() -> None:
    two = answer(Seen("s1", "cat", BOX), Seen(None, "cat", BOX, region="r1"), Seen(None, "cat", BOX, region="r2"))
    found = decide(two)
    assert len({d.annotation_id for d in found}) == 2
    assert decide(two, *found) == []


def test_somebody_else_s_decision_does_not_hide_this_one() -> None:
    (yes,) = decide(answer(Seen("s1", "cat", BOX), complete=True))
    assert len(decide(answer(Seen("s1", "cat", BOX), complete=True, reviewer="ben"), yes)) == 1
    assert len(decide(answer(Seen("s1", "cat", BOX), complete=True), yes, source="coco")) == 1


def test_a_later_word_in_the_same_tool_is_taken() -> None:
    (yes,) = decide(answer(Seen("s1", "cat", BOX), complete=True))
    (no,) = decide(answer(complete=True), yes)
    assert no.verdict == "no"
    no = replace(no, at=datetime(2026, 11, 24, tzinfo=UTC))
    (yes_again,) = decide(answer(Seen("s1", "cat", BOX), complete=True), yes, no)
    assert yes_again.verdict == "yes"


def test_images_are_found_by_id_or_by_name() -> None:
    seen = (Seen("s1", "dog-less", BOX, verdict="no"),)
    for given in ({"image_id": NAME[:16]}, {"image_id": "", "name": f"C:\\x/y-{NAME[:16]}.png", "batch": None}):
        found, losses = answers.decide(answer(*seen, **given), project(IMAGE, LABELS), RULES)
        assert found == [] and "no class of the project" in losses[0].what
    for given in ({"image_id": "00" * 32}, {"image_id": "", "name": "x.png"}, {"image_id": "", "name": "x-zz.png"}):
        _, losses = answers.decide(answer(*seen, **given), project(IMAGE, LABELS), RULES)
        assert losses[0].what == "no such image in the project"
    twice = pa.concat_tables([IMAGE, IMAGE.set_column(1, IMAGE.schema.field(1), pa.array(["other"]))])
    _, losses = answers.decide(answer(*seen, batch=None), project(twice, LABELS), RULES)
    assert losses[0].what == "the image is in several batches"


def test_boxes_that_cannot_be_are_losses_and_are_not_taken_for_deletions() -> None:
    for box in ((5.0, 5.0, 5.0, 9.0), (W + 5.0, 0.0, W + 9.0, 9.0), (9.0, 9.0, 2.0, 2.0)):
        found, losses = answers.decide(answer(Seen("s1", "cat", box)), project(IMAGE, LABELS), RULES)
        assert found == [] and len(losses) == 1
    (fixed,) = decide(answer(Seen("s1", "cat", (-5.0, 0.0, W + 40.0, 9.0))))
    assert fixed.box == (0.0, 0.0, float(W), 9.0)


def test_labels_that_have_gone_since_can_still_be_decided_on() -> None:
    """The file knows what was asked; a deleted box is only known from the file's list, which has no place."""
    sent = tasks.clean(tasks.carried(row("old")))
    seen = Seen("old", "cat", BOX, carried=sent, verdict="no")
    (no,) = decide(answer(seen, shown=frozenset(["old"])))
    assert no.annotation_id == "old" and no.asked_box == BOX
    _, losses = answers.decide(answer(shown=frozenset(["old"])), project(IMAGE, LABELS), RULES)
    assert "no longer a label" in losses[0].what


def test_two_people_s_annotations_of_one_task_are_two_answers() -> None:
    task = label_studio.task_json(next(tasks.tasks(IMAGE, LABELS)), "x")
    result = task["predictions"][0]["result"]
    task["annotations"] = [
        {"result": result, "completed_by": {"email": "ann@x.org"}, "updated_at": "2026-11-23T10:00:00Z"},
        {"result": [], "completed_by": {"email": "ben@x.org"}, "updated_at": "2026-11-23T11:00:00Z"},
    ]
    found = decide(label_studio.read_tasks([task], "x"))
    assert [(d.reviewer, d.verdict) for d in found] == [("ann@x.org", "yes"), ("ben@x.org", "no")]
    (outcome,) = decisions.outcomes(table(*found), 0.5)
    assert outcome.decided is None


def test_carried_data_that_were_tampered_with_are_not_believed() -> None:
    whole = tasks.carried(row("s1"))
    assert tasks.clean(whole)["producer"] == "m@1#ab"
    for key, value in (("score", "high"), ("parts", 5), ("box", [1, 2]), ("box", "x"), ("producer", None),
                       ("class_name", ["cat"]), ("box", [1, 2, 3, float("nan")])):  # fmt: skip
        assert tasks.clean(whole | {key: value}) == {}
    assert tasks.clean(None) == tasks.clean([]) == {}
