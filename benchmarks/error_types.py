"""What each kind of error costs in AP (TIDE), against tidecv; and the cost of every single error, which only we have.

Run: python benchmarks/error_types.py (needs the dependency group `peers`)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from common import in_turn, peak_memory, report
from evaluation import World, made_up

from pipeline import tide
from pipeline.boxes import to_xywh
from pipeline.evaluate.scene import Objects, Scene

SHORT = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")


def judged(world: World) -> tide.Judged:
    """Ours, from Arrow."""
    seen, truth = (Objects.read(t, world.ids, world.classes) for t in (world.seen, world.truth))
    return Scene.of(seen, truth, len(world.ids), world.classes, 0.5).judged[1]


def ours(world: World) -> tuple[dict[str, float], dict[str, int]]:
    errors = judged(world)
    return tide.costs(errors), tide.counts(errors)


def as_data(world: World) -> tuple[Any, Any]:
    """tidecv's own containers."""
    from tidecv.data import Data

    people, found = Data("people"), Data("model")
    for k in range(len(world.ids)):
        people.add_image(k, str(k))
    for k, name in enumerate(world.classes):
        people.add_class(k, name)
    truth, seen = (Objects.read(t, world.ids, world.classes) for t in (world.truth, world.seen))
    for image, kind, box, ignore in zip(
        truth.image, truth.kind, to_xywh(truth.boxes).tolist(), truth.ignore, strict=True
    ):
        (people.add_ignore_region if ignore else people.add_ground_truth)(int(image), int(kind), box=box)
    for image, kind, box, score in zip(seen.image, seen.kind, to_xywh(seen.boxes).tolist(), seen.score, strict=True):
        found.add_detection(int(image), int(kind), float(score), box=box)
    return people, found


def theirs(people: Any, found: Any) -> tuple[dict[str, float], dict[str, float], dict[str, int]]:
    from tidecv import TIDE

    run = TIDE().evaluate(people, found, mode=TIDE.BOX)
    main, special = run.fix_main_errors(), run.fix_special_errors()
    number = run.count_errors()
    return tuple({e.short_name: v for e, v in part.items()} for part in (main, special, number))  # type: ignore[return-value]


def main() -> None:
    world = made_up(images=1000, objects=7200, detections=32_000)
    people, found = as_data(world)
    turn, (costs, counts), (main_errors, special, number) = in_turn(lambda: ours(world), lambda: theirs(people, found))
    apart = [abs(100 * costs[name] - main_errors[short]) for name, short in zip(tide.KINDS, SHORT, strict=True)]
    apart += [abs(100 * costs["false_positives"] - special["FalsePos"])]
    apart += [abs(100 * costs["false_negatives"] - special["FalseNeg"])]
    equal = all(counts[name] == number[short] for name, short in zip(tide.KINDS, SHORT, strict=True))
    assert equal and max(apart) < 1e-9, "the two must agree"
    full = made_up()
    report(
        "error types and their dAP (TIDE), 1000 images, 32000 detections",
        turn.ours,
        turn.peer,
        peer_name="tidecv",
        aim=10,
        agreement=f"equal counts, all eight dAP within {max(apart) / 100:.0e}",
        memory={"1x": peak_memory(partial(ours, world)), "5x": peak_memory(partial(ours, full))},
    )
    turn, rises, _ = in_turn(lambda: tide.single_costs(judged(full)), lambda: None, 1)
    report(
        "the dAP of every single error, 5000 images, 159000 detections",
        turn.ours,
        None,
        peer_name="",
        aim="no peer has it",
        met=True,
        agreement="equals AP computed anew with one error mended, within 1e-12 (tests)",
        note=f"{int(np.count_nonzero(rises[0]) + np.count_nonzero(rises[1]))} errors that cost something",
    )


if __name__ == "__main__":
    main()
