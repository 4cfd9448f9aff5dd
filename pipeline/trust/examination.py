"""Which labels of gold a verifier is asked about, so that it can be graded: chosen without a look at the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import TrustConfig
from pipeline.ids import fingerprint
from pipeline.trust.certify import Flags
from pipeline.trust.gold import Frame, Gold, designed

# Shares of a labeller's answers at or above the review floor that the verifier may be asked about, best first. Each
# is a rule more to try, and rules share the risk.
SHARES = (1 / 4, 1.0)
PROMPT_SHARE = 5  # one in so many units compares wordings, where there are several, and grades none of them


@dataclass(frozen=True)
class Plan:
    """Labels to ask about, unit by unit in random order, so that whatever is left out is left out at random.

    Attributes:
        rows: annotation rows. cuts: of each producer and class the scores from which its labels are asked
            about, the strictest first; the last one is the floor of all that is asked.
        apart: images that grade nothing: there was no room for their labels, or wordings are compared on them.
        comparing: those of the latter kind; empty where there is but one wording.
    """

    frame: Frame
    rows: pa.Table
    cuts: dict[tuple[str, str], list[float]]
    apart: frozenset[str]
    comparing: frozenset[str]

    def complete(self, answered: pa.Array) -> Flags:
        """(m,) which images of the frame grade the verifier: those all of whose labels were answered."""
        lacking = self.rows.filter(pc.invert(pc.is_in(self.rows["annotation_id"], answered)))
        out = set(lacking["image_id"].to_pylist()) | self.apart
        return np.array([image not in out for image in self.frame.images], bool)


def plan(
    candidates: pa.Table, gold: Gold, config: TrustConfig, classes: Sequence[str], limit: int, several: bool
) -> Plan:
    """The labels of gold images that a verifier is to be asked about.

    Where there are more than `limit`, only the quarter with the best scores; where these are too many still,
    units drawn at random.

    Args:
        candidates: annotation rows as labels are made of them, of gold and design images.
        several: whether wordings are compared.
    """
    frame = Frame.of(gold, config)
    on_gold = schema.where_in(candidates, "image_id", frame.images)
    on_gold = schema.where_in(on_gold, "class_name", classes)
    cuts = _cuts(candidates, frame, classes, config.review_floor)
    score = on_gold["score"].to_numpy().astype(np.float64)
    keys = list(zip(on_gold["producer"].to_pylist(), on_gold["class_name"].to_pylist(), strict=True))
    depth = len(SHARES)
    while True:
        wanted = score >= np.array([cuts[key][depth - 1] for key in keys], np.float64)
        if wanted.sum() <= limit or depth == 1:
            break
        depth -= 1
    rows = on_gold.filter(pa.array(wanted, pa.bool_()))
    drawn = _drawn(rows, gold, config, limit)
    comparing = _comparing(frame, gold, config) if several else frozenset()
    left_out = set(rows["image_id"].to_pylist()) - set(drawn["image_id"].to_pylist())
    kept = {key: cut[:depth] for key, cut in cuts.items()}
    return Plan(frame, drawn, kept, comparing | left_out, comparing)


def _cuts(
    candidates: pa.Table, frame: Frame, classes: Sequence[str], floor: float
) -> dict[tuple[str, str], list[float]]:
    """Falling scores that let through growing shares of a labeller's answers on design images."""
    seen = schema.where_in(candidates, "image_id", frame.design)
    found = {}
    for producer in candidates["producer"].unique().to_pylist():
        said = seen.filter(pc.equal(seen["producer"], producer))
        for name, design in zip(classes, designed(said, frame, classes), strict=True):
            scores = np.sort(design.score[design.score >= floor].astype(np.float32))[::-1]
            places = [int(np.ceil(share * len(scores))) - 1 for share in SHARES[:-1]]
            cuts = [float(scores[p]) for p in places] if len(scores) else [floor] * (len(SHARES) - 1)
            found[producer, name] = [*cuts, float(np.float32(floor))]
    return found


def _unit(image: str, gold: Gold, config: TrustConfig) -> str:
    return gold.locations.get(image, image) if config.unit == "location" else image


def _drawn(rows: pa.Table, gold: Gold, config: TrustConfig, limit: int) -> pa.Table:
    """At most `limit` rows: whole units, in an order that depends on nothing but their names."""
    units = [_unit(image, gold, config) for image in rows["image_id"].to_pylist()]
    place = {unit: fingerprint("examine", unit) for unit in set(units)}
    draw = np.array([place[unit] for unit in units], str)
    ids = np.array(rows["annotation_id"].to_pylist(), str)
    order = np.lexsort((ids, draw))
    ordered = draw[order]
    # A unit counts when its last label does.
    last = np.searchsorted(ordered, ordered, side="right")
    kept = order[last <= limit]
    return rows.take(pa.array(kept))


def _comparing(frame: Frame, gold: Gold, config: TrustConfig) -> frozenset[str]:
    def chosen(image: str) -> bool:
        return int(fingerprint("prompts", _unit(image, gold, config)), 16) % PROMPT_SHARE == 0

    return frozenset(image for image in frame.images if chosen(image))
