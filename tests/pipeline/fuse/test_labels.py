from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline import fuse, schema

ONE, TWO = "one@1#0", "two@1#0"


def trusted(tables, *rows: tuple[str, str, float | None, float | None], **more) -> pa.Table:
    names = ("producer", "class_name", "threshold", "precision")
    return tables.trust(*[dict(zip(names, row, strict=True)) | more for row in rows])


def labels(
    tables,
    parts: list[pa.Table],
    trust: pa.Table,
    truth: pa.Table | None = None,
    annotated: tuple[str, ...] = (),
    **config,
) -> list[dict]:
    masks = config.pop("masks", schema.table("masks").empty())
    people = tables.truth([]) if truth is None else truth
    images, standing = config.pop("images", tables.images([])), config.pop("standing", None)
    settings = tables.config(["cat", "dog"], **config)
    made = fuse.label_batch(pa.concat_tables(parts), masks, trust, people, annotated, images, settings, standing)
    assert schema.table("labels").duplicate_keys(made) == 0
    return made.to_pylist()


def test_status_follows_the_threshold_of_its_labeller(tables) -> None:
    seen = tables.boxes(
        [
            ("x", "cat", (0, 0, 9, 9), 0.8),
            ("x", "cat", (20, 0, 29, 9), 0.5),
            ("x", "cat", (40, 0, 49, 9), 0.01),
            ("x", "dog", (60, 0, 69, 9), 0.99),
        ],
        ONE,
    )
    rows = labels(tables, [seen], trusted(tables, (ONE, "cat", 0.8, 0.95), (ONE, "dog", None, 0.4)))
    by = {r["x1"]: r for r in rows}
    assert [by[x]["status"] for x in (0, 20, 40, 60)] == ["accepted", "needs_review", "rejected", "needs_review"]
    assert by[0]["threshold"] == pytest.approx(0.8) and by[0]["precision"] == pytest.approx(0.95)
    assert by[60]["threshold"] is None and "not certified" in by[60]["decided_by"]
    assert by[0]["producer"] == ONE and by[0]["parts"] == [by[0]["annotation_id"]]


def test_people_win_on_images_they_annotated_even_on_empty_ones(tables) -> None:
    seen = tables.boxes([(i, "cat", (0, 0, 9, 9), 0.99) for i in ("x", "empty", "new")], ONE)
    truth = tables.truth([("x", "dog", (0, 0, 9, 9))])
    rows = labels(tables, [seen], trusted(tables, (ONE, "cat", 0.5, 0.9)), truth, ("x", "empty"))
    assert [(r["image_id"], r["class_name"], r["status"]) for r in rows] == [
        ("new", "cat", "accepted"),
        ("x", "dog", "human"),
    ]
    assert rows[1]["producer"] == "human" and rows[1]["threshold"] is None


def test_boxes_of_several_labellers_become_one(tables) -> None:
    """The higher score wins whether or not it is certified: the rule must not know what is graded by it."""
    box, near, far = (0, 0, 10, 10), (1, 0, 11, 10), (6, 0, 16, 10)
    first = tables.boxes([("x", "cat", box, 0.6), ("x", "dog", box, 0.6)], ONE)
    second = tables.boxes([("x", "cat", near, 0.9), ("x", "cat", far, 0.4)], TWO)
    certified = trusted(tables, (ONE, "cat", 0.5, 0.9), (TWO, "cat", 0.95, 0.9))
    rows = labels(tables, [first, second], certified)
    cats = [r for r in rows if r["class_name"] == "cat"]
    assert [(r["producer"], r["x1"], r["status"]) for r in sorted(cats, key=lambda r: r["x1"])] == [
        (TWO, 1, "needs_review"),
        (TWO, 6, "needs_review"),
    ]
    winner = next(r for r in cats if r["x1"] == 1)
    assert winner["parts"] == [second["annotation_id"][0].as_py(), first["annotation_id"][0].as_py()]
    assert "2 labellers agree" in winner["decided_by"] and len(rows) == 3


def test_weighted_boxes_are_graded_under_their_own_name(tables) -> None:
    seen = [
        tables.boxes([("x", "cat", (0, 0, 10, 10), 0.6)], ONE),
        tables.boxes([("x", "cat", (2, 0, 12, 10), 0.9)], TWO),
    ]
    config = tables.config(["cat", "dog"], labelling={"fusion": "wbf"})
    name = fuse.merge(pa.concat_tables(seen), config)["producer"][0].as_py()
    assert name.startswith("wbf@1#")
    (row,) = labels(tables, seen, trusted(tables, (name, "cat", 0.7, 0.95)), labelling={"fusion": "wbf"})
    assert row["status"] == "accepted" and row["producer"] == name and row["score"] == pytest.approx(0.75)
    assert row["x1"] == pytest.approx(2 * 0.9 / 1.5) and len(row["parts"]) == 2
    gradable = fuse.gradable(pa.concat_tables(seen), config)
    assert sorted(gradable["producer"].to_pylist()) == sorted([name, ONE, TWO])
    alone = fuse.gradable(seen[0], tables.config(["cat", "dog"]))
    assert alone["producer"].to_pylist() == [ONE]


def tagged(tables, rows: list[tuple[str, str, float]], producer: str) -> pa.Table:
    probability = [p for *_, p in rows]
    return tables.boxes(
        [(i, c, None, 0.2) for i, c, _ in rows], producer, "tags", probability=probability, rank=[1] * len(rows)
    )


def test_tags_by_vote(tables) -> None:
    answers = [("a", "cat", "cat", "dog"), ("b", "dog", "dog", "dog"), ("c", "cat", "dog", "cat")]
    tags = [tagged(tables, [(row[0], row[k], 0.5 + 0.1 * k) for row in answers], f"t{k}@1#0") for k in (1, 2, 3)]
    config = tables.config(["cat", "dog"], task="classification", labelling={"agreement": "vote"})
    made = fuse.merge(pa.concat_tables(tags), config).to_pylist()
    found = {r["image_id"]: (r["class_name"], round(r["score"], 3), len(r["parts"])) for r in made}
    assert found == {"a": ("cat", 0.667, 3), "b": ("dog", 1.0, 3), "c": ("cat", 0.667, 3)}
    assert len({r["producer"] for r in made}) == 1 and made[0]["producer"].startswith("vote@1#")


def test_tags_by_skill_follow_the_better_labeller(tables) -> None:
    """One labeller always agrees with a second; a third says anything. Skills come from gold, not from the batch."""
    generator = np.random.default_rng(0)
    names = ["cat", "dog"]
    truth = [names[k] for k in generator.integers(0, 2, 200)]
    noise = [names[k] for k in generator.integers(0, 2, 200)]
    ids = [f"i{k:03d}" for k in range(200)]
    said = {"good@1#0": truth, "also@1#0": truth, "bad@1#0": noise}
    gold = pa.concat_tables(
        [tagged(tables, [(i, c, 0.9) for i, c in zip(ids, a, strict=True)], p) for p, a in said.items()]
    )
    config = tables.config(names, task="classification", labelling={"agreement": "dawid_skene"})
    two = pa.concat_tables(
        [tagged(tables, [("new", "cat", 0.6)], "good@1#0"), tagged(tables, [("new", "dog", 0.99)], "bad@1#0")]
    )
    (row,) = fuse.merge(two, config, gold).to_pylist()
    assert row["class_name"] == "cat" and row["score"] > 0.9 and row["producer"].startswith("dawid_skene@1#")


def test_the_order_of_rows_changes_nothing(tables) -> None:
    seen = tables.boxes([("x", "cat", (k, 0, k + 10, 10), 0.5) for k in range(8)] * 2, ONE)
    trust = trusted(tables, (ONE, "cat", 0.3, 0.9))
    assert labels(tables, [seen], trust) == labels(
        tables, [seen.take(list(range(15, -1, -1)))], trust, tables.truth([]), []
    )


def test_masks_come_along(tables) -> None:
    seen = tables.boxes([("x", "cat", (0, 0, 9, 9), 0.8), ("x", "cat", (20, 0, 29, 9), 0.7)], ONE)
    masks = schema.table("masks").from_rows(
        [
            {
                "annotation_id": seen["annotation_id"][1].as_py(),
                "image_id": "x",
                "batch": "b",
                "producer": "s@1#0",
                "mask": "RLE",
                "area": 3,
                "score": 0.5,
            }
        ]
    )
    rows = labels(tables, [seen], trusted(tables, (ONE, "cat", 0.5, 0.9)), masks=masks)
    assert {r["x1"]: r["mask"] for r in rows} == {0: None, 20: "RLE"}


def test_tags_give_one_label_an_image(tables) -> None:
    def tagged(producer: str, rows: list[tuple[str, str, float, int]]) -> pa.Table:
        return tables.boxes(
            [(i, c, None, 0.2) for i, c, _, _ in rows],
            producer,
            "tags",
            probability=[p for _, _, p, _ in rows],
            rank=[r for _, _, _, r in rows],
        )

    tags = [
        tagged(ONE, [("x", "cat", 0.9, 1), ("x", "dog", 0.1, 2), ("y", "dog", 0.6, 1)]),
        tagged(TWO, [("x", "dog", 0.85, 1)]),
    ]
    rows = labels(tables, tags, trusted(tables, (ONE, "cat", 0.8, 0.9), (ONE, "dog", 0.7, 0.9)), task="classification")
    assert [(r["image_id"], r["class_name"], r["status"]) for r in rows] == [
        ("x", "cat", "accepted"),
        ("y", "dog", "needs_review"),
    ]
    assert rows[0]["score"] == pytest.approx(0.9) and len(rows[0]["parts"]) == 2


def test_only_a_certificate_accepts(tables) -> None:
    seen = tables.boxes([("x", "cat", (0, 0, 9, 9), 0.8)], ONE)
    row = {"producer": ONE, "class_name": "cat", "threshold": 0.5}
    for more, status in (({}, "accepted"), ({"certified": False}, "needs_review"), ({"slice": "s"}, "needs_review")):
        assert [r["status"] for r in labels(tables, [seen], tables.trust(row | more))] == [status]


@pytest.mark.parametrize("unit", ["image", "location"])
def test_only_the_best_of_a_unit_are_covered(tables, unit: str) -> None:
    """x and y lie at one place: a cap of one leaves the best label of each image, or of both."""
    seen = tables.boxes([("x", "cat", (20 * k, 0, 20 * k + 9, 9), s) for k, s in enumerate((0.9, 0.8, 0.3, 0.01))], ONE)
    other = tables.boxes([("y", "cat", (0, 0, 9, 9), 0.7), ("z", "cat", (0, 0, 9, 9), 0.6)], ONE)
    places = schema.table("images").from_rows(
        [r | {"location": {"x": "p", "y": "p"}.get(r["image_id"], "q")} for r in tables.images("xyz").to_pylist()]
    )
    row = {"producer": ONE, "class_name": "cat", "threshold": 0.5, "unit": unit}
    rest = {"image": "accepted"}.get(unit, "needs_review")
    for most, second, third in ((3, "accepted", "accepted"), (1, "needs_review", rest)):
        made = labels(tables, [seen, other], tables.trust(row | {"most": most}), images=places)
        by = {round(r["score"], 2): r for r in made}
        expected = ["accepted", second, third, "accepted", "needs_review", "rejected"]
        assert [by[s]["status"] for s in (0.9, 0.8, 0.7, 0.6, 0.3, 0.01)] == expected
    assert f"the best 1 of one {unit}" in by[0.8]["decided_by"]


def test_nothing_in_nothing_out(tables) -> None:
    assert labels(tables, [tables.boxes([])], trusted(tables)) == []
    only = labels(tables, [tables.boxes([])], trusted(tables), tables.truth([("x", "cat", (0, 0, 9, 9))]), ("x",))
    assert [r["status"] for r in only] == ["human"]


def test_slices_have_a_say_where_all_gold_has_none(tables) -> None:
    """Certified by day only. A slice that shares images with one already used is left alone."""
    seen = tables.boxes([(i, "cat", (0, 0, 9, 9), 0.8) for i in ("day", "night", "both")], ONE)
    row = {"producer": ONE, "class_name": "cat", "threshold": 0.5, "certificate": "c"}
    grown = tables.trust(row | {"threshold": None, "slice": "all"}, row | {"slice": "a_day"}, row | {"slice": "b_dark"})
    members = tables.members({"all": ["day", "night", "both"], "a_day": ["day", "both"], "b_dark": ["night", "both"]})
    made = labels(tables, [seen], grown, standing=fuse.Standing("b", {}, members))
    assert {r["image_id"]: r["status"] for r in made} == {
        "day": "accepted",
        "both": "accepted",
        "night": "needs_review",
    }
    apart = tables.members({"a_day": ["day", "both"], "b_dark": ["night"]})
    made = labels(tables, [seen], grown, standing=fuse.Standing("b", {}, apart))
    assert {r["status"] for r in made} == {"accepted"}
    withdrawn = fuse.Standing("b", {"all": "embedding_mmd p = 0.001"}, apart)
    assert {r["status"] for r in labels(tables, [seen], grown, standing=withdrawn)} == {"needs_review"}
