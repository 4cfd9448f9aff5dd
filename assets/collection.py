"""Collection: raw files and people's labels in."""

from collections.abc import Mapping

import pyarrow as pa

from assets.conditions import follows, when_missing
from assets.tables import Check, Finding, Stage, Work
from pipeline import collect
from pipeline.checks import boxes_outside
from pipeline.config import Project


def build(project: Project) -> Stage:
    """The collection stage of a project."""
    stage = Stage(project, "collection")

    @stage.table(
        "images",
        "rejected_files",
        config=lambda p: p.config.source.model_dump(mode="json"),
        external=lambda work: work.source_fingerprint(),
        checks=(Check("some_images_usable", some_images_usable),),
        condition=when_missing(),
    )
    def images(work: Work) -> Mapping[str, pa.Table]:
        """Every file is hashed and decoded once; damaged ones are listed with the reason."""
        found, rejected = collect.collect_images(
            work.source, work.batch or "", work.config.source, work.compute, work.staging("images")
        )
        work.images = found.num_rows
        return {"images": found, "rejected_files": rejected}

    @stage.table(
        "ground_truth",
        "annotated_images",
        inputs=("images",),
        config=lambda p: p.config.model_dump(mode="json", include={"source", "classes"}),
        external=lambda work: work.source_fingerprint(),
        checks=(Check("boxes_inside_image", boxes_inside_image, blocking=True),),
        condition=follows(),
    )
    def ground_truth(work: Work) -> Mapping[str, pa.Table]:
        """What people labelled, read from COCO, VOC, YOLO, CSV or class folders, mapped into tiles."""
        labels, annotated = collect.collect_ground_truth(
            work.source, work.batch or "", work.read("images"), work.project.ontology, work.config.source
        )
        return {"ground_truth": labels, "annotated_images": annotated}

    return stage


def some_images_usable(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """At least nine in ten files of a batch can be used."""
    used, rejected = outputs["images"].num_rows, outputs["rejected_files"].num_rows
    return Finding(used > 0 and rejected <= 0.1 * (used + rejected), f"{used} images, {rejected} rejected")


def boxes_inside_image(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """Every box lies inside its image and has a positive size."""
    bad = boxes_outside(next(iter(outputs.values())), work.read("images"))
    return Finding(bad == 0, f"{bad} boxes outside their image or empty" if bad else "")
