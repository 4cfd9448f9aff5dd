"""What a certificate saves: work of people until a data set is as right as promised, on real photos.

People label a random `gold` set; the model is graded on it; what its certificates cover is accepted, and people
do the rest. Two others do without certificates per class:

- by hand: people label everything.
- random review: people look at images drawn at random until all the others together can take the model's label,
  that is until the share that it gets right is above the target by a Clopper-Pearson bound (delta shared over the
  sizes that are tried). It promises what a certificate does, of all labels of the model as one.

textile: images with one class each; the model is a probe on stored vectors, learned from one half of gold and
graded on the other, for both ways. scenes: boxes; the compact detector, graded on gold; the data set is complete
when every object has a box: a look says yes or no to a proposal that is likely enough to pay, what is missed is
drawn, and every image is opened. Looks without certificates take the place of random review. Prices are the
project's.

Needs the tables: cvp run textile; cvp run scenes.
Run: python benchmarks/money.py [PROJECT ...] [--draws 20] [--target 0.9] [--plot FOLDER]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from trust_halves import accepted as accepted_by

from pipeline import plots, trust
from pipeline.config import Project, find_project
from pipeline.intervals import clopper_pearson
from pipeline.store import Store
from pipeline.train.probe import Labelled, fit
from pipeline.trust.judge import Answers, judge
from pipeline.vectors import Vectors

SHARES = (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # of the images, that gold is
PRODUCER = "model@1#0"


@dataclass(frozen=True)
class Outcome:
    """One data set: what people did, in labels (or money), and the share of wrong ones among accepted labels."""

    effort: float
    accepted: int
    wrong: int
    certified: int


# -- textile ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tags:
    """(n, d) vectors of all images, their n classes, as people see them, and the places they come from."""

    images: list[str]
    vectors: NDArray[np.float32]
    truth: NDArray[np.str_]
    places: NDArray[np.str_]

    @classmethod
    def of(cls, project: Project) -> Tags:
        store = Store(project.store_uri)
        people = store.read("ground_truth").sort_by("image_id")
        encoder = store.read("embeddings")["encoder"][0].as_py()
        ids, vectors = Vectors(store.uri).fetch(people["image_id"].to_pylist(), encoder)
        named = dict(zip(people["image_id"].to_pylist(), people["class_name"].to_pylist(), strict=True))
        images = store.read("images")
        places = dict(zip(images["image_id"].to_pylist(), images["location"].to_pylist(), strict=True))
        return cls(list(ids), vectors, np.array([named[i] for i in ids]), np.array([places[i] for i in ids]))

    def shuffled(self, draw: int) -> NDArray[np.int64]:
        """(n,) images at random, those of one place beside each other: a place is not on both sides of a cut."""
        _, place = np.unique(self.places, return_inverse=True)
        rank = np.random.default_rng(draw).permutation(place.max() + 1)
        return np.argsort(rank[place], kind="stable")

    def learned(self, train: NDArray[np.int64]) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
        """The class of every image and its probability, by a probe on some."""
        probe = fit(Labelled(self.vectors[train], self.truth[train]), "", 0)
        said = probe.probabilities(self.vectors)
        return np.array(probe.classes)[said.argmax(axis=1)], said.max(axis=1)

    def table(self, names: NDArray[np.str_], scores: NDArray[np.float64]) -> pa.Table:
        return pa.table(
            {
                "producer": [PRODUCER] * len(self.images),
                "image_id": self.images,
                "class_name": names.tolist(),
                "score": pa.array(scores.astype(np.float32)),
            }
        )


def tags(project: Project, draws: int) -> Iterator[tuple[str, float, list[Outcome]]]:
    """(way, share of gold, outcomes) of textile, effort in labels."""
    data = Tags.of(project)
    n = len(data.images)
    yield "by hand", 0.0, [Outcome(n, 0, 0, 0)]
    for share in SHARES:
        found: dict[str, list[Outcome]] = {"certified": [], "random review": []}
        for draw in range(draws):
            order = data.shuffled(draw)
            train, graded, rest = np.split(order, [round(share * n / 2), round(share * n)])
            names, scores = data.learned(train)
            right = names == data.truth
            found["certified"].append(_certified(project, data, names, scores, graded, rest))
            found["random review"].append(_all_or_nothing(project, right, train, graded, rest))
        for way, outcomes in found.items():
            yield way, share, outcomes


def _certified(project: Project, data: Tags, names: Any, scores: Any, graded: Any, rest: Any) -> Outcome:
    """The certificates of the graded images, applied to the rest."""
    config, classes = project.config.trust, project.ontology.names
    truth = pa.table({"image_id": data.images, "class_name": data.truth.tolist()})
    images = np.array(data.images)
    gold = trust.Gold(images[graded].tolist(), images[rest].tolist())
    table = trust.grade(data.table(names, scores), truth, gold, config, classes, "classification")
    rows = {r["class_name"]: r for r in table.to_pylist()}
    least = np.array([rows[c]["threshold"] if rows[c]["certified"] else np.inf for c in names[rest]])
    kept = rest[scores[rest].astype(np.float32) >= least.astype(np.float32)]
    wrong = int((names[kept] != data.truth[kept]).sum())
    return Outcome(len(data.images) - len(kept), len(kept), wrong, sum(r["certified"] for r in rows.values()))


def _all_or_nothing(project: Project, right: Any, train: Any, graded: Any, rest: Any) -> Outcome:
    """The rest as the model says, if the graded images vouch for all of it together."""
    config = project.config.trust
    delta = config.delta / len(SHARES)
    low, _ = clopper_pearson(int(right[graded].sum()), len(graded), 1 - delta)
    n = len(train) + len(graded) + len(rest)
    if low is None or low <= config.target:
        return Outcome(n, 0, 0, 0)
    return Outcome(n - len(rest), len(rest), int((~right[rest]).sum()), 1)


# -- scenes ----------------------------------------------------------------------------------------


def boxes(project: Project, draws: int) -> Iterator[tuple[str, float, list[Outcome]]]:
    """(way, share of gold, outcomes) of scenes, effort in money."""
    store, config, prices = Store(project.store_uri), project.config, project.config.prices
    truth, said = store.read("ground_truth"), store.read("detections")
    images = store.read("annotated_images")["image_id"].unique().sort().to_pylist()
    objects = truth.filter(pc.invert(pc.or_(truth["ignore"], truth["is_crowd"]))).num_rows
    opened = len(images) * prices.human_image
    yield "by hand", 0.0, [Outcome(opened + objects * prices.human_box, 0, 0, 0)]
    classes = project.ontology.names
    answers = dict(judge("detection", said, truth, images, classes, config.trust.iou))
    producer = said["producer"][0].as_py()
    for share in SHARES:
        found: dict[str, list[Outcome]] = {"certified": [], "looks at all": []}
        for draw in range(draws):
            gold = np.zeros(len(images), bool)
            gold[np.random.default_rng(draw).permutation(len(images))[: round(share * len(images))]] = True
            inside, outside = ([i for i, g in zip(images, gold, strict=True) if g is s] for s in (True, False))
            graded = trust.Gold(inside, outside)
            table = trust.grade(said, truth, graded, config.trust, classes, "detection", [producer])
            rows = {r["class_name"]: r for r in table.to_pylist() if r["slice"] == "all"}
            likely = _calibration(answers.values(), gold)
            for way in found:
                money, accepted, wrong, certified = opened, 0, 0, 0
                for name, mine in answers.items():
                    row = rows[name]
                    known = gold[mine.image]
                    covered = way == "certified" and row["certified"]
                    taken = accepted_by(mine, row) & ~known if covered else np.zeros(len(known), bool)
                    pays = likely(mine.score) * prices.human_box > prices.human_look
                    looked = ~known & ~taken & pays
                    have = int((mine.right & (taken | looked)).sum())
                    money += looked.sum() * prices.human_look + (mine.objects.sum() - have) * prices.human_box
                    accepted, wrong = accepted + int(taken.sum()), wrong + int((taken & ~mine.right).sum())
                    certified += bool(row["certified"])
                found[way].append(Outcome(money, accepted, wrong, certified if way == "certified" else 0))
        for way, outcomes in found.items():
            yield way, share, outcomes


def _calibration(answers: Iterable[Answers], gold: NDArray[np.bool_]) -> Callable[[Any], Any]:
    """score -> share right on gold, over all classes."""
    known = [(a.score[gold[a.image]], a.right[gold[a.image]]) for a in answers]
    score, right = (np.concatenate(parts) for parts in zip(*known, strict=True))
    if not len(score):
        return lambda s: np.zeros(len(s))
    model = IsotonicRegression(out_of_bounds="clip", y_min=0, y_max=1).fit(score, right)
    return model.predict


# -- both ------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("projects", nargs="*", default=["textile", "scenes"])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--target", type=float, help="precision to promise; default: the project's own")
    parser.add_argument("--plot", type=Path, help="write the curves to this folder, as money_PROJECT.png")
    given = parser.parse_args()
    for name in given.projects:
        project = find_project(name)
        if given.target:
            trust_ = project.config.trust.model_copy(update={"target": given.target})
            project = Project(project.config.model_copy(update={"trust": trust_}), project.folder)
        unit = "labels" if project.config.task == "classification" else project.config.prices.currency
        settings = project.config.trust
        print(f"\n{name}: target {settings.target:g}, delta {settings.delta:g}, {given.draws} draws; effort in {unit}")
        head = ("effort", 8), ("of all", 7), ("accepted", 9), ("precision", 10), ("classes", 8)
        print(f"{'way':15s} {'gold':>6s} " + " ".join(f"{title:>{width}s}" for title, width in head))
        whole, curves = 0.0, dict[str, list[tuple[float, float, float, float]]]()
        for way, share, outcomes in (tags if unit == "labels" else boxes)(project, given.draws):
            effort = np.array([o.effort for o in outcomes])
            whole = whole or float(effort.mean())
            accepted, wrong = (sum(getattr(o, f) for o in outcomes) for f in ("accepted", "wrong"))
            right = f"{1 - wrong / accepted:.3f}" if accepted else "-"
            classes = np.mean([o.certified for o in outcomes])
            print(
                f"{way:15s} {share:6.1%} {effort.mean():8.1f} {effort.mean() / whole:7.1%} "
                f"{accepted / len(outcomes):9.1f} {right:>10s} {classes:8.2f}",
                flush=True,
            )
            low, high = np.quantile(effort / whole, [0.1, 0.9])
            curves.setdefault(way, []).append((share, effort.mean() / whole, low, high))
        if given.plot:
            draw(curves, name, given.plot / f"money_{name}.png")


def draw(curves: dict[str, list[tuple[float, float, float, float]]], name: str, path: Path) -> None:
    """People's work over the size of gold; bands hold four draws in five."""
    figure = Figure(figsize=(4.6, 3.0), dpi=160, layout="constrained")
    axes = figure.add_subplot(title=f"{name}: people's work, all by hand = 1", xlabel="share of images in gold")
    for (way, points), colour in zip(curves.items(), plots.SERIES, strict=False):
        share, mean, low, high = np.array(points).T
        if way == "by hand":
            axes.axhline(1.0, color=plots.SOFT, linestyle=":", label=way)
            continue
        axes.plot(share, mean, color=colour, marker="o", markersize=3, label=way)
        axes.fill_between(share, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_ylim(0, 1.15)
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
