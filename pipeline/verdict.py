"""Foundation model, own labeller, trained model, or people: per class and slice, with what each costs.

The rule. An automatic option suffices when the lower end of the interval of its quality on
held-out images reaches `evaluation.sufficient`. Of those that suffice, the ones whose quality is
more than `evaluation.guard_drop` below the best are dropped, and the cheapest per image of the
rest is recommended (at equal cost: foundation, then labeller, then trained). If none suffices,
people are. Quality is AP50 for detection; for classification it is accuracy, and F1 of a class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import ProjectConfig
from pipeline.ids import producer_name

ORDER = ("foundation", "labeller", "trained", "people")
HUMAN = "human"
_ALL = "all"
_SUFFICIENT_AP50 = 0.5


@dataclass(frozen=True)
class Scale:
    """What costs are spread over.

    Attributes:
        images: how many the project has. gold: those among them that people labelled for grading and training.
    """

    images: int = 0
    gold: Sequence[str] = ()


def decide(
    evaluation: pa.Table,
    trust: pa.Table,
    costs: pa.Table,
    models: pa.Table,
    ground_truth: pa.Table,
    slices_of_images: pa.Table,
    annotated: Sequence[str],
    scale: Scale,
    config: ProjectConfig,
) -> pa.Table:
    """The table `verdict`. With a single class there are no rows of their own for it: 'all' is that class.

    Args:
        evaluation: test is used, or val where there is nothing on test.
        trust: rows of `trust` and `model_trust`, for what is certified.
        costs: the ledger. Compute per 1,000 images is that of the assets an option needs; an asset
            that several models share is charged to each in full, unless it was entered by model.
        models: the trained ones. Of those, points of a learning curve are left out.
        ground_truth, annotated: how many boxes people draw an image.
        slices_of_images: (slice, image_id). scale: see there.
    """
    spent = _Spent(costs, ground_truth, scale, config)
    measured = _measured(evaluation, models, config)
    members = _members(slices_of_images)
    rows: list[dict[str, Any]] = []
    for (name, class_name), options in sorted(measured.items(), key=_place):
        group = [_automatic(option, row, name, class_name, trust, spent) for option, row in options]
        drawn = _boxes_per_image(ground_truth, annotated, members.get(name), class_name)
        group.append(_people(name, class_name, drawn, config))
        rows += _recommended(group, config)
    return schema.table("verdict").from_rows(rows)


def quality_metric(class_name: str, config: ProjectConfig) -> str:
    """What quality means for a class (or 'all')."""
    if config.task == "detection":
        return "AP50"
    return "accuracy" if class_name == _ALL else "f1"


def sufficient(config: ProjectConfig) -> float:
    """Quality from which on people are not needed."""
    if config.evaluation.sufficient is not None:
        return config.evaluation.sufficient
    return _SUFFICIENT_AP50 if config.task == "detection" else config.trust.target


# -- options ----------------------------------------------------------------------------------------


def _measured(
    evaluation: pa.Table, models: pa.Table, config: ProjectConfig
) -> dict[tuple[str, str], list[tuple[str, dict[str, Any]]]]:
    """(slice, class) -> (option, row of evaluation), for the metric that means quality there."""
    splits = evaluation.column("split").unique().to_pylist()
    split = "test" if "test" in splits else "val"
    rows = evaluation.filter(pc.equal(evaluation.column("split"), split)).to_pylist()
    trained = dict(zip(models.column("model").to_pylist(), models.column("labels_per_class").to_pylist(), strict=True))
    own = {labeller.name for labeller in config.labelling.labellers if labeller.kind == "python"}
    found: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = {(_ALL, _ALL): []}
    for row in rows:
        if row["metric"] != quality_metric(row["class_name"], config):
            continue
        if row["class_name"] != _ALL and len(config.classes) == 1:
            continue  # the only class is all there is
        if row["model"] in trained and trained[row["model"]] is not None:
            continue
        kind = "labeller" if producer_name(row["model"]) in own else "foundation"
        option = "trained" if row["model"] in trained else kind
        found.setdefault((row["slice"], row["class_name"]), []).append((option, row))
    return found


def _place(item: tuple[tuple[str, str], Any]) -> tuple[bool, str, bool, str]:
    """'all' before slices and classes."""
    name, class_name = item[0]
    return name != _ALL, name, class_name != _ALL, class_name


def _members(slices_of_images: pa.Table) -> dict[str, pa.Array]:
    names = slices_of_images.column("slice")
    return {
        name: slices_of_images.filter(pc.equal(names, name)).column("image_id").combine_chunks()
        for name in names.unique().to_pylist()
        if name != _ALL
    }


@dataclass(frozen=True)
class _Spent:
    """The bill, and what it is spread over."""

    costs: pa.Table
    ground_truth: pa.Table
    scale: Scale
    config: ProjectConfig

    def columns(self, option: str, model: str) -> dict[str, float | None]:
        """Time and money of an automatic option."""
        seconds, money = per_thousand(self.costs, option, model, self.config.task)
        fixed = self.labels_by_hand() + (self.training() if option == "trained" else 0.0)
        now, later = (_spread(money, fixed, images) for images in (self.scale.images, 1_000_000))
        return {
            "seconds_per_1000": seconds,
            "milliseconds": seconds,  # of one image: 1,000 ms a second, 1,000 images
            "cost_per_1000": money,
            "fixed_cost": fixed,
            "cost_per_1000_now": now,
            "cost_per_1000_at_1m": later,
        }

    def labels_by_hand(self) -> float:
        """Price of the labels that people made for grading and training."""
        price, images = self.config.prices, set(self.scale.gold)
        boxes = schema.where_in(self.ground_truth, "image_id", images).num_rows
        return len(images) * price.human_image + (boxes * price.human_box if self.config.task == "detection" else 0.0)

    def training(self) -> float:
        rows = self.costs.filter(pc.equal(self.costs.column("asset"), "models"))
        return float(rows.sort_by("started_at").column("money").to_pylist()[-1]) if rows.num_rows else 0.0


def _spread(running: float | None, fixed: float, images: int) -> float | None:
    return None if running is None or not images else running + 1000 * fixed / images


def _automatic(
    option: str, row: dict[str, Any], name: str, class_name: str, trust: pa.Table, spent: _Spent
) -> dict[str, Any]:
    return {
        "class_name": class_name,
        "slice": name,
        "option": option,
        **{k: row[k] for k in ("model", "metric", "value", "low", "high", "support")},
        **certified(trust, row["model"], class_name, name),
        **spent.columns(option, row["model"]),
    }


def _people(name: str, class_name: str, boxes: float | None, config: ProjectConfig) -> dict[str, Any]:
    """People define what is right, so their quality is 1 without an interval."""
    price = config.prices
    money: float | None = 1000 * price.human_image
    if config.task == "detection":
        money = None if boxes is None else 1000 * (price.human_image + boxes * price.human_box)
    return {
        "class_name": class_name,
        "slice": name,
        "option": "people",
        "model": HUMAN,
        "metric": quality_metric(class_name, config),
        "value": 1.0,
        "support": 0,
        "certified_coverage": 1.0,
        "certified_recall": 1.0,
        "cost_per_1000": money,
        "fixed_cost": 0.0,
        "cost_per_1000_now": money,
        "cost_per_1000_at_1m": money,
    }


def per_thousand(costs: pa.Table, option: str, model: str, task: str) -> tuple[float | None, float | None]:
    """Seconds and money of 1,000 images: this model's own entries, else those of the assets it needs."""
    made_by = "predictions" if option == "trained" else "detections" if task == "detection" else "tags"
    assets = [made_by] if task == "detection" else ["embeddings", made_by]
    seconds, money = 0.0, 0.0
    for asset in assets:
        rows = costs.filter(pc.and_(pc.equal(costs.column("asset"), asset), pc.greater(costs.column("images"), 0)))
        own = rows.filter(pc.equal(rows.column("producer"), model))
        rows = own if own.num_rows else rows
        images = pc.sum(rows.column("images")).as_py()
        if not images:
            return None, None
        seconds += 1000 * pc.sum(rows.column("seconds")).as_py() / images
        money += 1000 * pc.sum(rows.column("money")).as_py() / images
    return seconds, money


def certified(trust: pa.Table, model: str, class_name: str, name: str) -> dict[str, Any]:
    """What gold certifies of a model: of its answers, and of what was there, the shares that are accepted.

    Of all classes together, each counts with its answers and objects on gold. None where the model was not
    graded there. `promise` says it in words, for the reason.
    """
    same = pc.and_(pc.equal(trust.column("producer"), model), pc.equal(trust.column("slice"), name))
    rows = trust.filter(same)
    if class_name != _ALL:
        rows = rows.filter(pc.equal(rows.column("class_name"), class_name))
    found = rows.to_pylist()
    if not found:
        return {"certified_coverage": None, "certified_recall": None, "promise": ""}
    sure = [r for r in found if r["certified"]]
    coverage, recall = (
        sum(r[share] * r[of] for r in sure) / total if (total := sum(r[of] for r in found)) else None
        for share, of in (("coverage", "candidates"), ("recall", "gold"))
    )
    return {"certified_coverage": coverage, "certified_recall": recall, "promise": _promise(found, sure, coverage)}


def _promise(found: list[dict[str, Any]], sure: list[dict[str, Any]], coverage: float | None) -> str:
    target, unit = found[0]["target"], "locations" if found[0]["unit"] == "location" else "images"
    if sure:
        of = "" if len(found) == 1 else f" in {len(sure)} of {len(found)} classes"
        return f"; certified above {target:.0%}: {coverage or 0:.0%} of its answers{of}"
    more = [r["more_gold"] for r in found if r["more_gold"] is not None]
    nearest = f", {min(more)} more gold {unit} may do" if more else ""
    return f"; nothing certified at {target:.0%}{nearest}"


def _boxes_per_image(
    ground_truth: pa.Table, annotated: Sequence[str], members: pa.Array | None, class_name: str
) -> float | None:
    """Mean number of boxes that people drew on the annotated images of a slice; None without such images."""
    images = set(annotated) if members is None else set(annotated) & set(members.to_pylist())
    if not images:
        return None
    rows = schema.where_in(ground_truth, "image_id", images)
    if class_name != _ALL:
        rows = rows.filter(pc.equal(rows.column("class_name"), class_name))
    return float(rows.num_rows / len(images))


# -- the rule ---------------------------------------------------------------------------------------


def _recommended(group: list[dict[str, Any]], config: ProjectConfig) -> list[dict[str, Any]]:
    """One class and slice, each option with whether to take it and why."""
    floor, drop = sufficient(config), config.evaluation.guard_drop
    automatic = [row for row in group if row["option"] != "people"]
    enough = [row for row in automatic if _assured(row) >= floor]
    best = max((row["value"] for row in enough), default=math.nan)
    near = [row for row in enough if row["value"] >= best - drop]
    people = group[-1]
    chosen = min(near, key=_price) if near else people
    for row in group:
        row["recommended"] = row is chosen
        row["reason"] = _why(row, chosen, automatic, best, floor, drop) + row.pop("promise", "")
    return sorted(group, key=lambda row: (ORDER.index(row["option"]), row["model"]))


def _assured(row: dict[str, Any]) -> float:
    """The quality that can be counted on: the lower limit, or the value where there is no interval."""
    sure = row["low"] if row["low"] is not None else row["value"]
    return -math.inf if sure is None else float(sure)


def _price(row: dict[str, Any]) -> tuple[float, int, float, str]:
    money = math.inf if row["cost_per_1000"] is None else row["cost_per_1000"]
    return money, ORDER.index(row["option"]), -row["value"], row["model"]


def _why(
    row: dict[str, Any],
    chosen: dict[str, Any],
    automatic: list[dict[str, Any]],
    best: float,
    floor: float,
    drop: float,
) -> str:
    """The rule's words for one option."""
    metric, value = row["metric"], row["value"]
    if row["option"] == "people":
        if row is not chosen:
            return f"not needed: {producer_name(chosen['model'])} suffices"
        known = [r for r in automatic if r["value"] is not None]
        if not known:
            return "no automatic option has been measured here"
        top = max(known, key=lambda r: (r["value"], r["model"]))
        best_one = producer_name(top["model"])
        return f"no automatic option is sure of {metric} {floor:g}; the best, {best_one}, has {_interval(top)}"
    if value is None:
        return f"{metric} is undefined: no objects of this class on the held-out images of this slice"
    if _assured(row) < floor:
        return f"{metric} {_interval(row)} is not surely {floor:g}"
    if value < best - drop:
        return f"{metric} {_interval(row)} is enough, but more than {drop:g} below the best ({best:.2f})"
    if row is chosen:
        return f"{metric} {_interval(row)} is surely {floor:g}, within {drop:g} of the best, and the cheapest such"
    return f"{metric} {_interval(row)} is enough, but {producer_name(chosen['model'])} costs no more"


def _interval(row: dict[str, Any]) -> str:
    if row["low"] is None or not np.isfinite(row["low"]):
        return f"{row['value']:.2f}"
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
