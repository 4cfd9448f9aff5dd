from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binomtest

from pipeline.config import TrustConfig
from pipeline.trust import Gold, grade, other_targets

BOX = TrustConfig(target=0.8, delta=0.1, unit="box")
DESIGN = [f"d{k:02d}" for k in range(30)]


def at(x: float) -> tuple[float, float, float, float]:
    return (x, 0, x + 10, 10)


def row_of(tables: Any, seen: list, truth: list, config: TrustConfig = BOX, **more: Any) -> dict[str, Any]:
    """The row of 'cat' on gold image(s) named g…, the design images repeating the scores."""
    gold = sorted({r[0] for r in truth} | {r[0] for r in seen})
    scores = [r[3] for r in seen]
    design = [(DESIGN[k % 30], "cat", at(20 * k), s) for k, s in enumerate(scores)]
    given = Gold(gold, DESIGN, **more)
    table = grade(tables.boxes(seen + design), tables.truth(truth), given, config, ["cat"], producers=["m@1#0"])
    rows = [r for r in table.to_pylist() if r["slice"] == "all"]
    assert len(rows) == 1
    return rows[0]


def test_certified_down_to_where_it_goes_wrong(tables) -> None:
    truth = [("g", "cat", at(20 * k)) for k in range(120)]
    seen = [("g", "cat", at(20 * k), 0.9 - 0.001 * k) for k in range(100)]
    seen += [("g", "cat", at(9000 + 20 * k), 0.3 - 0.001 * k) for k in range(100)]
    row = row_of(tables, seen, truth)
    assert row["certified"] and 0.2 < row["threshold"] < 0.3 and row["certificate"] and row["more_gold"] is None
    accepted = sum(s[3] >= row["threshold"] for s in seen)
    assert row["accepted"] == accepted and row["precision"] == pytest.approx(100 / accepted)
    low = binomtest(100, accepted, alternative="greater").proportion_ci(0.9).low
    assert row["precision_low"] == pytest.approx(low, abs=1e-6) and low >= 0.8
    assert row["recall"] == pytest.approx(100 / 120) and row["coverage"] == pytest.approx(accepted / 200)
    recall = binomtest(100, 120, alternative="less").proportion_ci(0.9).high
    assert row["recall_high"] == pytest.approx(recall, abs=1e-6)
    assert (row["gold"], row["candidates"], row["units"], row["unit"], row["most"]) == (120, 200, 1, "box", None)
    assert f"{100} of {accepted} right" in row["note"] and row["note"].startswith("certified above 80%")


def test_too_little_gold_says_how_much_more(tables) -> None:
    """0.8 ** 11 < 0.1 < 0.8 ** 10: eleven right answers are enough, nine are not."""
    truth = [(f"g{k}", "cat", at(0)) for k in range(9)]
    row = row_of(tables, [(*t, 0.5) for t in truth], truth)
    assert row["threshold"] is None and not row["certified"] and row["certificate"] is None
    assert row["recall"] == row["coverage"] == 0 and row["precision"] == 1
    ten = [(f"g{k}", "cat", at(0)) for k in range(10)]
    row = row_of(tables, [(*t, 0.5) for t in ten], ten)
    assert row["more_gold"] in (1, 2, 3) and f"about {row['more_gold']} more gold images" in row["note"]
    enough = [(f"g{k}", "cat", at(0)) for k in range(20)]
    assert row_of(tables, [(*t, 0.5) for t in enough], enough)["certified"]


def test_what_more_gold_cannot_mend(tables) -> None:
    truth = [("g", "cat", at(20 * k)) for k in range(20)]
    wrong = row_of(tables, [("g", "cat", at(5000 + 20 * k), 0.5) for k in range(40)], truth)
    assert wrong["more_gold"] is None and "no score is clearly better" in wrong["note"]
    silent = row_of(tables, [], truth)
    assert silent["precision"] is None and "found nothing" in silent["note"] and not silent["certified"]
    nothing = row_of(tables, [("g", "cat", at(0), 0.5)], [])
    assert nothing["recall"] is None and "no object" in nothing["note"]


def clustered(images: int, each: int, wrong: int) -> tuple[list, list]:
    """`each` boxes an image, all of them right, but for `wrong` images where none is."""
    truth = [(f"g{i:03d}", "cat", at(20 * k)) for i in range(images) for k in range(each)]
    seen = [
        (f"g{i:03d}", "cat", at(20 * k + (5000 if i < wrong else 0)), 0.5) for i in range(images) for k in range(each)
    ]
    return seen, truth


def test_the_image_is_the_unit(tables) -> None:
    """Forty boxes of one image are one observation, not forty."""
    seen, truth = clustered(8, 10, 0)
    assert row_of(tables, seen, truth)["certified"]
    row = row_of(tables, seen, truth, BOX.model_copy(update={"unit": "image"}))
    assert not row["certified"] and row["units"] == 8 and row["unit"] == "image"
    seen, truth = clustered(60, 3, 0)
    row = row_of(tables, seen, truth, BOX.model_copy(update={"unit": "image"}))
    assert row["certified"] and row["most"] == 6 and row["precision_low"] > 0.8 and "bets on images" in row["method"]
    where = {f"g{i:03d}": f"p{i % 2}" for i in range(60)} | dict(zip(DESIGN, DESIGN, strict=True))
    row = row_of(tables, seen, truth, BOX.model_copy(update={"unit": "location"}), locations=where)
    assert not row["certified"] and row["units"] == 2


def test_of_a_crowded_image_only_the_best_are_accepted(tables) -> None:
    """Design images have six answers at most; one gold image has ten, of which the best six are right."""
    seen, truth = clustered(60, 3, 0)
    truth += [("crowd", "cat", at(20 * k)) for k in range(6)]
    crowd = [("crowd", "cat", at(20 * k), 0.5 - 0.01 * k) for k in range(6)]
    crowd += [("crowd", "cat", at(900 + 20 * k), 0.4 - 0.01 * k) for k in range(4)]
    design = [(DESIGN[k % 30], "cat", at(20 * k), 0.5) for k in range(180)]
    gold = Gold(sorted({r[0] for r in truth}), DESIGN)
    config = BOX.model_copy(update={"unit": "image"})
    row = grade(tables.boxes(seen + crowd + design), tables.truth(truth), gold, config, ["cat"]).to_pylist()[0]
    assert row["certified"] and row["most"] == 6 and (row["accepted"], row["candidates"]) == (186, 190)
    assert row["precision"] == 1 and row["recall"] == 1


def test_without_other_images_a_fifth_of_gold_lays_the_grid(tables) -> None:
    seen, truth = clustered(100, 1, 0)
    gold = Gold(sorted({r[0] for r in truth}))
    row = grade(tables.boxes(seen), tables.truth(truth), gold, BOX, ["cat"]).to_pylist()[0]
    assert row["certified"] and 70 <= row["units"] <= 90 and "a fifth of gold" in row["method"]


def test_slices_are_graded_where_gold_could_certify_them(tables) -> None:
    seen, truth = clustered(60, 1, 20)
    members = {"bad": [f"g{i:03d}" for i in range(20)], "good": [f"g{i:03d}" for i in range(20, 60)], "tiny": ["g059"]}
    design = [(d, "cat", at(0), 0.5) for d in DESIGN]
    gold = Gold(sorted({r[0] for r in truth}), DESIGN, slices=tables.members(members))
    table = grade(tables.boxes(seen + design), tables.truth(truth), gold, BOX, ["cat"]).to_pylist()
    assert {r["slice"]: r["certified"] for r in table} == {"all": False, "bad": False, "good": True}


def test_tags_are_graded_on_probability_and_exactly(tables) -> None:
    ids = [f"i{k:03d}" for k in range(200)]
    rows = [(i, "a", None, 0.3) for i in ids]
    probability = [(k + 1) / 200 for k in range(200)]  # right from 0.5 up
    tags = tables.boxes(rows, name="tags", probability=probability, rank=[1] * 200)
    truth = tables.truth([(i, "a" if k >= 99 else "b", None) for k, i in enumerate(ids)])
    a, b = grade(tags, truth, Gold(ids), TrustConfig(), ["a", "b"], "classification").to_pylist()
    assert a["certified"] and 0.4 < a["threshold"] < 0.55 and a["most"] == 1 and "exact binomial" in a["method"]
    assert b["candidates"] == 0 and not b["certified"]


def test_equal_gold_has_an_equal_certificate_in_any_order(tables) -> None:
    seen, truth = clustered(60, 2, 3)
    gold = Gold(sorted({r[0] for r in truth}))
    first = grade(tables.boxes(seen), tables.truth(truth), gold, BOX, ["cat"])
    turned = Gold(gold.images[::-1])
    second = grade(tables.boxes(seen[::-1]), tables.truth(truth[::-1]), turned, BOX, ["cat"])
    assert first.equals(second) and first["certificate"][0].is_valid
    other = grade(tables.boxes(seen), tables.truth(truth), Gold(gold.images[1:]), BOX, ["cat"])
    assert other["certificate"][0].as_py() != first["certificate"][0].as_py()


def test_no_gold_no_rows_no_harm(tables) -> None:
    none: pa.Table = grade(tables.boxes([]), tables.truth([]), Gold([]), TrustConfig(), ["cat"], producers=["m@1#0"])
    assert none.num_rows == 1 and not none["certified"][0].as_py() and none["units"][0].as_py() == 0
    assert grade(tables.boxes([]), tables.truth([]), Gold(["g"]), TrustConfig(), ["cat"]).num_rows == 0
    assert not np.isnan([v for v in none.to_pylist()[0].values() if isinstance(v, float)]).any()


def test_a_higher_target_has_a_higher_threshold(tables) -> None:
    generator = np.random.default_rng(0)
    score = generator.random(600)
    right = generator.random(600) < 1 / (1 + np.exp(-12 * (score - 0.3)))
    truth = [(f"g{k:03d}", "cat", at(0)) for k in range(600)]
    seen = [(f"g{k:03d}", "cat", at(0 if right[k] else 500), float(score[k])) for k in range(600)]
    config = TrustConfig(target=0.85, targets=[0.8, 0.95, 0.999])
    gold = Gold([t[0] for t in truth], slices=tables.members({"some": ["g000"]}))
    made = other_targets(tables.boxes(seen), tables.truth(truth), gold, config, ["cat"], "detection").to_pylist()
    assert [r["target"] for r in made] == pytest.approx([0.8, 0.85, 0.95, 0.999])
    assert [r["certified"] for r in made] == [True, True, True, False]
    thresholds = [r["threshold"] for r in made[:3]]
    assert thresholds == sorted(thresholds) and thresholds[0] < thresholds[2]
