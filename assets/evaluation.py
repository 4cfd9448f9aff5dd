"""Evaluation: every model, zero-shot ones included, by class and slice, and why they fail."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from assets import verification
from assets.conditions import follows
from assets.curation import encoder_of
from assets.grading import graded_on
from assets.labelling import classes_known, labellers_of, scores_in_range
from assets.metadata import picture, preview
from assets.pictures import image_sheet, label_sheet
from assets.tables import Check, Finding, Stage, Work
from assets.training import embeddings_of
from pipeline import failures, label_errors, looked, plots, predict, schema, slices, trust
from pipeline.compute import in_order, without
from pipeline.config import Project
from pipeline.evaluate import (
    Spread,
    class_shares,
    compare,
    evaluate,
    gather,
    image_errors,
    mask_agreement,
    mask_precision,
)
from pipeline.models import profiles
from pipeline.splits import places_of

SAID = ("detections", "tags", "predictions")
FACTS = ("images", "quality", "splits", "ground_truth", "annotated_images")


def build(project: Project) -> Stage:
    """The evaluation stage of a project."""
    stage = Stage(project, "evaluation")

    @stage.table(
        "predictions",
        "prediction_counts",
        inputs=("images", "models", "embeddings"),
        code="3",
        checks=(
            Check("scores_in_range", scores_in_range, blocking=True),
            Check("classes_known", classes_known, blocking=True),
        ),
        condition=follows(),
        pool="gpu",
    )
    def predictions(work: Work) -> Mapping[str, pa.Table]:
        """What the trained models say of every image of the batch; none is shown the same image twice."""
        images = work.read("images")
        work.images = 0
        parts = [(schema.table("predictions").empty(), schema.table("prediction_counts").empty())]
        for model in predict.labelling(work.read("models")).to_pylist():
            start = time.perf_counter()
            parts.append((probed if model["kind"] == "linear_probe" else predicted)(work, model, images))
            work.took[model["model"]] = time.perf_counter() - start
        said, counts = (pa.concat_tables(tables) for tables in zip(*parts, strict=True))
        if project.config.task == "detection":
            work.show(predictions=label_sheet(work, images, said))
        return {"predictions": said, "prediction_counts": counts}

    @stage.table(
        "model_trust",
        inputs=("predictions", "models", "ground_truth", "splits"),
        code="2",
        config=lambda p: p.config.trust.model_dump(mode="json"),
        condition=follows(),
    )
    def model_trust(work: Work) -> pa.Table:
        """The trained models graded on val, which they never saw."""
        gold = graded_on(work, ("val",))
        return trust.grade(
            work.read("predictions", images=gold.design),
            work.read("ground_truth"),
            gold,
            work.config.trust,
            work.project.ontology.names,
            work.config.task,
            predict.labelling(work.read("models")).column("model").to_pylist(),
        )

    @stage.table(
        "map",
        "map_axes",
        inputs=("images", "embeddings"),
        config=lambda p: [encoder_of(p), p.config.evaluation.polygons],
        condition=follows(),
    )
    def map_(work: Work) -> Mapping[str, pa.Table]:
        """Two coordinates an image, on axes that stay where they are when images are added."""
        images = work.read("images", ["image_id", "batch"])
        ids, vectors = work.vectors.fetch(images.column("image_id").unique().to_pylist(), encoder_of(project))
        tables = slices.map_of(encoder_of(project), ids, vectors, work.store.read_or_empty("map_axes"))
        drawn = plots.embedding_map(tables["map"], images, work.config.evaluation.polygons)
        work.show(map=picture(drawn, "map"))
        return tables

    @stage.table(
        "declared_slices",
        inputs=(*FACTS, "embeddings", "map"),
        config=lambda p: [s.model_dump(mode="json") for s in p.config.evaluation.slices],
        condition=follows(),
    )
    def declared_slices_(work: Work) -> pa.Table:
        """The images of each slice that the project declares: by a predicate, a text, or a polygon on the map."""
        wanted, facts = work.config.evaluation.slices, facts_of(work)
        ids, vectors = work.vectors.fetch(facts.column("image_id").unique().to_pylist(), encoder_of(project))
        texts = partial(texts_of, work, "a slice declared by a text")
        return slices.declared_table(facts, wanted, ids, vectors, work.read("map"), texts)

    @stage.table(
        "evaluation",
        "confusion",
        "curves",
        inputs=(*SAID, *FACTS, "masks", "models", "trust", "model_trust", "declared_slices"),
        code="6",
        config=lambda p: [p.config.evaluation.model_dump(mode="json"), p.config.trust.iou],
        condition=follows(),
    )
    def evaluation(work: Work) -> Mapping[str, pa.Table]:
        """COCO AP and AR and what each kind of error costs, or accuracy and calibration; counting; with intervals."""
        models, splits = everything_said(work)
        labelled = labelled_of(splits)
        graded = pa.concat_tables([work.read("trust"), work.read("model_trust")])
        truth, slices_ = work.read("ground_truth"), work.read("declared_slices")
        given = class_shares(*(work.read(name, images=labelled) for name in SAID))
        tables = evaluate(
            models,
            truth,
            splits,
            slices_,
            work.config,
            graded,
            producers_of(work),
            given,
            spread(work, "evaluation", "boxes"),
        )
        drawn, images = (work.read(name, images=labelled) for name in ("masks", "images"))
        masks = drawn, truth, images, splits, slices_, work.config
        measured = mask_agreement(*masks), mask_precision(models, *masks, spread(work, "evaluation", "masks"))
        tables["evaluation"] = pa.concat_tables([tables["evaluation"], *measured])
        if tables["curves"].num_rows:
            work.show(precision_recall=picture(plots.precision_recall(tables["curves"]), "precision and recall"))
        return tables

    @stage.table(
        "comparisons",
        inputs=(*SAID, *FACTS, "masks", "models", "declared_slices", "evaluation"),
        code="4",
        config=lambda p: [p.config.evaluation.model_dump(mode="json"), p.config.trust.iou],
        condition=follows(),
    )
    def comparisons(work: Work) -> pa.Table:
        """Every two models on the same test images: the difference, its interval, and whether it is beyond chance."""
        models, splits = everything_said(work)
        truth, slices_ = work.read("ground_truth"), work.read("declared_slices")
        masks, images = (work.read(name, images=labelled_of(splits)) for name in ("masks", "images"))
        more = masks, images, work.read("evaluation")
        found = compare(
            models, truth, splits, slices_, work.config, producers_of(work), *more, spread(work, "comparisons")
        )
        work.show(comparisons=preview(found, limit=60))
        return found

    @stage.table(
        "slices",
        "slice_traits",
        "slice_images",
        "slice_history",
        inputs=(*SAID, *FACTS, "models", "evaluation", "embeddings", "declared_slices"),
        code="9",
        config=lambda p: [p.config.evaluation.model_dump(mode="json"), p.config.ontology.prompts()],
        checks=(Check("no_slice_confirmed_worse", no_slice_confirmed_worse),),
        condition=follows(),
    )
    def slices_(work: Work) -> Mapping[str, pa.Table]:
        """Declared, searched and discovered slices with each model's error; what was found is asked of other images."""
        models, splits = everything_said(work)
        truth = work.read("ground_truth")
        errors = image_errors(models, truth, splits, work.read("evaluation"), work.config, producers_of(work))
        facts = facts_of(work)
        ids, vectors = work.vectors.fetch(facts.column("image_id").unique().to_pylist(), encoder_of(work.project))
        named = work.config.evaluation.search or work.config.evaluation.discover
        tables = slices.slice_table(
            work.read("declared_slices"),
            errors,
            facts,
            ids,
            vectors,
            work.config.evaluation,
            words=words_of(work) if named and errors.num_rows else {},
            before=work.store.read_or_empty("slices"),
        )
        table = tables["slices"]
        worst = table.filter(table.column("confirmed")).sort_by([("value", "descending")])
        if worst.num_rows:
            shown = worst.column("members")[0].as_py()
            work.show(worst_confirmed_slice=image_sheet(work, work.read("images"), shown))
        before = work.store.read_or_empty("slice_history")
        return tables | {"slice_history": slices.history(table, before, datetime.now(UTC))}

    whole = project.config.task == "classification"

    @stage.table(
        "label_errors",
        inputs=(*SAID, "masks", "images", "ground_truth", "splits", "models")
        + (("duplicates", "embeddings") if whole else ()),
        code="4",
        config=lambda p: p.config.trust.iou,
        condition=follows(),
    )
    def label_errors_(work: Work) -> pa.Table:
        """What people probably labelled wrongly, by models that did not learn from it."""
        if whole:
            return wrong_classes(work)
        models, splits = everything_said(work)
        labelled = labelled_of(splits)
        work.images = len(labelled)
        return label_errors.find_boxes(
            models,
            work.read("masks", images=labelled),
            work.read("ground_truth"),
            work.read("images", images=labelled),
            splits,
            work.read("models").column("model").to_pylist(),
            work.project.ontology.names,
            work.config.trust.iou,
        )

    @stage.table(
        "failures",
        inputs=(*SAID, *FACTS, "masks", "models", "evaluation", "label_errors", "embeddings"),
        code="5",
        config=lambda p: p.config.trust.iou,
        condition=follows(),
    )
    def failures_(work: Work) -> pa.Table:
        """Every miss and false alarm on held-out images: what it costs, and what may have caused it."""
        models, splits = everything_said(work)
        labelled = labelled_of(splits)
        images = work.read("images", images=labelled)
        ids, vectors = work.vectors.fetch(images.column("image_id").unique().to_pylist(), encoder_of(work.project))
        return failures.find(
            models,
            work.read("ground_truth"),
            images,
            work.read("quality", images=labelled),
            splits,
            work.read("evaluation"),
            work.read("label_errors"),
            work.read("masks", images=labelled),
            ids,
            vectors,
            work.config,
            producers_of(work),
        )

    verification.describe_slices(stage)
    return stage


Said = tuple[pa.Table, pa.Table]  # rows of `predictions` and of `prediction_counts`


def probed(work: Work, model: dict[str, Any], images: pa.Table) -> Said:
    """A linear probe on the stored vectors of all images: no pixels are read."""
    path = work.store.file(predict.FOLDER, Path(model["path"]).name)
    vectors = embeddings_of(work, images)
    said = predict.predict_classes(model["model"], path, model["sha256"], images, vectors)
    work.images = images.num_rows
    return said, counts_of(model, schema.where_in(images, "image_id", vectors.image_ids), said)


def predicted(work: Work, model: dict[str, Any], images: pa.Table) -> Said:
    """A network on the images that it has not seen yet; of the others, what it said then."""
    counts, said = work.known("prediction_counts"), work.known("predictions")
    mine = pc.and_(pc.equal(counts["producer"], model["model"]), pc.equal(counts["checkpoint"], model["sha256"]))
    there = pc.is_in(counts["image_id"], images["image_id"].combine_chunks())
    counts = looked.standing(counts.filter(pc.and_(mine, there)), said)
    said, seen = looked.rows_of(said, counts), counts.select(looked.KEYS)
    if (new := without(images, counts)).num_rows:
        worker, options = predict.worker(model, work.config.source.max_pixels, work.store.uri)
        more, marks = looked.apart(work.map("predictions", worker, options, new, model["model"]), "predictions")
        said = in_order(pa.concat_tables([said, more]), images)
        seen = in_order(pa.concat_tables([seen, marks.cast(seen.schema)]), images)
    return said, counts_of(model, seen, said)


def counts_of(model: dict[str, Any], seen: pa.Table, said: pa.Table) -> pa.Table:
    """Rows of `prediction_counts` of the images that a model has seen."""
    same = {"producer": model["model"], "checkpoint": model["sha256"]}
    columns = {name: pa.array([value] * seen.num_rows, pa.string()) for name, value in same.items()}
    marks = pa.table({**{name: seen[name] for name in ("image_id", "batch")}, **columns})
    return schema.table("prediction_counts").conform(looked.counted(marks, said))


def spread(work: Work, table: str, part: str = "") -> Spread:
    """Where models and slices are measured and compared: as all other work."""
    return Spread(work.compute, work.staging(table, part))


def everything_said(work: Work) -> tuple[pa.Table, pa.Table]:
    """What every labeller and model says of the images that people labelled, and the splits."""
    splits = work.read("splits")
    labelled = labelled_of(splits)
    detections, predictions = (work.read(name, images=labelled) for name in ("detections", "predictions"))
    whole = work.config.task == "classification"
    tags = work.read("tags", images=labelled) if whole else schema.table("tags").empty()
    return gather(detections, predictions, tags), splits


def labelled_of(splits: pa.Table) -> list[str]:
    """The images that people labelled: nothing else can be measured."""
    return splits.filter(splits.column("gold")).column("image_id").to_pylist()


def wrong_classes(work: Work) -> pa.Table:
    """Classes that people probably gave wrongly, by tags or by a probe that did not learn from them."""
    splits = work.read("splits")
    labelled = labelled_of(splits)
    work.images = len(labelled)
    return label_errors.find_classes(
        work.read("tags", images=labelled),
        work.read("ground_truth"),
        splits,
        work.project.ontology.names,
        embeddings_of(work, splits.filter(splits.column("gold"))),
        places_of(splits, work.read("duplicates")),
    )


def producers_of(work: Work) -> list[str]:
    """Every model to measure, those that said nothing included."""
    return [*labellers_of(work.project), *predict.labelling(work.read("models")).column("model").to_pylist()]


def texts_of(work: Work, needed_by: str) -> Callable[[Sequence[str]], NDArray[np.floating]]:
    """The project's encoder of texts."""
    return slices.text_tower(profiles.build_encoder(work.config), needed_by)


def words_of(work: Work) -> dict[str, NDArray[np.float32]]:
    """The vocabulary that found slices are named with."""
    encode = texts_of(work, "naming slices in words")
    return slices.vocabulary(work.project.ontology, encode, work.config.evaluation.words)


def facts_of(work: Work) -> pa.Table:
    """What is known of each image, one row for each batch that it arrived in."""
    annotated = work.read("annotated_images").column("image_id").to_pylist()
    counts = slices.image_counts(work.read("ground_truth"), annotated)
    return slices.per_image(work.read("images"), work.read("quality"), work.read("splits"), counts)


def no_slice_confirmed_worse(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """No slice is worse than the rest beyond chance, for any model."""
    rows = outputs["slices"]
    worse = rows.filter(rows.column("confirmed"))
    names = [f"{r['slice']} ({r['model'].split('@')[0]})" for r in worse.to_pylist()]
    return Finding(not names, ", ".join(names[:6]))
