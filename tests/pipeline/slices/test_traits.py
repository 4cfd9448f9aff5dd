from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from pipeline.config import EvaluationConfig
from pipeline.ontology import Class, Ontology
from pipeline.slices.columns import columns_of
from pipeline.slices.traits import Known, titles, traits
from pipeline.slices.words import WORDS, vocabulary

CONFIG = EvaluationConfig()


def known_of(n: int, rng: np.random.Generator, planted: np.ndarray, words: int = 30) -> tuple[Known, list[str]]:
    """Images of which those planted are dark, at site b, and like word w7."""
    ids = [f"i{k:04d}" for k in range(n)]
    site = np.where(planted & (rng.random(n) < 0.9), "b", rng.choice(list("acd"), n))
    facts = pa.table({"image_id": ids, "site": site, "weather": rng.choice(list("xyz"), n)})
    vectors = rng.normal(size=(n, words))
    vectors[planted, 7] += 2.0
    texts = {f"w{k}": np.eye(words)[k] for k in range(words)}
    return Known.of(ids, columns_of(facts, 5), ids, vectors, texts), ids


def row(ids: list[str], inside: np.ndarray, kind: str = "discovered") -> dict[str, Any]:
    return {"slice": "s", "model": "m", "kind": kind, "members": [i for i, c in zip(ids, inside, strict=True) if c]}


def test_what_was_planted_is_what_they_have_in_common() -> None:
    rng = np.random.default_rng(0)
    planted = np.arange(400) < 60
    known, ids = known_of(400, rng, planted)
    table = traits([row(ids, planted)], known, CONFIG)
    found = table.to_pylist()
    assert [r["trait"] for r in found if r["kind"] == "word"] == ["w7"]
    facts = [r for r in found if r["kind"] == "fact"]
    assert facts[0]["trait"] == "site = 'b'" and facts[0]["low"] > 5
    word = found[0]
    assert word["effect"] == pytest.approx(2.0, abs=0.4) and word["low"] < 2.0 < word["high"]
    assert titles(table) == {("s", "m"): "w7"}
    silent = Known.of(ids, known.columns, [], np.zeros((0, 0)), {})
    assert titles(traits([row(ids, planted)], silent, CONFIG))["s", "m"].startswith("site = 'b'")
    assert traits([row(ids, planted, "declared")], known, CONFIG).num_rows == 0


def test_slices_of_one_name_are_told_by_their_models() -> None:
    rng = np.random.default_rng(0)
    planted = np.arange(400) < 60
    known, ids = known_of(400, rng, planted)
    others = [i for i in ids if known.similarity[ids.index(i), 3] > 1]
    rows = [row(ids, planted), {"slice": "s", "model": "n", "kind": "discovered", "members": others}]
    assert titles(traits(rows, known, CONFIG)) == {("s", "m"): "w7", ("s", "n"): "w3"}


def test_the_lift_and_its_interval_are_those_of_scipy() -> None:
    rng = np.random.default_rng(1)
    inside, hit = np.arange(4000) < 1500, rng.random(4000) < np.where(np.arange(4000) < 1500, 0.4, 0.2)
    ids = [f"i{k:04d}" for k in range(4000)]
    columns = columns_of(pa.table({"image_id": ids, "hit": hit}), 5)
    known = Known.of(ids, columns, [], np.zeros((0, 0)), {})
    found = next(r for r in traits([row(ids, inside)], known, CONFIG).to_pylist() if r["trait"] == "hit = true")
    exact = stats.contingency.relative_risk(int(hit[inside].sum()), 1500, int(hit[~inside].sum()), 2500)
    limits = exact.confidence_interval(1 - 0.05 / 2)  # two predicates were looked at
    assert found["effect"] == pytest.approx(exact.relative_risk, rel=5e-3)
    assert (found["low"], found["high"]) == pytest.approx((limits.low, limits.high), rel=5e-3)


def test_slices_by_chance_hardly_ever_have_anything_in_common() -> None:
    rng = np.random.default_rng(2)
    known, ids = known_of(300, rng, np.zeros(300, bool))
    trials = 200
    with_words = with_facts = 0
    for _ in range(trials):
        kinds = traits([row(ids, rng.random(300) < 0.3)], known, CONFIG).column("kind").to_pylist()
        with_words += "word" in kinds
        with_facts += "fact" in kinds
    # One-sided at 2.5 % for each of the two families.
    assert max(with_words, with_facts) <= stats.binom.ppf(0.999, trials, 0.05)


def test_the_vocabulary_starts_with_the_projects_own_words() -> None:
    ontology = Ontology((Class("tree", ("tree crown", "a dog")),))
    seen: list[str] = []

    def encode(texts: Any) -> np.ndarray:
        seen.extend(texts)
        return np.eye(len(texts))

    found = vocabulary(ontology, encode, ["moss"])
    assert list(found)[:3] == ["tree crown", "a dog", "moss"] and len(found) == len(WORDS) + 2
    assert seen[0] == "a photo of tree crown" and all("\n" not in t and "  " not in t for t in seen)
