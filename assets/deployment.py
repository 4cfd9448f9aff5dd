"""Deployment: the champion as ONNX, shown to agree with PyTorch."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from assets.conditions import follows
from assets.tables import Check, Finding, Stage, Work
from assets.training import embeddings_of
from pipeline import export, predict, schema
from pipeline.config import Project


def build(project: Project) -> Stage:
    """The deployment stage of a project."""
    stage = Stage(project, "deployment")

    @stage.table(
        "deployment",
        inputs=("champion", "models", "images", "splits", "evaluation", "embeddings"),
        checks=(Check("onnx_agrees_with_pytorch", onnx_agrees_with_pytorch, blocking=True),),
        condition=follows(),
        ledger=False,
        kinds=("onnx",),
    )
    def deployment(work: Work) -> pa.Table:
        """The champion, if it is a detector or probe trained here, as an ONNX file with a model card."""
        names = work.read("champion").column("model").to_pylist()
        chosen = schema.where_in(work.read("models"), "model", names).to_pylist()
        if not chosen or chosen[0]["kind"] not in export.EXPORTABLE:
            return schema.table("deployment").empty()
        images, splits, evaluation = work.read("images"), work.read("splits"), work.read("evaluation")
        test = schema.where_in(splits, "split", ("test",)).column("image_id").to_pylist()
        sample = schema.where_in(images, "image_id", test)
        model = chosen[0] | {"path": str(work.store.file(predict.FOLDER, Path(chosen[0]["path"]).name))}
        metrics = evaluation.filter(pc.equal(evaluation.column("model"), model["model"])).to_pylist()
        vectors = embeddings_of(work, sample).vectors if model["kind"] == "linear_probe" else None
        row = export.export(
            model, sample, work.store.folder("deployment"), metrics, vectors, work.config.source.max_pixels
        )
        work.show(model_card=row.column("card")[0].as_py())
        return row

    return stage


def onnx_agrees_with_pytorch(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """The exported file decides as PyTorch does on every image compared."""
    rows = outputs["deployment"].to_pylist()
    if not rows:
        return Finding(True, "the champion is no detector or probe trained here: nothing to export")
    row = rows[0]
    words = f"largest difference {row['max_abs_difference']:.1e} on {row['parity_images']} images"
    return Finding(row["agreement"] == 1.0 and row["parity_images"] > 0, words)
