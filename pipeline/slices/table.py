"""The table `slices`: declared, searched and discovered ones together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import EvaluationConfig, SliceConfig
from pipeline.slices.columns import columns_of
from pipeline.slices.declared import declared
from pipeline.slices.discovered import discovered, embedded
from pipeline.slices.honest import LEAST_IMAGES, confirmed, row, units
from pipeline.slices.searched import searched
from pipeline.slices.stable import keep_names
from pipeline.slices.traits import Known, titles, traits


def slice_table(
    members: pa.Table,
    errors: pa.Table,
    facts: pa.Table,
    ids: Sequence[str],
    vectors: NDArray[np.floating],
    config: EvaluationConfig,
    *,
    words: Mapping[str, NDArray[np.floating]] | None = None,
    before: pa.Table | None = None,
) -> dict[str, pa.Table]:
    """`slices`: every declared, searched and discovered slice, and each model's error on it; `slice_traits`; and
    `slice_images`, which of all images belong to a confirmed slice that was found.

    Args:
        members: the table `declared_slices`.
        errors: (model, image_id, error) of held-out images, `error` in [0, 1].
        facts: what is known of each image, as `per_image` returns it.
        ids, vectors: n image ids and their (n, d) unit vectors; images without one are in no discovered slice.
        words: vocabulary that found slices are named with, each with its vector.
        before: `slices` of the run before, whose names the same slices keep.

    Returns:
        value and rest are mean errors, and p_value the one-sided probability of such a difference
        were the slice like the rest, after Holm's correction for all that was tested: every slice of every kind and
        model. With fewer than 20 locations images are taken as exchangeable, so tiles of few photos make p-values
        too small.
    """
    told = dict(zip(members.column("slice").to_pylist(), members.column("definition").to_pylist(), strict=True))
    held_out = sorted(set(errors.column("image_id").to_pylist()))
    everything, facts = facts, _one_row_each(facts, held_out)
    locations = dict(zip(facts.column("image_id").to_pylist(), facts.column("location").to_pylist(), strict=True))
    columns = columns_of(facts, LEAST_IMAGES)
    known = facts.column("image_id").to_pylist()
    unit = dict(zip(known, units(known, locations), strict=True))
    classes = (
        dict(zip(known, facts.column("classes").to_pylist(), strict=True)) if "classes" in facts.schema.names else {}
    )
    images = embedded(known, ids, vectors, unit, classes)
    rows: list[dict[str, Any]] = []
    for model in sorted(errors.column("model").unique().to_pylist()):
        mine = errors.filter(pc.equal(errors.column("model"), model)).sort_by("image_id")
        rows += _declared_rows(model, mine, members, told, unit)
        error = _error_of(facts.column("image_id"), mine)
        rows += searched(model, known, error, columns, list(unit.values()), config)
        rows += discovered(model, mine, images, config)
    rows = confirmed(rows, config)
    if before is not None:
        rows = keep_names(rows, before, held_out)
    common = traits(rows, Known.of(known, columns, ids, vectors, words or {}), config)
    named = titles(common)
    # What is defined by facts is named by them: words only say what it looks like.
    rows = [
        r | {"title": r["definition"] if r["kind"] == "searched" else named.get((r["slice"], r["model"]))} for r in rows
    ]
    tables = {"slices": schema.table("slices").from_rows(rows), "slice_traits": common}
    return tables | {"slice_images": _images(rows, everything, ids, vectors)}


def _one_row_each(facts: pa.Table, ids: Sequence[str]) -> pa.Table:
    """The first row of each of the images `ids`, in their order."""
    place = pc.index_in(pa.array(ids, pa.string()), facts.column("image_id"))
    return facts.take(place.drop_null())


def _images(rows: list[dict[str, Any]], facts: pa.Table, ids: Sequence[str], vectors: NDArray[np.floating]) -> pa.Table:
    """The table `slice_images`."""
    found: list[dict[str, str]] = []
    facts_of_ids = _one_row_each(facts, ids)
    known = facts_of_ids.column("image_id").to_pylist()
    classes = facts_of_ids.column("classes").to_pylist() if "classes" in facts.schema.names else [None] * len(known)
    place = {image: k for k, image in enumerate(ids)}
    points = np.asarray(vectors)[[place[i] for i in known]]
    for weak in rows:
        if not weak["confirmed"] or weak["kind"] == "declared":
            continue
        if weak["kind"] == "searched":
            wanted = SliceConfig(name="found", where=weak["definition"])
            inside = declared(facts, [wanted]).filter(pc.field("slice") == "found").column("image_id").to_pylist()
        else:
            holds = weak["place"].holds(points, classes)
            inside = [i for i, held in zip(known, holds, strict=True) if held]
        found += [{"slice": weak["slice"], "model": weak["model"], "image_id": i} for i in inside]
    return schema.table("slice_images").from_rows(found)


def _error_of(ids: pa.ChunkedArray, errors: pa.Table) -> NDArray[np.float64]:
    """Errors of images, NaN for those that were not measured."""
    place = pc.index_in(ids, errors.column("image_id").combine_chunks())
    return errors.column("error").take(place).to_numpy().astype(np.float64)


def _declared_rows(
    model: str, errors: pa.Table, members: pa.Table, definitions: dict[str, str], unit: Mapping[str, str]
) -> list[dict[str, Any]]:
    ids = errors.column("image_id")
    independent = [unit.get(i, i) for i in ids.to_pylist()]
    error = errors.column("error").to_numpy()
    rows = []
    for name in members.column("slice").unique().to_pylist():
        if name != "all":
            chosen = members.filter(pc.equal(members.column("slice"), name)).column("image_id")
            inside = pc.is_in(ids, chosen.combine_chunks())
            found = ids.filter(inside).to_pylist()
            flags = np.asarray(inside.to_numpy(), bool)
            rows.append(row(name, "declared", definitions.get(name, ""), model, error, flags, found, independent))
    return rows
