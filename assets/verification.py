"""Verification: a vision-language model is examined on gold, and asked where its word counts and pays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.conditions import follows
from assets.grading import gold_of, gold_tags, said_by_labellers, standing_of
from assets.tables import Check, Finding, Stage, Work
from pipeline import costs, decisions, fuse, review, schema, trust, verify
from pipeline.config import Project
from pipeline.models.vlm import Tokens, Verifier, producer

_SAID = ("detections", "tags")
_FACTS = ("images", "quality", "ground_truth", "annotated_images")
# What changes how it is asked, but neither what nor what is answered.
_HOW = {"concurrency", "per_minute", "timeout", "retries", "patience", "key_variable"}
_LIKELY = 0.5


def add(stage: Stage) -> None:
    """The tables of verification; without an endpoint in project.yaml they are empty, and nothing is sent."""
    on = stage.project.config.verification.on

    @stage.table(
        "examinations",
        inputs=(*_SAID, *_FACTS, "gold", "calibration"),
        config=settings_of,
        checks=(Check("everything_asked", everything_asked),),
        condition=follows(),
        pool="vlm",
        ledger=on,
    )
    def examinations(work: Work) -> pa.Table:
        """What the verifier says of labels on gold, with every wording; of counts, too, if they are asked for."""
        config = work.config.verification
        if not config.on:
            return schema.table("examinations").empty()
        labels, plan = _on_gold(work)
        items = verify.about_labels(plan.rows, work.config)
        compared = schema.where_in(plan.rows, "image_id", plan.comparing)
        for prompt in wordings(work.project):
            if prompt != config.prompt:
                items += verify.about_labels(compared, work.config, prompt)
        if "count" in config.questions:
            shown = plan.rows["image_id"].unique().to_pylist()
            here = schema.where_in(labels, "image_id", shown)
            truth = schema.where_in(work.read("ground_truth"), "image_id", shown)
            items += verify.about_counts(verify.counted(here, _likely(work, here), truth), work.config)
        return _asked(work, "examinations", items, work.read("images"))

    @stage.table(
        "verifier_trust",
        "prompt_evaluation",
        inputs=(*_SAID, *_FACTS, "gold", "examinations"),
        config=_grading_of,
        condition=follows(),
        ledger=on,
    )
    def verifier_trust(work: Work) -> Mapping[str, pa.Table]:
        """The verifier as a measured witness: where its yes and its no are certified, and each wording in numbers."""
        names = ("verifier_trust", "prompt_evaluation")
        if not work.config.verification.on:
            return {name: schema.table(name).empty() for name in names}
        settings, level = work.config.verification, work.config.evaluation.level
        said, truth = work.read("examinations"), work.read("ground_truth")
        labels, plan = _on_gold(work)
        how = (work.config.trust, work.project.ontology.names, work.config.task)
        mine = said.filter(pc.and_(pc.equal(said["prompt"], settings.prompt), pc.equal(said["question"], "label")))
        graded = trust.grade_verifier(mine, labels, truth, gold_of(work), plan, *how)
        compared = trust.evaluate_prompts(said, labels, truth, gold_of(work), plan, *how, settings.prompt, level)
        return dict(zip(names, (graded, compared), strict=True))

    @stage.table(
        "verifications",
        inputs=(*_SAID, *_FACTS, "gold", "trust", "exchangeability", "calibration", "decisions", "verifier_trust"),
        config=lambda p: [settings_of(p), p.config.prices.model_dump(mode="json")],
        checks=(Check("everything_asked", everything_asked), Check("counts_agree", counts_agree)),
        condition=follows(),
        pool="vlm",
        ledger=on,
    )
    def verifications(work: Work) -> pa.Table:
        """The verifier on labels that wait: where its word is certified, and costs less than a person's look saves."""
        config = work.config.verification
        if not config.on:
            return schema.table("verifications").empty()
        images, labels = work.read("images"), proposed(work)
        wanted = for_verifier(work, labels)
        items = verify.about_labels(wanted, work.config)
        if "count" in config.questions:
            standing = labels.filter(pc.not_equal(labels["status"], "rejected"))
            machine = standing.filter(pc.not_equal(standing["status"], "human"))
            items += verify.about_counts(verify.counted(machine, _likely(work, machine)), work.config)
        decided = [row["annotation_id"] for row in decisions.standing(work.read("decisions"))]
        return _asked(work, "verifications", items, images, decided)


def describe_slices(stage: Stage) -> None:
    """The table of slices in words; without an endpoint, or if it is not asked to describe, it is empty."""

    @stage.table(
        "descriptions",
        inputs=("images", "slices"),
        config=settings_of,
        condition=follows(),
        pool="vlm",
        ledger=stage.project.config.verification.on,
    )
    def descriptions(work: Work) -> pa.Table:
        """What images of each discovered slice that is confirmed have in common, as the verifier sees it."""
        config = work.config.verification
        rows = work.read("slices")
        rows = rows.filter(pc.and_(rows["confirmed"], pc.equal(rows["kind"], "discovered")))
        if not config.on or "describe" not in config.questions or not rows.num_rows:
            return schema.table("descriptions").empty()
        verifier = Verifier(work.config, work.store, ("descriptions", ""))
        made, asked = verify.describe(rows, work.read("images"), work.config, verifier)
        _bill(work, "descriptions", asked.ever)
        return made


def settings_of(project: Project) -> Any:
    """What the answers of the verifier depend on, and how many are asked for."""
    return project.config.verification.model_dump(mode="json", exclude=_HOW)


def _grading_of(project: Project) -> Any:
    """What the verifier's certificates depend on; without a verifier there are none, whatever is asked of them."""
    config = project.config
    return (
        [settings_of(project), config.trust.model_dump(mode="json"), config.evaluation.level]
        if config.verification.on
        else None
    )


def wordings(project: Project) -> list[str]:
    """Names of the wordings that are compared: none but the one in use, where project.yaml has no others."""
    config = project.config.verification
    return ["standard", *config.prompts] if config.prompts else [config.prompt]


def proposed(work: Work) -> pa.Table:
    """The labels of the batch before the verifier and people have their say."""
    return fuse.label_batch(
        said_by_labellers(work),
        schema.table("masks").empty(),
        work.read("trust"),
        work.read("ground_truth"),
        work.read("annotated_images").column("image_id").to_pylist(),
        work.read("images"),
        work.config,
        standing_of(work),
        gold_tags(work),
    )


def for_verifier(work: Work, labels: pa.Table) -> pa.Table:
    """Of `proposed` labels those to ask the verifier about, in the order to ask."""
    witness = fuse.Witness.of(work.read("trust"), work.read("verifier_trust"), standing_of(work))
    open_ = fuse.open_to_verifier(labels, witness)
    calibration, prices = work.read("calibration"), work.config.prices
    return review.for_verifier(open_, labels, calibration, witness.rows, prices, work.read("images"))


def _on_gold(work: Work) -> tuple[pa.Table, trust.Plan]:
    """Labels as they would be made on gold and design images, and those of them to ask about."""
    gold, config = gold_of(work), work.config.verification
    said = said_by_labellers(work, {*gold.images, *gold.design})
    labels = fuse.merge(said, work.config, gold_tags(work)).drop(["parts"])
    several = len(wordings(work.project)) > 1
    return labels, trust.plan(labels, gold, work.config.trust, work.project.ontology.names, config.gold, several)


def _likely(work: Work, labels: pa.Table) -> Sequence[bool]:
    right = review.probability_right(labels, work.read("calibration"))
    return list(np.asarray(right >= _LIKELY, bool))


def _asked(
    work: Work, table: str, items: Sequence[verify.Item], images: pa.Table, decided: Sequence[str] = ()
) -> pa.Table:
    """Ask, enter what it cost, and say what was left out."""
    if not items:
        return schema.table(table).empty()
    verifier = Verifier(work.config, work.store, (table, work.batch or ""))
    found = verify.ask(items, images, verifier, decided, work.compute.progress)
    work.images = len({item.row["image_id"] for item in items})
    _bill(work, table, found.ever)
    work.show(questions=len(items), answered=found.rows.num_rows, requests=found.fresh, tokens=work.tokens)
    if found.stopped:
        work.show(stopped=found.stopped)
    return schema.table(table).conform(found.rows)


def _bill(work: Work, table: str, ever: Tokens) -> None:
    """Enter the tokens that are not in the ledger yet: those of now, and what a run that was killed had paid."""
    billed = ever - _booked(work, table)
    work.took = {producer(work.config.verification): 1.0}
    work.tokens, work.tokens_written = billed.total, billed.written


def _booked(work: Work, table: str) -> Tokens:
    known = costs.ledger(work.store, work.config.prices)
    mine = known.filter(pc.and_(pc.equal(known["asset"], table), pc.equal(known["batch"], work.batch or "")))
    tokens, written = (pc.sum(mine[column]).as_py() or 0 for column in ("tokens", "tokens_written"))
    return Tokens(tokens - written, written)


def everything_asked(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """The budget had room for all questions."""
    stopped = work.metadata.get("stopped")
    rows = next(iter(outputs.values())).num_rows
    return Finding(stopped is None, stopped or (f"{rows} answers" if rows else "nothing to ask"))


def counts_agree(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """The verifier counts as many things as the labels have boxes, on nine images in ten."""
    rows = outputs["verifications"]
    rows = rows.filter(pc.and_(pc.equal(rows["question"], "count"), pc.is_valid(rows["answer"])))
    if not rows.num_rows:
        return Finding(True, "no counts were asked for")
    answers, boxes = (np.array([int(v) for v in rows[c].to_pylist()]) for c in ("answer", "boxes"))
    same = int((answers == boxes).sum())
    more = int((answers > boxes).sum())
    return Finding(same >= 0.9 * len(answers), f"{same} of {len(answers)} alike, {more} with more than the labels have")
