"""Choosing images: k-center greedy against one matrix-vector product a step, facility location against apricot.

Run: python benchmarks/selection.py     (needs the group `peers`)

Vectors are unit vectors in 512 dimensions, around 200 centres as embeddings of photos are, and without any order,
where no bound can tell what need not be looked at.
"""

from __future__ import annotations

import numpy as np
from common import in_turn, peak_memory, report

from pipeline.selection import facility_location, k_center

CHOSEN, DIMENSIONS = 200, 512
NONE = np.zeros((0, DIMENSIONS), np.float32)


def grouped(n: int, seed: int = 0) -> np.ndarray:
    """(n, 512) around 200 centres of different frequency and spread."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(200, DIMENSIONS))
    share = generator.dirichlet(np.full(200, 0.5))
    spread = generator.uniform(0.3, 1.2, 200)
    group = generator.choice(200, n, p=share)
    vectors = centres[group] + spread[group, None] * generator.normal(size=(n, DIMENSIONS))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def orderless(n: int) -> np.ndarray:
    """(n, 512) from the whole sphere."""
    vectors = np.random.default_rng(1).normal(size=(n, DIMENSIONS)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def by_gemv(pool: np.ndarray) -> list[int]:
    """Farthest-first traversal: every distance to the newest centre, at every step, in single precision."""
    left = np.full(len(pool), 2.0, np.float32)
    chosen: list[int] = []
    for _ in range(CHOSEN):
        chosen.append(int(left.argmax()))
        left = np.minimum(left, np.sqrt(np.maximum(2 - 2 * (pool @ pool[chosen[-1]]), 0)))
        left[chosen] = -1
    return chosen


def by_apricot(pool: np.ndarray) -> list[int]:
    """Its lazy greedy, on the same similarities."""
    from apricot import FacilityLocationSelection

    similar = (pool @ pool.T + 1) / 2
    return FacilityLocationSelection(CHOSEN, metric="precomputed", optimizer="lazy").fit(similar).ranking.tolist()


def ties(pool: np.ndarray, ours: list[int], theirs: list[int]) -> str:
    """How much the two choices cover. Two images that are each other's nearest add the same: either may be taken."""
    similar = ((pool @ pool.T + 1) / 2).astype(np.float64)
    covered = [similar[chosen].max(axis=0).sum() for chosen in (ours, theirs)]
    return f"covered similarity differs by {abs(covered[0] / covered[1] - 1):.0e}"


def main() -> None:
    for made in (grouped, orderless):
        name, pool = made.__name__, made(50_000)
        turn, (found, _), expected = in_turn(lambda p=pool: k_center(p, NONE, CHOSEN), lambda p=pool: by_gemv(p))
        first = next((i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b), CHOSEN)
        report(
            f"k-center, 50k choose {CHOSEN}, {name}",
            turn.ours,
            turn.peer,
            peer_name="gemv",
            aim=3,
            agreement=f"{len(set(found) & set(expected))} of {CHOSEN} the same, the first {first} in order",
            memory={
                size: peak_memory(lambda p=some: k_center(p, NONE, CHOSEN))
                for size, some in (("50k", pool), ("500k", made(500_000)))
            },
        )
    by_apricot(grouped(300))  # it compiles at first use
    for name, pool in {"grouped": grouped(5_000), "orderless": orderless(5_000)}.items():
        turn, (found, _), expected = in_turn(
            lambda p=pool: facility_location(p, p, NONE, CHOSEN), lambda p=pool: by_apricot(p)
        )
        larger = np.concatenate([pool] * 10)
        report(
            f"facility location, 5k choose {CHOSEN}, {name}",
            turn.ours,
            turn.peer,
            peer_name="apricot 0.6.1",
            aim=5,
            agreement=f"{len(set(found) & set(expected))} of {CHOSEN} the same; {ties(pool, found, expected)}",
            note="both make the same matrix; without groups, bounds are loose, and ours reads similarities from memory"
            if name == "orderless"
            else "",
            memory={
                "5k": peak_memory(lambda p=pool: facility_location(p, p, NONE, CHOSEN)),
                "50k of which 5k are represented": peak_memory(
                    lambda p=larger, r=pool: facility_location(p, r, NONE, CHOSEN)
                ),
            },
        )


if __name__ == "__main__":
    main()
