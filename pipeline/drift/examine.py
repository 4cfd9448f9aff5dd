"""Everything that is asked of a new batch: all tests, and what drives the difference."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import comb
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import DriftConfig
from pipeline.drift.batch import MEASURES, Embedded, Tests
from pipeline.drift.classifier import LEAST_BLOCKS, held_out_auc
from pipeline.drift.dimensions import by_dimension
from pipeline.drift.mixes import Mix, label_mix, score_mix, slice_mix
from pipeline.drift.power import POOL, UNIT, leading_direction, smallest_shift
from pipeline.drift.regions import drivers
from pipeline.drift.sides import Blocks, Floats, Ints, Sides

TABLES = ("drift", "drift_dimensions", "drift_shares", "drift_regions", "drift_images")
Rows = dict[str, list[dict[str, Any]]]


def test_batch(
    batch: str,
    images: pa.Table,
    quality: pa.Table,
    reference: Collection[str],
    config: DriftConfig,
    *,
    encoder: str = "",
    ids: list[str] | None = None,
    vectors: NDArray[np.float32] | None = None,
    predictions: pa.Table | None = None,
    slices: Mapping[str, Collection[str]] | None = None,
) -> pa.Table:
    """The few tests that decide whether a certificate holds, as rows of `drift`.

    Args:
        images, quality: rows of the batch and of the reference at least.
        reference: image_ids to compare with; those that the batch holds itself are left out.
        encoder, ids, vectors: producer of the vectors, and (n, d) unit vectors with the image of each (several
            rows an image where they are of windows).
        predictions: annotation rows whose scores and counts are compared, producer by producer.
        slices: image_ids in each declared slice.

    A test whose data is missing on either side has a row with neither statistic nor p-value.
    """
    tests = Tests(Sides.of(batch, images, reference), config)
    if vectors is not None and ids is not None:
        tests.embedding(encoder, ids, vectors)
    tests.appearance(tests.measures(quality))
    if predictions is not None:
        for producer in sorted(set(predictions.column("producer").to_pylist())):
            tests.predictions(producer, schema.where_in(predictions, "producer", [producer]))
    if slices:
        tests.slice_mix(slices)
    return schema.table("drift").from_rows(tests.rows)


def examine(
    batch: str,
    images: pa.Table,
    quality: pa.Table,
    reference: Collection[str],
    config: DriftConfig,
    *,
    encoder: str,
    ids: list[str],
    vectors: NDArray[np.float32],
    predictions: pa.Table,
    slices: Mapping[str, Collection[str]],
) -> dict[str, pa.Table]:
    """The tables TABLES of one batch: every test, its details, and what drives the difference.

    Args:
        As of `test_batch`.
    """
    tests = Tests(Sides.of(batch, images, reference), config)
    rows: Rows = {name: [] for name in TABLES}
    embedded = tests.embedding(encoder, ids, vectors)
    _in_embeddings(tests, encoder, embedded, rows)
    measures = tests.measures(quality)
    tests.appearance(measures)
    known = np.flatnonzero(~np.isnan(measures).any(axis=1))
    _by_dimension(tests, "appearance_ks", "quality", known, measures[known], MEASURES, rows)
    for producer in sorted(set(predictions.column("producer").to_pylist())):
        said = schema.where_in(predictions, "producer", [producer])
        tests.predictions(producer, said)
        _in_answers(tests, producer, said, rows)
    if slices:
        members = slice_mix(list(slices), tests.slice_mix(slices))
        blocks = _both(tests, np.arange(len(members.counts)))
        rows["drift_shares"] += _shares(tests, "slices", "declared", members, blocks) if blocks else []
    rows["drift"] = tests.rows
    return {name: schema.table(name).from_rows(rows[name]) for name in TABLES}


def _in_embeddings(tests: Tests, encoder: str, embedded: Embedded, rows: Rows) -> None:
    """Classifier, dimensions, regions and power."""
    names = [f"v{k}" for k in range(embedded.means.shape[1])]
    _classifier(encoder, embedded)
    _by_dimension(tests, "embedding_ks", encoder, embedded.images, embedded.means, names, rows)
    blocks = _both(tests, embedded.images)
    if blocks is None:
        return
    config, side = tests.config, blocks.in_batch[blocks.number]
    if config.regions:
        rows["drift_regions"], rows["drift_images"] = drivers(
            tests.sides.batch, encoder, [tests.sides.ids[i] for i in embedded.images], embedded.means,
            embedded.sample, embedded.kernel.witness(side), embedded.distance, blocks, config.regions,
            config.permutations, tests.draw,
        )  # fmt: skip
    pool = np.flatnonzero(~side)[:POOL]  # ids are hashes and sorted: the first ones are a sample
    direction, deviation = leading_direction(embedded.means[pool])
    along = embedded.means @ direction
    mmd = next(row for row in tests.rows if row["test"] == "embedding_mmd")
    mmd["unit"] = UNIT
    mmd["effect"] = abs(float(along[side].mean() - along[~side].mean())) / deviation if deviation > 0 else None
    mmd["detectable"] = smallest_shift(
        embedded.means[pool], tests.sides.location[embedded.images[pool]], int(blocks.in_batch.sum()),
        int((~blocks.in_batch).sum()), embedded.kernel.width, config.alpha, config.power, tests.draw,
    )  # fmt: skip


def _classifier(encoder: str, embedded: Embedded) -> None:
    """On the sample: learning from more tells little more, and takes long."""
    some = embedded.some
    blocks = some.blocks("embedding_classifier", encoder, embedded.within)
    if blocks is None:
        return
    if min(blocks.in_batch.sum(), (~blocks.in_batch).sum()) < LEAST_BLOCKS:
        note = f"{blocks.words}: too few to learn from one half and to test on the other"
        some.add("embedding_classifier", encoder, None, None, note)
        return
    auc, held_out = held_out_auc(embedded.means[embedded.sample], blocks, some.draw)
    some.exchanged("embedding_classifier", encoder, auc, held_out, unit="AUC on held-out locations")
    some.rows[-1]["effect"] = some.rows[-1]["statistic"]


def _by_dimension(tests: Tests, test: str, subject: str, images: Ints, values: Floats, names: Any, rows: Rows) -> None:
    blocks = tests.blocks(test, subject, images)
    if blocks is None:
        return
    found = by_dimension(values, names, blocks)
    first = int(found.p_value.argmin())
    note = f"{blocks.words}; {found.words(tests.config.alpha)}"
    # Two of all splits part the sides completely, and Holm multiplies by the number of dimensions.
    least = min(1.0, 2 * len(names) / comb(len(blocks.in_batch), int(blocks.in_batch.sum())))
    tests.add(test, subject, float(found.statistic[first]), float(found.holm.min()), note, least_p=least)
    rows["drift_dimensions"] += found.rows(tests.sides.batch, subject)


def _in_answers(tests: Tests, producer: str, said: pa.Table, rows: Rows) -> None:
    """Classes and scores that a model gives."""
    owner = tests.owners(said.column("image_id").to_pylist())
    said, owner = said.filter(pa.array(owner >= 0)), owner[owner >= 0]
    scores, count = said.column("score").to_numpy().astype(np.float64), len(tests.sides.ids)
    for test, mix in (
        ("label_mix", label_mix(said.column("class_name").to_pylist(), scores, owner, count)),
        ("score_mix", score_mix(scores, owner, count) if len(scores) else None),
    ):
        answered = np.flatnonzero(mix.totals) if mix is not None else owner
        blocks = tests.blocks(test, producer, answered)
        if blocks is not None and mix is not None:
            some = mix.of(answered)
            shares = _shares(tests, test.replace("_mix", "s"), producer, some, blocks)
            tests.mixed(test, producer, some, blocks, shares)
            rows["drift_shares"] += shares


def _shares(tests: Tests, mix: str, subject: str, of: Mix, blocks: Blocks) -> list[dict[str, Any]]:
    return of.rows(tests.sides.batch, mix, subject, blocks, tests.config.permutations, tests.draw)


def _both(tests: Tests, images: Ints) -> Blocks | None:
    """Locations of the images; None where a side has none."""
    in_batch = tests.sides.in_batch[images]
    return Blocks.of(tests.sides.location[images], in_batch) if in_batch.any() and not in_batch.all() else None
