from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline import slices
from pipeline.config import EvaluationConfig, SliceConfig
from pipeline.ids import seed
from pipeline.slices.columns import columns_of
from pipeline.slices.discovered import discovered, embedded
from pipeline.slices.honest import confirmed
from pipeline.slices.searched import searched

MODEL = "m@1#0"


def clustered(per_cluster: int, clusters: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    centres = np.eye(clusters, 16)
    label = np.repeat(np.arange(clusters), per_cluster)
    vectors = centres[label] + generator.normal(0, 0.05, (len(label), 16))
    ids = [f"{seed('image', k):08x}" for k in range(len(label))]
    return ids, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), label


def errors_of(ids: list[str], error: np.ndarray) -> pa.Table:
    return pa.table({"model": pa.array([MODEL] * len(ids), pa.string()), "image_id": ids, "error": error})


def facts_of(ids: list[str], **columns: object) -> pa.Table:
    return pa.table({"image_id": pa.array(ids, pa.string()), "location": pa.array(ids, pa.string()), **columns})


def made(tables, ids, error, facts=None, vectors=None, embedded=(), table="slices", **config) -> pa.Table:
    none = np.zeros((0, 4))
    members = tables.members(config.pop("members", {}))
    told = [next((s.where for s in config.get("slices", []) if s.name == n), "") for n in members["slice"].to_pylist()]
    members = members.append_column("definition", pa.array(told, pa.string()))
    settings = EvaluationConfig(**({"discover": 0, "search": 0} | config))
    facts = facts_of(ids) if facts is None else facts
    return slices.slice_table(
        members, errors_of(ids, error), facts, embedded, none if vectors is None else vectors, settings
    )[table]


def test_a_planted_weak_cluster_is_found_and_confirmed(tables) -> None:
    ids, vectors, label = clustered(100, 4)
    generator = np.random.default_rng(2)
    error = (generator.random(len(ids)) < np.where(label == 2, 0.6, 0.1)).astype(float)
    table = made(tables, ids, error, vectors=vectors, embedded=ids, discover=4)
    found = [r for r in table.to_pylist() if r["confirmed"]]
    assert len(found) == 1 and found[0]["kind"] == "discovered" and found[0]["p_value"] < 0.01
    planted = {i for i, c in zip(ids, label, strict=True) if c == 2}
    listed = found[0]["members"]
    assert len(planted & set(listed)) > 0.7 * len(planted) and len(set(listed) - planted) < 0.05 * len(listed)
    assert found[0]["value"] > 0.4 > 0.2 > found[0]["rest"]
    # Those that err come first.
    wrong = dict(zip(ids, error, strict=True))
    assert [wrong[i] for i in listed] == sorted((wrong[i] for i in listed), reverse=True)
    # The order of images changes nothing.
    order = generator.permutation(len(ids))
    shuffled = [ids[k] for k in order]
    again = made(tables, shuffled, error[order], vectors=vectors, embedded=ids, discover=4)
    assert again.equals(table)


def test_a_planted_conjunction_of_facts_is_found_and_confirmed(tables) -> None:
    generator = np.random.default_rng(0)
    ids = [f"{k:04d}" for k in range(600)]
    site, dark = generator.choice(list("abc"), 600), generator.random(600)
    planted = (site == "b") & (dark < 0.25)
    error = (generator.random(600) < np.where(planted, 0.7, 0.1)).astype(float)
    facts = facts_of(ids, site=site, brightness=dark)
    # Facts may name an image twice, and images that were not held out.
    facts = pa.concat_tables([facts, facts.slice(5, 9), facts_of(["x"], site=["a"], brightness=[0.1])])
    table = made(tables, ids, error, facts, search=5)
    worst = next(r for r in table.to_pylist() if r["confirmed"])
    assert worst["kind"] == "searched" and worst["definition"].startswith("site = 'b' AND brightness < 0.2")
    assert len(set(worst["members"]) & {i for i, p in zip(ids, planted, strict=True) if p}) > 0.9 * planted.sum()
    # Its definition selects its members: it can be declared.
    chosen = slices.declared(facts, [SliceConfig(name="weak", where=worst["definition"])])
    weak = chosen.filter(pa.compute.equal(chosen["slice"], "weak"))["image_id"].to_pylist()
    assert sorted(set(weak) & set(ids)) == worst["members"]


def test_slices_that_say_nearly_the_same_are_listed_once(tables) -> None:
    generator = np.random.default_rng(0)
    ids = [f"{k:04d}" for k in range(400)]
    site = generator.choice(list("abcd"), 400)
    error = (generator.random(400) < np.where(site == "b", 0.8, 0.1)).astype(float)
    noisy = {f"copy{k}": np.where(generator.random(400) < 0.02, "z", site) for k in range(4)}
    rows = made(tables, ids, error, facts_of(ids, site=site, **noisy), search=5).to_pylist()
    planted = {i for i, s in zip(ids, site, strict=True) if s == "b"}
    assert sum(len(planted & set(r["members"])) > 0.5 * len(planted) for r in rows) == 1


@pytest.mark.parametrize("per_location", [1, 5], ids=["images", "locations"])
def test_errors_by_chance_are_hardly_ever_confirmed(tables, per_location: int) -> None:
    """All slices of a run are one family: declared, searched and discovered ones, of two models.

    With locations of five images that look alike and err together, taking images for independent confirms far more.
    """
    generator = np.random.default_rng(3)
    count = 300 // per_location
    centres = np.eye(5, 16)[generator.integers(0, 5, count)] + generator.normal(0, 0.05, (count, 16))
    vectors = np.repeat(centres, per_location, axis=0) + generator.normal(0, 0.01, (300, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    ids = [f"{seed('image', k):08x}" for k in range(300)]
    values = {f"c{j}": np.repeat(generator.choice(list("abc"), count), per_location) for j in range(6)}
    declared = {v: [i for i, c in zip(ids, values["c0"], strict=True) if c == v] for v in "abc"}
    members = tables.members({"all": ids} | declared)
    members = members.append_column("definition", pa.array([""] * members.num_rows))
    together, alone = (
        pa.table({"image_id": ids, "location": [f"p{k // size}" for k in range(300)], **values})
        for size in (per_location, 1)
    )
    hits = {"together": 0, "alone": 0}
    found = 0
    for _ in range(100):
        chance = np.repeat(generator.beta(0.5, 1.5, (2, count)), per_location, axis=1)
        error = (generator.random((2, 300)) < (chance if per_location > 1 else 0.3)).astype(float)
        errors = pa.table({"model": ["m@1#0"] * 300 + ["n@1#0"] * 300, "image_id": ids * 2, "error": error.ravel()})
        for name, facts in (("together", together), ("alone", alone)):
            table = slices.slice_table(members, errors, facts, ids, vectors, EvaluationConfig())["slices"]
            hits[name] += any(table.column("confirmed").to_pylist())
            found += len(set(table.column("kind").to_pylist())) == 3
    # At most 5 % in expectation; 13 or more of 100 would be as rare as 1 in 600.
    assert found > 100 and hits["together"] < 13
    assert hits["alone"] > 25 or per_location == 1, hits


def buses_that_err() -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Names, vectors, cluster, class and error of images: a model errs on the buses of one of three clusters."""
    ids, vectors, label = clustered(200, 3)
    generator = np.random.default_rng(5)
    said = generator.choice(["car", "bus"], len(ids))
    error = (generator.random(len(ids)) < np.where((label == 1) & (said == "bus"), 0.8, 0.05)).astype(float)
    return ids, vectors, label, said, error


def test_a_region_of_one_class_is_told_from_the_others_there() -> None:
    ids, vectors, label, said, error = buses_that_err()
    images = embedded(ids, ids, vectors, classes={i: [c] for i, c in zip(ids, said, strict=True)})
    errors = errors_of(ids, error).slice(1)  # one image was not measured
    rows = confirmed(discovered(MODEL, errors, images, EvaluationConfig()), EvaluationConfig())
    worst = max(rows, key=lambda r: r["confirmed"])
    assert worst["confirmed"] and "class 'bus'" in worst["definition"]
    truth = dict(zip(ids, zip(label.tolist(), said, strict=True), strict=True))
    assert {truth[i] for i in worst["members"]} == {(1, "bus")} and ids[0] not in worst["members"]


def test_images_that_a_model_has_not_seen_are_left_out() -> None:
    ids = [f"{k:04d}" for k in range(200)]
    site = np.array(list("ab") * 100)
    error = np.where(site == "b", 1.0, 0.0)
    error[:50] = np.nan
    columns = columns_of(pa.table({"site": site}), 5)
    (row,) = confirmed(searched(MODEL, ids, error, columns, ids, EvaluationConfig()), EvaluationConfig())
    assert row["confirmed"] and row["members"] == [i for i, s in zip(ids[50:], site[50:], strict=True) if s == "b"]


def test_images_that_nobody_has_labelled_are_in_weak_slices_too(tables) -> None:
    ids, vectors, label = clustered(100, 4)
    generator = np.random.default_rng(2)
    site = generator.choice(list("abc"), len(ids))
    error = (generator.random(len(ids)) < np.where((label == 2) | (site == "c"), 0.7, 0.05)).astype(float)
    held_out = generator.random(len(ids)) < 0.7
    measured = [i for i, held in zip(ids, held_out, strict=True) if held]
    found = made(
        tables, measured, error[held_out], facts_of(ids, site=site), vectors, ids, "slice_images", search=1, discover=4
    ).to_pylist()
    of_slice = {name: {r["image_id"] for r in found if r["slice"] == name} for name in {r["slice"] for r in found}}
    planted = {"columns": {i for i, s in zip(ids, site, strict=True) if s == "c"}}
    planted["region"] = {i for i, c in zip(ids, label, strict=True) if c == 2}
    for kind, images in planted.items():
        best = max(of_slice, key=lambda name: len(of_slice[name] & images) / len(of_slice[name] | images))
        assert best.startswith(kind)
        beyond = images - set(measured)
        assert len(of_slice[best] & beyond) > 0.7 * len(beyond) > 10
    assert of_slice[best] - images == set() or len(of_slice[best] - images) < 0.05 * len(of_slice[best])


def test_who_belongs_to_a_region_of_one_class() -> None:
    ids, vectors, label, said, error = buses_that_err()
    images = embedded(ids, ids, vectors, classes={i: [c] for i, c in zip(ids, said, strict=True)})
    worst = max(discovered(MODEL, errors_of(ids, error), images, EvaluationConfig()), key=lambda r: -r["p_value"])
    answers = [["bus"], ["car"], ["bus", "car"], [], None]
    there = np.repeat(vectors[label == 1].mean(axis=0, keepdims=True), 5, axis=0)
    assert worst["place"].holds(there, answers).tolist() == [True, False, False, False, True]
    elsewhere = np.repeat(vectors[label == 0].mean(axis=0, keepdims=True), 5, axis=0)
    assert not worst["place"].holds(elsewhere, answers).any()


def test_declared_slices_are_tested_and_listed(tables) -> None:
    ids = [f"i{k:02d}" for k in range(40)]
    error = np.array([1.0] * 9 + [0.0] + [0.0] * 30)
    members = {"all": ids, "weak": ids[:10], "fine": ids[10:]}
    table = made(tables, ids, error, members=members, slices=[SliceConfig(name="weak", where="boxes > 3")])
    rows = {r["slice"]: r for r in table.to_pylist()}
    assert set(rows) == {"weak", "fine"}
    assert rows["weak"]["confirmed"] and not rows["fine"]["confirmed"]
    assert (rows["weak"]["value"], rows["weak"]["rest"], rows["weak"]["images"]) == (0.9, 0.0, 10)
    assert rows["weak"]["definition"] == "boxes > 3" and rows["weak"]["members"] == ids[:10]


def test_no_errors_at_all_give_no_slices(tables) -> None:
    assert made(tables, [], np.zeros(0), search=5, discover=5).num_rows == 0
