"""Training: a pinned snapshot, and a small model where that is the better buy."""

from collections.abc import Mapping

import pyarrow as pa

from assets.conditions import at_first_and_on_schedule, follows_only
from assets.curation import encoder_of
from assets.metadata import picture
from assets.tables import Check, Finding, Stage, Work
from pipeline import dataset, plots, schema, train
from pipeline.config import Project
from pipeline.models.probe import Embeddings


def build(project: Project) -> Stage:
    """The training stage of a project."""
    stage = Stage(project, "training")

    @stage.table(
        "training_set",
        inputs=("images", "labels", "splits"),
        code="2",
        checks=(Check("every_class_present", every_class_present),),
        condition=at_first_and_on_schedule(project.config.schedules.training),
    )
    def training_set(work: Work) -> pa.Table:
        """People's labels of train and val, and accepted labels of images that people have not labelled."""
        return dataset.snapshot(work.read("labels"), work.read("splits"), work.read("images", ["image_id"]))

    @stage.table(
        "models",
        "learning_curves",
        inputs=("images", "training_set", "splits", "annotated_images", "ground_truth", "embeddings"),
        config=lambda p: [
            *(p.config.training.model_dump(mode="json"), p.config.task, p.config.evaluation.level),
            train.depends_on(p.config),
        ],
        condition=follows_only(project, ("training_set",)),
        pool="gpu",
        kinds=("pytorch",),
    )
    def models(work: Work) -> Mapping[str, pa.Table]:
        """A detector on the ImageNet backbone, a linear probe on stored vectors, or a fine-tuned foundation model."""
        images, splits, truth = work.read("images"), work.read("splits"), work.read("ground_truth")
        probing = train.kind_of(work.config) == "linear_probe"
        test = schema.where_in(splits.filter(splits.column("gold")), "split", ("test",))
        result = train.train(
            work.config,
            images,
            work.read("training_set"),
            splits,
            work.read("annotated_images"),
            work.store,
            work.compute,
            work.compute.progress,
            embeddings=embeddings_of(work, images) if probing else None,
            held_out=schema.where_in(truth, "image_id", test.column("image_id").to_pylist()),
        )
        for row in result.models.to_pylist():
            work.device = row["device"]
            if row["history"] != "[]":
                work.show(loss=picture(plots.training_loss(row["history"]), "training loss"))
            if row["kind"] in train.ROLES:
                work.show(use=f"models: {{{train.ROLES[row['kind']]}: {row['path']}}}", **gains(result.curves))
        if probing and result.curves.num_rows:
            work.show(learning_curve=picture(plots.learning_curve(result.curves), "learning curve"))
        return {"models": result.models, "learning_curves": result.curves}

    return stage


def gains(curves: pa.Table) -> dict[str, str]:
    """By split, how good a fine-tuned model was before and after, with intervals."""
    said: dict[str, list[str]] = {}
    for point in curves.sort_by("x").to_pylist():
        shown = f"{point['y']:.3f} [{point['low']:.3f}, {point['high']:.3f}]"
        said.setdefault(f"{point['split']}_before_and_after", []).append(shown)
    return {split: ", ".join(points) for split, points in said.items()}


def embeddings_of(work: Work, images: pa.Table) -> Embeddings:
    """Stored vectors of whole images."""
    encoder = encoder_of(work.project)
    ids, vectors = work.vectors.fetch(images.column("image_id").unique().to_pylist(), encoder)
    return Embeddings(encoder, tuple(ids), vectors)


def every_class_present(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """Every class has labels to train on."""
    rows = schema.where_in(outputs["training_set"], "split", ("train",))
    missing = set(work.project.ontology.names) - set(rows.column("class_name").to_pylist())
    return Finding(not missing, f"no labels of {', '.join(sorted(missing))}" if missing else f"{rows.num_rows} labels")
