from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from pipeline import failures, schema
from pipeline import masks as rle
from pipeline.failures import facts


def evaluation(threshold: float | None, classes: list[str], model: str = "m@1#0") -> pa.Table:
    rows = [
        {
            "model": model,
            "split": "test",
            "slice": "all",
            "class_name": c,
            "metric": "threshold",
            "value": threshold,
            "support": 1,
            "images": 1,
        }
        for c in classes
    ]
    return schema.table("evaluation").from_rows(rows)


def label_errors(rows: list[dict]) -> pa.Table:
    dull = {"model": "doubter@1#0", "batch": "b", "suspicion": 0.6, "score": 0.9}
    return schema.table("label_errors").from_rows([dull | r for r in rows])


def find(
    tables,
    seen: pa.Table,
    truth: pa.Table,
    ids: list[str],
    classes: list[str],
    threshold: float | None = 0.5,
    task: str = "detection",
    doubts: list[dict] | None = None,
    masks: pa.Table | None = None,
) -> list[dict]:
    return failures.find(
        seen,
        truth,
        tables.images(ids),
        tables.quality(ids, [0.5] * len(ids)),
        tables.splits(ids),
        evaluation(threshold, classes),
        label_errors(doubts or []),
        schema.table("masks").empty() if masks is None else masks,
        [],
        np.zeros((0, 4)),
        tables.config(classes, task=task),
    ).to_pylist()


def test_every_kind_of_error(tables) -> None:
    truth = tables.truth(
        [
            ("x", "cat", (10, 10, 30, 30)),
            ("x", "dog", (50, 50, 70, 70)),
            ("x", "cat", (10, 60, 30, 80)),
            ("x", "cat", (80, 5, 95, 20)),
        ],
        ignore=[False, False, False, True],
    )
    seen = tables.boxes(
        [
            ("x", "cat", (10, 10, 30, 30), 0.9),
            ("x", "cat", (11, 10, 31, 30), 0.8),  # again: duplicate
            ("x", "cat", (50, 50, 70, 71), 0.8),  # a dog: classification
            ("x", "cat", (20, 60, 40, 80), 0.7),  # half beside: localisation, IoU 1/3
            ("x", "dog", (10, 35, 20, 45), 0.6),  # nothing there: background
            ("x", "cat", (82, 8, 90, 15), 0.6),  # in an ignore region: no error
            ("x", "cat", (40, 5, 50, 15), 0.4),  # below the threshold: not said
        ]
    )
    rows = find(tables, seen, truth, ["x", "y"], ["cat", "dog"])
    by_id = {r["annotation_id"]: r for r in rows}
    ids = seen.column("annotation_id").to_pylist()
    errors = [by_id[i]["error"] for i in ids[1:5]]
    assert errors == ["duplicate", "classification", "localisation", "background"]
    assert Counter(r["error"] for r in rows)["missed"] == 2 and len(rows) == 6
    missed = {r["class_name"]: r for r in rows if r["error"] == "missed"}
    assert missed["cat"]["iou"] == pytest.approx(1 / 3) and missed["cat"]["score"] is None
    assert by_id[ids[3]]["score"] == pytest.approx(0.7) and by_id[ids[3]]["iou"] == pytest.approx(1 / 3)
    assert by_id[ids[2]]["confused_with"] == "dog" and "confused" in by_id[ids[2]]["causes"]
    assert missed["dog"]["confused_with"] == "cat" and missed["cat"]["confused_with"] is None
    # Of two cats one is found, and first: AP 51/101. Were the other's box right, it would be the fourth of four.
    assert by_id[ids[3]]["cost"] == pytest.approx(50 / 101 * 2 / 4 / 2)
    assert by_id[ids[1]]["cost"] == 0  # the duplicate comes after all that is right
    assert by_id[ids[2]]["cost"] == pytest.approx(1 / 2)  # the dog, found at last
    assert missed["cat"]["cost"] == pytest.approx((1 - 51 / 101) / 2)
    assert missed["cat"]["area"] == 400 and missed["cat"]["neighbours"] == 0


def test_evidence(tables) -> None:
    ids = ["x", "y", *(f"t{k:02d}" for k in range(20))]
    truth = tables.truth(
        [("x", "cat", (0, 20, 60, 80)), ("x", "cat", (10, 20, 70, 80)), ("y", "cat", (40, 40, 50, 50))],
    )
    generator = np.random.default_rng(0)
    vectors = np.array([1.0, 0, 0]) + generator.normal(0, 0.05, (22, 3))
    vectors[1] = [0, 1, 0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = failures.find(
        tables.boxes([]),
        truth,
        tables.images(ids),
        tables.quality(ids, [0.1] * 22, [["dark", "blurry"]] + [[]] * 21),
        pa.concat_tables([tables.splits(ids[:2]), tables.splits(ids[2:], "train")]),
        evaluation(0.5, ["cat"]),
        label_errors([]),
        schema.table("masks").empty(),
        ids,
        vectors,
        tables.config(["cat"]),
        producers=["m@1#0"],
    ).to_pylist()
    causes = [set(r["causes"]) for r in rows]
    assert causes == [
        {"crowded", "truncated", "dark", "blurry"},
        {"crowded", "dark", "blurry"},
        {"small", "unlike_training"},
    ]
    assert [r["neighbours"] for r in rows] == [1, 1, 0] and rows[0]["brightness"] == pytest.approx(0.1)
    similarity = vectors[2:] @ vectors[0]
    assert rows[0]["nearest"] == [ids[2 + k] for k in np.argsort(-similarity)[:5]]
    assert rows[0]["distance"] == pytest.approx(1 - similarity.max(), abs=1e-6)


def box(corners: tuple[float, ...]) -> dict[str, float]:
    return dict(zip(schema.CORNERS, corners, strict=True))


def test_a_failure_that_is_none_if_the_label_is_wrong_says_so(tables) -> None:
    truth = tables.truth(
        [("x", "cat", (10, 10, 30, 30)), ("x", "dog", (50, 50, 70, 70)), ("x", "cat", (80, 80, 90, 90))]
    )
    moved, renamed, _ = truth["annotation_id"].to_pylist()
    places = {
        "beside": (20, 10, 40, 30),
        "renamed": (50, 50, 70, 70),
        "new": (10, 60, 30, 80),
        "alone": (60, 5, 80, 25),
    }
    seen = tables.boxes([("x", "cat", b, 0.9) for b in places.values()])

    def doubt(label: str, error: str, corners: tuple[float, ...], **more: object) -> dict:
        named = {"class_name": "cat", "suggested": "cat", "image_id": "x", "annotation_id": label, "error": error}
        return named | box(corners) | more

    doubts = [
        doubt(moved, "badly_located", (21, 10, 41, 30)),
        doubt(renamed, "swapped", places["renamed"], class_name="dog"),
        doubt("o1", "overlooked", (10, 61, 30, 81)),
        doubt("o2", "overlooked", places["new"], suspicion=0.8, model="surer@1#0"),
        # None of these is what `alone` says.
        doubt("o3", "overlooked", places["alone"], suggested="dog"),
        doubt("o4", "overlooked", places["alone"], image_id="y"),
        doubt("o5", "badly_outlined", places["alone"]),
        doubt("o6", "overlooked", (71, 5, 91, 25)),
    ]
    rows = find(tables, seen, truth, ["x", "y"], ["cat", "dog"], doubts=doubts)
    by_place = {tuple(r[c] for c in schema.CORNERS): r for r in rows if r["error"] != "missed"}
    excused = {name for name, b in places.items() if "label_error" in by_place[b]["causes"]}
    assert excused == {"beside", "renamed", "new"}
    assert by_place[places["new"]]["suspicion"] == 0.8 and by_place[places["new"]]["doubted_by"] == "surer@1#0"
    assert by_place[places["alone"]]["suspicion"] is by_place[places["alone"]]["doubted_by"] is None
    missed = {r["annotation_id"] for r in rows if r["error"] == "missed" and "label_error" in r["causes"]}
    assert missed == {moved, renamed}


def test_a_suggestion_excuses_its_surest_detection_and_no_duplicate(tables) -> None:
    truth = tables.truth([("x", "cat", (10, 10, 30, 30))])
    wrong = {
        "right": (10, 10, 30, 30),
        "duplicate": (11, 10, 31, 30),
        "less": (50, 50, 70, 70),
        "more": (52, 50, 72, 70),
    }
    scores = (0.9, 0.8, 0.5, 0.6)
    seen = tables.boxes([("x", "cat", b, s) for b, s in zip(wrong.values(), scores, strict=True)])
    doubts = [
        {"class_name": "cat", "suggested": "cat", "image_id": "x", "annotation_id": f"o{k}", "error": error} | box(at)
        for k, (at, error) in enumerate(
            [
                (wrong["less"], "overlooked"),
                (wrong["more"], "overlooked"),  # another model's, of the same thing
                (wrong["duplicate"], "badly_located"),
            ]
        )
    ]
    rows = find(tables, seen, truth, ["x"], ["cat"], doubts=doubts)
    found = {round(r["score"], 3): (r["error"], "label_error" in r["causes"]) for r in rows}
    assert found == {0.8: ("duplicate", False), 0.6: ("background", True), 0.5: ("background", False)}


def test_masks_that_fit_badly_although_the_box_is_right(tables) -> None:
    disc, sliver = np.zeros((100, 100), bool), np.zeros((100, 100), bool)
    disc[10:50, 10:50], sliver[10:50, 10:22] = True, True
    places = [("x", "cat", (10, 10, 50, 50)), ("y", "cat", (10, 10, 50, 50)), ("z", "cat", (10, 10, 50, 50))]
    truth = tables.truth(places, mask=[rle.encode(disc), rle.encode(disc), None])
    seen = tables.boxes([*((*p, 0.9) for p in places), ("x", "cat", (60, 60, 90, 90), 0.8)])
    drawn = [rle.encode(m) for m in (sliver, disc, sliver, sliver)]
    masks = schema.table("masks").from_columns(
        {"mask": drawn, "producer": ["sam@1#0"] * 4, "area": [1] * 4, "score": [0.9] * 4}
        | {c: seen[c] for c in ("annotation_id", "image_id", "batch")}
    )
    label, found = (t["annotation_id"][0].as_py() for t in (truth, seen))
    doubt = {"image_id": "x", "annotation_id": label, "class_name": "cat", "suggested": "cat"}
    doubts = [doubt | {"error": "badly_outlined"}, doubt | {"error": "swapped", "suspicion": 0.9}]
    rows = find(tables, seen, truth, ["x", "y", "z"], ["cat"], doubts=doubts, masks=masks)
    assert [r["error"] for r in rows] == ["background", "outline"]
    row = rows[1]
    assert row["annotation_id"] == found and row["iou"] == pytest.approx(12 / 40) and row["cost"] is None
    assert row["causes"] == ["label_error"] and row["suspicion"] == 0.6
    without = find(tables, seen, truth, ["x", "y", "z"], ["cat"])
    assert [r["error"] for r in without] == ["background"]


def test_without_a_threshold_everything_is_missed(tables) -> None:
    truth, seen = tables.truth([("x", "cat", (0, 0, 9, 9))]), tables.boxes([("x", "cat", (0, 0, 9, 9), 0.9)])
    assert [r["error"] for r in find(tables, seen, truth, ["x"], ["cat"], None)] == ["missed"]
    assert find(tables, seen, truth, ["x"], ["cat"], 0.5) == []


def test_wrong_classes(tables) -> None:
    truth = tables.truth([("x", "cat", None), ("y", "cat", None), ("z", "dog", None)])
    seen = tables.boxes([("x", "cat", None, 0.4), ("x", "dog", None, 0.6), ("y", "cat", None, 0.9)])
    rows = find(tables, seen, truth, ["x", "y", "z"], ["cat", "dog"], task="classification")
    assert [(r["image_id"], r["error"], r["class_name"]) for r in rows] == [
        ("x", "classification", "cat"),
        ("z", "missed", "dog"),
    ]
    assert rows[0]["score"] == pytest.approx(0.6) and rows[0]["x1"] is None
    assert rows[0]["confused_with"] == "dog" and rows[1]["confused_with"] is None
    assert [r["cost"] for r in rows] == pytest.approx([1 / 3, 1 / 3])
    assert [r["causes"] for r in rows] == [["confused"], []]


def test_a_wrong_class_that_is_suggested_instead_of_the_label_says_so(tables) -> None:
    truth = tables.truth([(i, "cat", None) for i in "xyz"])
    seen = tables.boxes([("x", "dog", None, 0.9), ("y", "dog", None, 0.9)])
    about = {"class_name": "cat", "error": "class"}
    doubts = [
        about | {"image_id": i, "annotation_id": label, "suggested": s, "suspicion": p}
        for (i, label), s, p in zip(
            zip("xyzx", truth["annotation_id"].to_pylist() * 2, strict=False),
            ("dog", "cow", "dog", "dog"),
            (0.6, 0.7, 0.8, 0.9),
            strict=True,
        )
    ]
    doubts[3]["model"] = "surer@1#0"
    rows = find(tables, seen, truth, ["x", "y", "z"], ["cat", "dog", "cow"], task="classification", doubts=doubts)
    assert [(r["image_id"], "label_error" in r["causes"]) for r in rows] == [("x", True), ("y", False), ("z", False)]
    assert (rows[0]["suspicion"], rows[0]["doubted_by"]) == (0.9, "surer@1#0")


def test_most_similar_is_brute_force_in_blocks(monkeypatch) -> None:
    generator = np.random.default_rng(0)
    points, reference = (generator.normal(size=(n, 8)).astype(np.float32) for n in (30, 101))
    monkeypatch.setattr(facts, "_ROWS", 7)
    for columns in (3, 10, 1000):
        monkeypatch.setattr(facts, "_COLUMNS", columns)
        which, cosines = facts.most_similar(points, reference, 5)
        expected = np.argsort(-(points @ reference.T), axis=1)[:, :5]
        np.testing.assert_array_equal(which, expected)
        np.testing.assert_allclose(cosines, np.take_along_axis(points @ reference.T, expected, 1), rtol=1e-5)
    assert facts.most_similar(points, reference[:3], 5)[0].shape == (30, 3)
