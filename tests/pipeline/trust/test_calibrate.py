from __future__ import annotations

import numpy as np
import pytest

from pipeline import calibration
from pipeline.trust import Gold, calibrate


def at(x: float) -> tuple[float, float, float, float]:
    return (x, 0, x + 10, 10)


def boxes(n: int, overconfident: bool, seed: int = 0) -> tuple[list, list]:
    """One box an image, scored in [0, 1]; it is right with that probability, or with half of it."""
    generator = np.random.default_rng(seed)
    score = generator.random(n)
    right = generator.random(n) < score * (0.5 if overconfident else 1.0)
    truth = [(f"g{k:04d}", "cat", at(0)) for k in range(n)]
    return [(f"g{k:04d}", "cat", at(0 if right[k] else 500), float(score[k])) for k in range(n)], truth


def test_an_overconfident_labeller_is_brought_down(tables) -> None:
    seen, truth = boxes(600, overconfident=True)
    gold = Gold([t[0] for t in truth])
    made = calibrate(tables.boxes(seen), tables.truth(truth), gold, 0.5, ["cat"], "detection")
    (row,) = made["calibration"].to_pylist()
    assert row["class_name"] == "all" and row["answers"] == 600 and row["method"] != "raw"
    assert row["brier"] < row["brier_raw"] and row["error"] < row["error_raw"] / 2
    learnt = calibration.Map(row["method"], np.array(row["x"]), np.array(row["y"]))
    assert learnt(np.array([0.8])) == pytest.approx([0.4], abs=0.1)
    curves = made["reliability"].to_pylist()
    assert {c["curve"] for c in curves} == {"reliability", "calibrated"} and {c["split"] for c in curves} == {"gold"}


def test_a_map_is_kept_only_if_it_helps(tables) -> None:
    seen, truth = boxes(40, overconfident=True)
    made = calibrate(tables.boxes(seen), tables.truth(truth), Gold([t[0] for t in truth]), 0.5, ["cat"], "detection")
    assert made["calibration"]["method"].to_pylist() == ["raw"]
    assert set(made["reliability"]["curve"].to_pylist()) == {"reliability"}


def test_classes_with_answers_enough_have_maps_of_their_own(tables) -> None:
    cats, truth = boxes(300, overconfident=True)
    dogs, others = boxes(90, overconfident=False, seed=1)
    dogs, others = [("h" + r[0], "dog", *r[2:]) for r in dogs], [("h" + r[0], "dog", *r[2:]) for r in others]
    birds = [("hg0000", "bird", at(0), 0.5)]
    gold = Gold([t[0] for t in truth + others])
    found = tables.boxes(cats + dogs + birds), tables.truth(truth + others)
    made = calibrate(*found, gold, 0.5, ["cat", "dog", "bird"], "detection")
    assert {r["class_name"]: r["answers"] for r in made["calibration"].to_pylist()} == {
        "all": 391,
        "cat": 300,
        "dog": 90,
    }


def test_nothing_said_nothing_made(tables) -> None:
    made = calibrate(tables.boxes([]), tables.truth([]), Gold(["g"]), 0.5, ["cat"], "detection")
    assert made["calibration"].num_rows == made["reliability"].num_rows == 0
