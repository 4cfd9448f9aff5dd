"""What labellers are graded on: gold, the independent units of it, and what one labeller says of one class there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import TrustConfig
from pipeline.ids import fingerprint
from pipeline.trust.certify import Design, Flags, Ints, Trial, certify
from pipeline.trust.evidence import least_units
from pipeline.trust.judge import Answers, Kind, judge, scores_of

ALL = "all"
# A grid is laid over the scores of images that are not graded on; with fewer of them, a part of gold serves.
LEAST_DESIGN_IMAGES = 20
LEAST_DESIGN_ANSWERS = 20
DESIGN_SHARE = 5  # one in so many gold images


@dataclass(frozen=True)
class Gold:
    """What is graded on.

    Attributes:
        images: graded on; they must be unseen: for a trained model those of val.
        design: others whose scores lay the grid; their truth is not looked at.
        slices: rows of (slice, image_id); 'all' need not be among them.
        locations: image_id -> location, for the unit `location`.
        sizes: rows of `images`, for masks.
    """

    images: Sequence[str]
    design: Sequence[str] = ()
    slices: pa.Table | None = None
    locations: Mapping[str, str] = field(default_factory=dict)
    sizes: pa.Table | None = None

    def members(self) -> dict[str, set[str]]:
        """Images of each slice but 'all'."""
        if self.slices is None:
            return {}
        found: dict[str, set[str]] = {}
        for name, image in zip(self.slices["slice"].to_pylist(), self.slices["image_id"].to_pylist(), strict=True):
            found.setdefault(name, set()).add(image)
        return {name: found[name] for name in sorted(found) if name != ALL}


@dataclass(frozen=True)
class Frame:
    """Gold images that are tested and those that lay the grid, and the independent units of both."""

    images: list[str]
    design: list[str]
    unit: Ints  # (m,) of each gold image
    units: int
    design_unit: Ints
    design_units: int
    slices: dict[str, set[str]]
    borrowed: bool  # the grid was laid over a part of gold
    name: str

    @classmethod
    def of(cls, gold: Gold, config: TrustConfig) -> Frame:
        images, design = sorted(set(gold.images)), sorted(set(gold.design) - set(gold.images))
        by = {i: gold.locations.get(i, i) for i in [*images, *design]} if config.unit == "location" else {}
        borrowed = len(design) < LEAST_DESIGN_IMAGES
        if borrowed:
            drawn = {i for i in images if int(fingerprint("design", by.get(i, i)), 16) % DESIGN_SHARE == 0}
            images, design = [i for i in images if i not in drawn], sorted(drawn)
        unit, units = _numbered([by.get(i, i) for i in images])
        design_unit, design_units = _numbered([by.get(i, i) for i in design])
        name = fingerprint(images, design)
        return cls(images, design, unit, units, design_unit, design_units, gold.members(), borrowed, name)

    def scopes(self, whole: str) -> list[tuple[str, Flags]]:
        """(name, (m,) whether a gold image belongs to it); a slice of all gold is not told twice."""
        everything = [(whole, np.ones(len(self.images), bool))]
        inside = [(n, np.array([i in s for i in self.images], bool)) for n, s in self.slices.items()]
        return everything + [(n, member) for n, member in inside if not member.all()]


@dataclass(frozen=True)
class Case:
    """What one labeller says of one class on gold, or on a slice of it, and the thresholds that were tried.

    Attributes:
        found: the labeller's rows on gold. answers: those of the class and slice; `row` is their place in `found`.
        unit: (n,) of each answer, below `units`. place: (m,) unit of each image of `frame`, -1 outside the slice.
    """

    producer: str
    class_name: str
    slice: str
    frame: Frame
    found: pa.Table
    answers: Answers
    place: Ints
    unit: Ints
    units: int
    design: Design
    trial: Trial


def cases(
    candidates: pa.Table,
    ground_truth: pa.Table,
    gold: Gold,
    config: TrustConfig,
    classes: Sequence[str],
    kind: Kind,
    producers: Iterable[str] = (),
    scope: str = ALL,
) -> Iterator[Case]:
    """Every producer, class and slice; of slices, only those in which gold could certify something."""
    rows = schema.best_classes(candidates)
    frame = Frame.of(gold, config)
    found, seen = schema.where_in(rows, "image_id", frame.images), schema.where_in(rows, "image_id", frame.design)
    truth = schema.where_in(ground_truth, "image_id", frame.images)
    for producer in sorted({*candidates.column("producer").unique().to_pylist(), *producers}):
        mine, said = (t.filter(pc.equal(t.column("producer"), producer)) for t in (found, seen))
        designs = designed(said, frame, classes)
        judged = judge(kind, mine, truth, frame.images, classes, config.iou, gold.sizes)
        for (name, answers), design in zip(judged, designs, strict=True):
            for slice_name, inside in frame.scopes(scope):
                least = 0 if slice_name == scope else least_units(config.target, config.delta)
                part = _inside(answers, inside)
                if len(part.score) < least:
                    continue
                known, where = np.unique(frame.unit[inside], return_inverse=True)
                place = np.full(len(inside), -1)
                place[inside] = where
                unit = place[part.image]
                trial = certify(unit, part.score, part.right, len(known), design, config)
                yield Case(producer, name, slice_name, frame, mine, part, place, unit, len(known), design, trial)


def designed(said: pa.Table, frame: Frame, classes: Sequence[str]) -> list[Design]:
    """What lays the grid of each class: one labeller's answers on design images."""
    unit, score, kinds = (
        schema.codes(said["image_id"], frame.design),
        scores_of(said),
        schema.codes(said["class_name"], classes),
    )
    made = []
    for number in range(len(classes)):
        own = kinds == number
        # Too few answers of a class to lay a grid over: those of all classes tell its scale.
        chosen = own if own.sum() >= LEAST_DESIGN_ANSWERS else np.ones(len(own), bool)
        made.append(Design(frame.design_unit[unit[chosen]], score[chosen], own[chosen], frame.design_units))
    return made


def _inside(answers: Answers, inside: Flags) -> Answers:
    """The answers on images of a slice; `objects` stays that of all images."""
    mine = inside[answers.image]
    return Answers(answers.image[mine], answers.score[mine], answers.right[mine], answers.objects, answers.row[mine])


def _numbered(names: Sequence[str]) -> tuple[Ints, int]:
    known, places = np.unique(np.asarray(names, str), return_inverse=True)
    return np.asarray(places, np.int64).reshape(-1), len(known)
