"""Choice of models: foundation model, trained model, or people; and which one is in charge."""

from collections.abc import Mapping

import pyarrow as pa

from assets.conditions import follows
from assets.evaluation import FACTS, SAID, everything_said, producers_of, spread
from assets.metadata import preview
from assets.tables import Check, Finding, Stage, Work
from pipeline import champion, verdict
from pipeline.config import Project
from pipeline.evaluate import paired_draws

_SHOWN = [
    "class_name", "slice", "option", "value", "low", "high", "certified_coverage", "cost_per_1000_now",
    "cost_per_1000_at_1m", "milliseconds", "recommended", "reason",
]  # fmt: skip


def build(project: Project) -> Stage:
    """The stage that compares models and chooses."""
    stage = Stage(project, "choice")

    @stage.table(
        "verdict",
        code="3",
        inputs=("evaluation", "trust", "model_trust", "gold", "costs", "models", "declared_slices", *FACTS),
        config=lambda p: [p.config.evaluation.model_dump(mode="json"), p.config.prices.model_dump(mode="json")],
        checks=(Check("a_recommendation_everywhere", a_recommendation_everywhere),),
        condition=follows(),
        ledger=False,
    )
    def verdict_(work: Work) -> pa.Table:
        """Per class and slice: each option's quality with interval, its cost, and which one to take."""
        gold = work.read("gold").filter(work.read("gold").column("graded")).column("image_id").to_pylist()
        found = verdict.decide(
            work.read("evaluation"),
            pa.concat_tables([work.read("trust"), work.read("model_trust")]),
            work.read("costs"),
            work.read("models"),
            work.read("ground_truth"),
            work.read("declared_slices"),
            work.read("annotated_images").column("image_id").to_pylist(),
            verdict.Scale(work.read("images", ["batch"]).num_rows, gold),
            work.config,
        )
        work.show(verdict=preview(found.select(_SHOWN), limit=60))
        return found

    @stage.table(
        "champion",
        inputs=(*SAID, *FACTS, "models", "evaluation", "declared_slices"),
        config=lambda p: p.config.evaluation.model_dump(mode="json"),
        condition=follows(),
        ledger=False,
    )
    def champion_(work: Work) -> pa.Table:
        """The model in charge; a challenger must not be worse on any guarded slice."""
        models, splits = everything_said(work)
        slices = work.read("declared_slices")
        truth, producers = work.read("ground_truth"), producers_of(work)
        draws = paired_draws(models, truth, splits, slices, work.config, producers, spread(work, "champion"))
        before = work.read_all("champion").column("model").to_pylist()
        return champion.choose(draws, before[0] if before else None, work.config.evaluation)

    return stage


def a_recommendation_everywhere(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """Every class and slice has exactly one recommended option."""
    rows = outputs["verdict"]
    chosen = rows.filter(rows.column("recommended")).group_by(["class_name", "slice"]).aggregate([([], "count_all")])
    places = rows.group_by(["class_name", "slice"]).aggregate([]).num_rows
    once = sum(n == 1 for n in chosen.column("count_all").to_pylist())
    return Finding(once == places, f"{once} of {places}")
