"""The ten worst slices of a table, against the package `sliceline`: the same, found with less work.

Run: python benchmarks/slice_search.py
"""

from __future__ import annotations

import logging
import time
import warnings

import numpy as np
from common import in_turn, peak_memory, report
from sliceline.slicefinder import Slicefinder

from pipeline.slices.search import Slice, top_slices

SIZES = ((20_000, 12), (200_000, 12), (1_000_000, 30))
ALPHA, K, PREDICATES = 0.99, 10, 4


def made_up(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Eight values a column, even or skewed; one error in ten, and more in two planted slices."""
    generator = np.random.default_rng(0)
    values = [
        np.minimum(generator.geometric(0.3, rows) - 1, 7) if j % 2 else generator.integers(0, 8, rows)
        for j in range(columns)
    ]
    codes = np.stack(values, axis=1).astype(np.int16)
    planted = 0.35 * ((codes[:, 0] == 1) & (codes[:, 1] == 2))
    planted += 0.3 * ((codes[:, 2] == 3) & (codes[:, 3] == 0) & (codes[:, 4] == 1))
    return codes, (generator.random(rows) < 0.1 + planted).astype(float)


def ours(codes: np.ndarray, errors: np.ndarray) -> list[Slice]:
    support = len(errors) // 100
    return top_slices(codes, errors, k=K, alpha=ALPHA, min_support=support, max_predicates=PREDICATES)


def theirs(codes: np.ndarray, errors: np.ndarray) -> Slicefinder:
    support = len(errors) // 100
    return Slicefinder(alpha=ALPHA, k=K, max_l=PREDICATES, min_sup=support, verbose=False).fit(codes, errors)


def main() -> None:
    logging.disable()
    warnings.simplefilter("ignore")
    # Memory first: what this process has used and freed would be used again, unseen.
    memory = {}
    for rows, columns in SIZES:
        made = made_up(rows, columns)
        memory[f"{rows // 1000}k x {columns}"] = peak_memory(lambda made=made: ours(*made))
    codes, errors = made_up(*SIZES[0])
    peer_memory = peak_memory(lambda: theirs(codes, errors))
    turn, found, peer = in_turn(lambda: ours(codes, errors), lambda: theirs(codes, errors), rounds=2)
    expected = [
        (tuple((c, int(v)) for c, v in enumerate(row) if v is not None), s["slice_score"])
        for row, s in zip(peer.top_slices_, peer.top_slices_statistics_, strict=True)
    ]
    assert [s.predicates for s in found] == [p for p, _ in expected], "the slices must be the same"
    gap = max(abs(s.score - score) for s, (_, score) in zip(found, expected, strict=True))
    assert gap < 1e-9
    report(
        "slice search, 20k rows x 12 columns",
        turn.ours,
        turn.peer,
        peer_name="sliceline 0.3.0",
        aim=100,
        agreement=f"same {len(found)} slices, scores within {max(gap, 1e-15):.0e}",
        note="at this size ours is Python's own work on some 900 opened slices, not on rows",
        memory=memory,
    )
    report(
        "slice search, memory",
        memory["20k x 12"],
        peer_memory,
        peer_name="sliceline 0.3.0",
        aim=10,
        unit="MiB",
        agreement="as above",
    )
    codes, errors = made_up(*SIZES[2])
    start = time.process_time()
    found = ours(codes, errors)
    spent = time.process_time() - start
    report(
        "slice search, 1M rows x 30 columns",
        spent,
        None,
        peer_name="sliceline 0.3.0",
        aim="works",
        met=found[0].predicates == ((0, 1), (1, 2)),
        agreement="the planted slice is first",
        note="the peer was not run: it would need some hundred times its memory at 20k",
    )


if __name__ == "__main__":
    main()
