"""Labelling: models propose, gold grades them, and only what passes is accepted."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from assets import verification
from assets.collection import boxes_inside_image
from assets.conditions import follows
from assets.curation import encoder_of
from assets.grading import against_gold, gold_of, gold_tags, said_by_labellers, standing_of
from assets.metadata import picture
from assets.pictures import label_sheet
from assets.tables import Check, Finding, Stage, Work
from pipeline import (
    agreement,
    decisions,
    detect,
    exchangeability,
    fuse,
    journal,
    plots,
    prompts,
    schema,
    segment,
    tag,
    trust,
)
from pipeline.checks import scores_out_of_range, unknown_classes
from pipeline.config import Project
from pipeline.models.profiles import build_encoder, labeller_producer, segmenter_producer

_SAID = ("detections", "tags")
_FACTS = ("images", "quality", "ground_truth", "annotated_images")
_SLICES = {"evaluation": {"slices"}}


def build(project: Project) -> Stage:
    """The labelling stage of a project."""
    stage = Stage(project, "labelling")
    sound = (
        Check("boxes_inside_image", boxes_inside_image, blocking=True),
        Check("scores_in_range", scores_in_range, blocking=True),
        Check("classes_known", classes_known, blocking=True),
    )

    @stage.table("vocabulary", code="2", config=lambda p: [labellers_of(p), tags_of(p)], condition=follows())
    def vocabulary(work: Work) -> pa.Table:
        """How each labeller understood each prompt; a class without a term yields nothing."""
        drawn = detect.vocabulary(work.project)
        if not work.config.labelling.tags:
            return drawn
        texts = tag.vocabulary(encoder_of(work.project), work.project.ontology, work.config.labelling.templates)
        return pa.concat_tables([drawn, texts])

    @stage.table(
        "detections",
        "detection_counts",
        "proposals",
        "unanswered",
        "yields",
        inputs=("images",),
        code="2",
        config=labellers_of,
        checks=(*sound, Check("every_class_found", every_class_found)),
        condition=follows(),
        pool="gpu",
    )
    def detections(work: Work) -> Mapping[str, pa.Table]:
        """Every labeller looks at every image, decoded once; scores are kept raw.

        Prompts that were asked before, of the same network, are not asked again, and a labeller without prompts
        is shown new images only.
        """
        images, batch = work.read("images"), work.batch or ""
        known = detect.Found(
            work.known("detections", by_producer=True),
            work.known("detection_counts", by_producer=True),
            work.store.read_or_empty("proposals", batch),
        )
        found = detect.find(images, work.project, work.compute, work.staging("detections"), known)
        work.images, work.took = found.images, found.seconds
        work.show(labels=label_sheet(work, images, found.detections))
        brought = prompts.yields(batch, images, found.detections, found.proposals, found.unanswered, work.project)
        return {
            "detections": found.detections,
            "detection_counts": found.detection_counts,
            "proposals": found.proposals,
            "unanswered": found.unanswered,
            "yields": brought,
        }

    @stage.table(
        "tags",
        inputs=("images", "embeddings"),
        config=tags_of,
        checks=sound[1:],
        condition=follows(),
        pool="gpu",
    )
    def tags(work: Work) -> pa.Table:
        """Zero-shot classes of whole images: cosine of stored vectors with the prompts' vectors."""
        if not work.config.labelling.tags:
            return schema.table("tags").empty()
        wanted = work.read("images").column("image_id").to_pylist()
        ids, vectors = work.vectors.fetch(wanted, encoder_of(work.project), batch=work.batch)
        work.images = len(ids)
        templates, encoder = work.config.labelling.templates, build_encoder(work.config)
        return tag.tag(vectors, ids, work.batch or "", work.project.ontology, templates, encoder)

    @stage.table(
        "masks",
        inputs=("images", "detections", "ground_truth"),
        config=lambda p: [p.config.labelling.masks, p.config.labelling.mask_floor, segmenter_producer(p.config)],
        condition=follows(),
        pool="gpu",
    )
    def masks(work: Work) -> pa.Table:
        """A mask for every box likely enough and, to measure masks, for every box of which people drew the mask."""
        if not work.config.labelling.masks:
            return schema.table("masks").empty()
        truth = work.read("ground_truth")
        drawn = truth.filter(pc.is_valid(truth.column("mask")))
        found = work.read("detections")
        found = found.filter(pc.greater_equal(found.column("score"), work.config.labelling.mask_floor))
        images = work.read("images")
        wanted = segment.with_boxes(images, pa.concat_tables([found, drawn]))
        known = segment.drawn_before(work.known("masks"), wanted)
        work.images = wanted.num_rows - len(known.column("image_id").unique())
        return work.map("masks", segment.SegmentWorker, {"config": work.config}, wanted, known=known)

    @stage.table("gold", inputs=("splits",), condition=follows(), ledger=False)
    def gold_(work: Work) -> pa.Table:
        """What labellers are graded on: labelled images of train and val. Those of test only lay the grid."""
        splits = work.read("splits")
        rows = splits.filter(splits.column("gold"))
        graded = pc.is_in(rows.column("split"), pa.array(["train", "val"]))
        return rows.append_column("graded", graded).sort_by("image_id")

    @stage.table(
        "prompt_errors",
        inputs=("detections", "proposals", "gold", "ground_truth"),
        config=lambda p: [labellers_of(p), p.config.evaluation.level],
        condition=follows(),
    )
    def prompt_errors(work: Work) -> pa.Table:
        """Each prompt on gold images known to lack its class: how often it finds it there all the same."""
        gold = work.read("gold")
        ids = gold.filter(gold.column("graded")).column("image_id").to_pylist()
        batches = gold["batch"].unique().to_pylist()
        names = ("ground_truth", "detections", "proposals")
        parts = {name: work.store.read_or_empty(name, batches, images=ids) for name in names}
        return prompts.errors(ids, parts["ground_truth"], parts["detections"], parts["proposals"], work.project)

    @stage.table(
        "exchangeability",
        inputs=("images", "quality", "embeddings", *_SAID, "annotated_images", "gold"),
        config=lambda p: p.config.drift.model_dump(mode="json"),
        checks=(Check("gold_speaks_for_batch", gold_speaks_for_batch),),
        condition=follows(),
    )
    def exchangeability_(work: Work) -> pa.Table:
        """Could gold have been drawn from this batch? Its unlabelled images against gold, and against its own gold."""
        gold, labelled = work.read("gold"), work.read("annotated_images").column("image_id").to_pylist()
        graded = gold.filter(gold.column("graded"))
        own = graded.filter(pc.equal(graded.column("batch"), work.batch))
        parts = [schema.table("exchangeability").empty()]
        waiting = set(work.read("images").column("image_id").to_pylist()) - set(labelled)
        for name, rows in (("all", graded), ("batch", own)) if waiting else ():
            if rows.num_rows:
                tests = against_gold(work, rows.column("image_id").to_pylist(), labelled)
                parts.append(exchangeability.judge(tests, name))
        return pa.concat_tables(parts)

    @stage.table(
        "trust",
        "targets",
        "calibration",
        "reliability",
        inputs=(*_SAID, *_FACTS, "gold"),
        code="6",
        config=lambda p: [fusion_of(p), p.config.model_dump(mode="json", include={"trust": True, **_SLICES})],
        checks=(Check("some_class_certified", some_class_certified),),
        condition=follows(),
    )
    def trust_(work: Work) -> Mapping[str, pa.Table]:
        """Each labeller against people on gold: the score from which its labels are accepted, with a guarantee."""
        truth, gold, classes = work.read("ground_truth"), gold_of(work), work.project.ontology.names
        config, task = work.config.trust, work.config.task
        said = said_by_labellers(work, {*gold.images, *gold.design})
        said = fuse.gradable(said, work.config, gold_tags(work))
        graded = trust.grade(said, truth, gold, config, classes, task, labellers_of(work.project))
        other = trust.other_targets(said, truth, gold, config, classes, task)
        worth = trust.calibrate(said, truth, gold, config.iou, classes, task)
        if worth["reliability"].num_rows:
            overall = worth["reliability"].filter(pc.equal(worth["reliability"].column("class_name"), "all"))
            work.show(reliability=picture(plots.reliability(overall), "reliability"))
        return {"trust": graded, "targets": other, **worth}

    @stage.table(
        "decisions",
        inputs=("images",),
        external=lambda work: journal.state(work.store, work.batch or ""),
        condition=follows(),
        ledger=False,
    )
    def decisions_(work: Work) -> pa.Table:
        """What people decided in `cvp review` or another tool, out of the append-only journal."""
        return journal.read(work.store, work.batch or "")

    @stage.table("agreement", inputs=("decisions",), condition=follows(), ledger=False)
    def agreement_(work: Work) -> pa.Table:
        """Where several people decided on one label: how far they agree, beyond chance."""
        return agreement.measure(decisions.standing(work.read("decisions")))

    verification.add(stage)

    @stage.table(
        "labels",
        "audits",
        inputs=(
            *(*_SAID, *_FACTS, "masks", "gold", "trust", "exchangeability", "decisions"),
            *("verifier_trust", "verifications"),
        ),
        code="8",
        config=lambda p: [
            *(fusion_of(p), p.config.trust.review_floor, p.config.trust.iou, p.config.trust.audits),
            p.config.model_dump(mode="json", include=_SLICES),
        ],
        checks=(*sound, Check("audits_bear_out_certificates", audits_bear_out_certificates)),
        condition=follows(),
    )
    def labels(work: Work) -> Mapping[str, pa.Table]:
        """Fused: people win, then what a certificate covers, then the verifier's certified word; the rest waits."""
        said, images = work.read("decisions"), work.read("images")
        made = fuse.label_batch(
            said_by_labellers(work),
            work.read("masks"),
            work.read("trust"),
            work.read("ground_truth"),
            work.read("annotated_images").column("image_id").to_pylist(),
            images,
            work.config,
            standing_of(work),
            gold_tags(work),
            work.read("verifier_trust"),
            work.read("verifications"),
        )
        signed = work.read("verifier_trust").select(["certificate", "verifier"]).to_pylist()
        verifiers = {r["certificate"]: r["verifier"] for r in signed if r["certificate"]}
        looked_at = decisions.verdicts(said, work.config.trust.iou)
        audits = trust.draw(made, looked_at, work.config.trust.audits, verifiers)
        fused = decisions.apply(made, said, images, work.config)
        statuses = fused.column("status").value_counts().to_pylist()
        work.show(**{s["values"]: s["counts"] for s in statuses})
        if work.config.task == "detection":
            work.show(labels=label_sheet(work, images, fused))
        return {"labels": fused, "audits": audits}

    return stage


def labellers_of(project: Project) -> list[str]:
    """Producers of the project's labellers; any change to one of them changes its name."""
    return [labeller_producer(x, project.folder, project.config) for x in project.config.labelling.labellers]


def tags_of(project: Project) -> Any:
    """What tags depend on besides the vectors."""
    return [project.config.model_dump(mode="json")["classes"], project.config.labelling.templates]


def fusion_of(project: Project) -> Any:
    """How answers of several labellers become one."""
    return project.config.labelling.model_dump(mode="json", include={"nms_iou", "fusion", "agreement"})


def scores_in_range(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """Every score lies in [0, 1]."""
    bad = scores_out_of_range(next(iter(outputs.values())))
    return Finding(bad == 0, f"{bad} scores outside [0, 1]" if bad else "")


def every_class_found(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """Every class is found by some labeller in some image of the batch."""
    rows = outputs["yields"].filter(pc.equal(outputs["yields"].column("prompt"), ""))
    total = rows.group_by("class_name").aggregate([("boxes", "sum")])
    silent = sorted(total.filter(pc.equal(total.column("boxes_sum"), 0)).column("class_name").to_pylist())
    return Finding(not silent, f"nothing found of: {', '.join(silent)}; see yields" if silent else "")


def classes_known(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """Every class is one of the project's."""
    unknown = unknown_classes(next(iter(outputs.values())), work.project.ontology.names)
    return Finding(not unknown, f"unknown: {', '.join(sorted(unknown))}" if unknown else "")


def gold_speaks_for_batch(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """Certificates hold for this batch: no test tells it from the gold that they rest on."""
    doubts = exchangeability.standing(outputs["exchangeability"])
    if not doubts.get("all"):
        return Finding(True, "" if doubts else "nothing to label, or no gold")
    if doubts.get("batch") == "":
        return Finding(True, f"unlike gold ({doubts['all']}), but it has gold of its own")
    return Finding(False, f"certificates withdrawn: unlike gold ({doubts['all']}); label some of it")


def audits_bear_out_certificates(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """No labeller and class is wrong more often, in what people looked at again, than its certificate allows."""
    others = work.read_all("audits")
    rows = pa.concat_tables([others.filter(pc.not_equal(others.column("batch"), work.batch)), outputs["audits"]])
    found = trust.contradicted(rows, work.config.trust.target, work.config.trust.delta)
    looked = rows.num_rows - rows.column("right").null_count
    words = "; ".join(f"{producer.split('@')[0]} {name}: {why}" for (producer, name), why in sorted(found.items()))
    return Finding(not found, words or f"{looked} of {rows.num_rows} looked at")


def some_class_certified(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """At least one labeller is certified for at least one class."""
    rows = outputs["trust"].filter(pc.equal(outputs["trust"].column("slice"), "all"))
    passed = rows.filter(rows.column("certified")).num_rows
    near = rows.filter(pc.is_valid(rows.column("more_gold"))).num_rows
    return Finding(passed > 0, f"{passed} of {rows.num_rows} certified, {near} more with more gold")
