"""Do certificates hold on real photos? Graded on one half of gold, checked on the other, many times over.

Halves are drawn by location, since images of one location depend on each other. In each draw, every labeller
and class that the first half certifies is judged on the second: which share of what its threshold accepts
there is right. Halves of one gold set overlap between draws, so the shares below are a description of this
gold, not a test with a p-value; that is what benchmarks/trust.py is for. Labellers are judged on the gold of
train and val, trained models on what they never saw: val and test.

Needs the tables of the projects: cvp run NAME. Run: python benchmarks/trust_halves.py [PROJECT ...] [--draws 50]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema, trust
from pipeline.config import Project, find_project
from pipeline.ids import producer_name
from pipeline.store import Store
from pipeline.trust.judge import Answers, judge


@dataclass
class Tally:
    """Of one labeller and class over all draws."""

    certified: int = 0
    coverage: list[float] = field(default_factory=list)
    precision: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Material:
    """What a project's labellers said of its gold, and what people did."""

    project: Project
    said: pa.Table
    truth: pa.Table
    images: list[str]
    locations: list[str]
    design: list[str]

    @classmethod
    def of(cls, project: Project, trained: bool) -> Material:
        store = Store(project.store_uri)
        splits = store.read("splits").sort_by("image_id")
        labelled = splits.filter(splits.column("gold"))
        seen = pc.is_in(labelled.column("split"), pa.array(["val", "test"] if trained else ["train", "val"]))
        others = labelled.filter(pc.invert(seen)).column("image_id").to_pylist()
        labeller = "tags" if project.config.task == "classification" else "detections"
        said = store.read_or_empty("predictions" if trained else labeller)
        said = schema.best_classes(schema.where_in(said, "image_id", labelled.column("image_id").to_pylist()))
        ids, places = (labelled.filter(seen).column(c).to_pylist() for c in ("image_id", "location"))
        return cls(project, said, store.read("ground_truth"), ids, places, others)

    def halves(self, generator: np.random.Generator) -> tuple[list[str], list[str]]:
        """The gold images of one half of the locations, and those of the other."""
        places = sorted(set(self.locations))
        first = set(generator.permutation(places)[: len(places) // 2].tolist())
        inside = [place in first for place in self.locations]
        return [i for i, a in zip(self.images, inside, strict=True) if a], [
            i for i, a in zip(self.images, inside, strict=True) if not a
        ]

    def answers(self, images: list[str]) -> Iterator[tuple[str, str, Answers]]:
        """(producer, class, answers) on `images`."""
        config, classes = self.project.config, self.project.ontology.names
        rows = schema.where_in(self.said, "image_id", images)
        truth = schema.where_in(self.truth, "image_id", images)
        for producer in sorted(rows.column("producer").unique().to_pylist()):
            mine = rows.filter(pc.equal(rows.column("producer"), producer))
            for name, found in judge(config.task, mine, truth, images, classes, config.trust.iou):
                yield producer, name, found


def accepted(found: Answers, row: dict[str, Any]) -> np.ndarray:
    """(n,) whether a certificate covers an answer: its score suffices, and it is among the best of its image."""
    order = np.lexsort((-found.score, found.image))
    place = np.empty(len(order), np.int64)
    image = found.image[order]
    place[order] = np.arange(len(order)) - np.searchsorted(image, image)
    inside = found.score >= row["threshold"]
    return inside if row["most"] is None else inside & (place < row["most"])


def check(material: Material, draws: int, seed: int = 0) -> dict[tuple[str, str], Tally]:
    """Tallies of every labeller and class."""
    config = material.project.config
    generator, tallies = np.random.default_rng(seed), defaultdict[tuple[str, str], Tally](Tally)
    for _ in range(draws):
        first, second = material.halves(generator)
        gold = trust.Gold(first, material.design, locations=dict(zip(material.images, material.locations, strict=True)))
        classes = material.project.ontology.names
        table = trust.grade(material.said, material.truth, gold, config.trust, classes, config.task)
        rows = {(r["producer"], r["class_name"]): r for r in table.to_pylist()}
        for producer, name, found in material.answers(second):
            tally, row = tallies[producer, name], rows[producer, name]
            if not row["certified"]:
                continue
            kept = accepted(found, row)
            tally.certified += 1
            tally.coverage.append(kept.mean() if len(kept) else 0.0)
            if kept.any():
                tally.precision.append(float(found.right[kept].mean()))
    return tallies


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("projects", nargs="*", default=["trees", "textile", "scenes"])
    parser.add_argument("--draws", type=int, default=50)
    given = parser.parse_args()
    for name in given.projects:
        project = find_project(name)
        trust_ = project.config.trust
        print(f"\n{name}: target {trust_.target:g}, delta {trust_.delta:g}, {given.draws} draws of halves")
        print(_line("labeller", "class", "images", "certified", "coverage", "precision", "below target"))
        for trained in (False, True):
            material = Material.of(project, trained)
            for (producer, kind), t in sorted(check(material, given.draws).items()):
                figures = [str(len(material.images)), f"{t.certified / given.draws:.2f}", "-", "-", "-"]
                if t.certified:
                    figures[2] = f"{np.mean(t.coverage):.3f}"
                if t.precision:
                    below = np.mean([p <= trust_.target for p in t.precision])
                    figures[3:] = f"{np.mean(t.precision):.3f}", f"{below:.2f}"
                print(_line(producer_name(producer), kind, *figures), flush=True)


def _line(labeller: str, kind: str, *figures: str) -> str:
    return f"{labeller:22s} {kind:16s} " + " ".join(f"{figure:>12s}" for figure in figures)


if __name__ == "__main__":
    main()
