from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline import drift, schema
from pipeline.config import DriftConfig
from pipeline.drift import sides
from tests.pipeline.curated_rows import image_rows, quality_rows, unit

CONFIG = DriftConfig(permutations=199, most_permutations=20_000, alpha=0.05)
ALWAYS = {
    "embedding_mmd", "embedding_novelty", "embedding_classifier", "embedding_ks", "appearance_novelty",
    "appearance_ks", "score_ks", "count_ks", "label_mix", "score_mix", "slice_mix",
}  # fmt: skip


def examined(here: int, there: int, shifted: bool, **more: Any) -> dict[str, pa.Table]:
    rng = np.random.default_rng(0)
    ids = [f"i{k:04d}" for k in range(here + there)]
    new = np.arange(here + there) < here
    change = new & shifted
    images = image_rows(ids, location=ids, batch=["new"] * here + ["old"] * there)
    quality = quality_rows(ids, brightness=(rng.normal(0.5, 0.02, len(ids)) + 0.3 * change).tolist(),
                           colourfulness=rng.normal(20, 3, len(ids)).tolist())  # fmt: skip
    vectors = unit(rng.normal(size=(len(ids), 8)) + 3.0 * change[:, None] * np.eye(8)[0])
    classes = np.where(rng.random(len(ids)) < 0.3 + 0.6 * change, "cat", "dog")
    boxes = schema.annotations(
        "detections", image_ids=ids, batch="b", producer="m", classes=classes.tolist(),
        boxes=np.zeros((len(ids), 4)), scores=np.clip(rng.uniform(0.2, 0.6, len(ids)) + 0.3 * change, 0, 1).tolist(),
    )  # fmt: skip
    slices = {"first": [i for i, c in zip(ids, change, strict=True) if c or rng.random() < 0.3]}
    return drift.examine("new", images, quality, ids, CONFIG, encoder="e", ids=ids, vectors=vectors,
                         predictions=boxes, slices=slices, **more)  # fmt: skip


def test_a_shift_of_everything_is_found_by_every_test_of_it_and_explained() -> None:
    found = examined(40, 80, shifted=True)
    assert set(found) == set(drift.TABLES)
    tests = {r["test"]: r for r in found["drift"].to_pylist()}
    assert set(tests) == ALWAYS
    assert {t for t, r in tests.items() if not r["drifted"]} == {
        "count_ks",
        "embedding_novelty",
    }  # a part of the sphere is no new place
    assert tests["embedding_classifier"]["effect"] == tests["embedding_classifier"]["statistic"] > 0.9
    assert tests["embedding_mmd"]["effect"] is not None and 0 < tests["embedding_mmd"]["detectable"] < 8
    assert tests["label_mix"]["effect"] > 0.25 and tests["label_mix"]["unit"] == "PSI"
    looks = found["drift_dimensions"].filter(pc.equal(found["drift_dimensions"].column("subject"), "quality"))
    assert min(looks.to_pylist(), key=lambda r: r["p_value"])["dimension"] == "brightness"
    assert {r["mix"] for r in found["drift_shares"].to_pylist()} == {"labels", "scores", "slices"}
    assert found["drift_images"].num_rows == 40
    region = found["drift_regions"].to_pylist()[0]
    assert region["share"] > region["reference_share"] and region["p_value"] < 0.05
    for name, rows in found.items():
        assert schema.table(name).duplicate_keys(rows) == 0


def test_without_a_shift_next_to_nothing_is_found() -> None:
    found = examined(40, 80, shifted=False)
    tests = {r["test"]: r for r in found["drift"].to_pylist()}
    assert set(tests) == ALWAYS and sum(r["drifted"] for r in tests.values()) <= 1
    assert examined(40, 80, shifted=False)["drift"].equals(found["drift"])


@pytest.mark.parametrize("there", [0, 1, 3])
def test_little_to_compare_with_is_told_not_fatal(there: int) -> None:
    tests = {r["test"]: r for r in examined(3, there, shifted=False)["drift"].to_pylist()}
    assert set(tests) == ALWAYS and tests["embedding_classifier"]["p_value"] is None
    assert all(r["note"] for r in tests.values())
    if not there:
        assert all(r["p_value"] is None for r in tests.values())


def test_no_images_and_no_answers() -> None:
    empty = schema.table("images").empty()
    found = drift.examine("new", empty, schema.table("quality").empty(), [], CONFIG, encoder="e", ids=[],
                          vectors=np.zeros((0, 2), np.float32), predictions=schema.table("detections").empty(),
                          slices={})  # fmt: skip
    assert found["drift"].column("p_value").null_count == found["drift"].num_rows


def test_of_too_many_images_only_what_needs_every_pair_is_asked_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = examined(40, 80, shifted=True)
    monkeypatch.setattr(sides, "MAX_IMAGES", 30)
    found = examined(40, 80, shifted=True)
    exact, rows = ({r["test"]: r for r in t["drift"].to_pylist()} for t in (whole, found))
    few = {"embedding_novelty", "embedding_classifier", "appearance_novelty"}
    for test, row in rows.items():
        assert (row["images"], row["reference_images"]) == ((30, 30) if test in few else (40, 80)), test
        assert ("a sample of 40 and 80 images" in row["note"]) == (test in few)
        if test not in few | {"embedding_mmd"}:
            assert row == exact[test]
    mmd = rows["embedding_mmd"]
    assert mmd["note"].endswith("by random features") and mmd["drifted"]
    assert mmd["statistic"] == pytest.approx(exact["embedding_mmd"]["statistic"], rel=0.1)
    for name in ("effect", "detectable"):  # of all images and of this size, not of the sample
        assert mmd[name] == pytest.approx(exact["embedding_mmd"][name], rel=1e-6)
    assert found["drift_dimensions"].equals(whole["drift_dimensions"])
    assert found["drift_shares"].equals(whole["drift_shares"])
    regions, images = found["drift_regions"], found["drift_images"]
    assert (sum(regions["images"].to_pylist()), sum(regions["reference_images"].to_pylist())) == (40, 80)
    assert images.num_rows == 40 and images.column("distance").null_count == 10
    assert sum(regions["contribution"].to_pylist()) == pytest.approx(1)


def test_of_too_many_windows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many images as fit, but more vectors: those left out count in the mixture all the same."""
    monkeypatch.setattr(sides, "MAX_VECTORS", 50)
    rows = {r["test"]: r for r in examined(40, 80, shifted=True)["drift"].to_pylist()}
    assert rows["embedding_mmd"]["note"].endswith("by random features")
    assert (rows["embedding_mmd"]["images"], rows["embedding_mmd"]["reference_images"]) == (40, 80)
    assert (rows["embedding_novelty"]["images"], rows["embedding_novelty"]["reference_images"]) == (40, 50)
    assert rows["appearance_novelty"]["reference_images"] == 80
