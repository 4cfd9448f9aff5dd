"""Training: from a pinned snapshot to rows of `models`."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.compute import Compute
from pipeline.config import ProjectConfig
from pipeline.ids import fingerprint, producer, seed
from pipeline.models.fcos import KIND as FCOS
from pipeline.models.fcos import save as save_fcos
from pipeline.models.probe import KIND as PROBE
from pipeline.models.probe import Embeddings
from pipeline.store import Store
from pipeline.train import tune
from pipeline.train.result import TrainingResult, file_stem, models_row, snapshot_of
from pipeline.train.run import FOLDER, Place
from pipeline.train.scenes import make_scenes, training_images
from pipeline.train.state import Fitted, Progress
from pipeline.train.tune import ROLES

VERSION = "1"
BACKBONE = "mobilenet_v2"


def kind_of(config: ProjectConfig) -> str:
    """`training.kind`, with auto resolved by the task."""
    if config.training.kind != "auto":
        return config.training.kind
    return FCOS if config.task == "detection" else PROBE


def depends_on(config: ProjectConfig) -> Any:
    """What a fine-tuning depends on besides `training`: the model it starts from, and the words; None for others."""
    kind = kind_of(config)
    if kind not in ROLES:
        return None
    options = config.labelling.model_dump(mode="json", include={"templates", "nms_iou"})
    return [tune.start(config).identity, config.model_dump(mode="json", include={"classes"}), options]


def train(
    config: ProjectConfig,
    images: pa.Table,
    training_set: pa.Table,
    splits: pa.Table,
    annotated_images: pa.Table,
    store: Store,
    compute: Compute,
    progress: Progress | None = None,
    embeddings: Embeddings | None = None,
    held_out: pa.Table | None = None,
) -> TrainingResult:
    """Train the project's model. The same inputs give the same weights on one machine.

    Args:
        images, splits, annotated_images: whole tables; images of the train split without boxes are ground.
        store: its files `models` hold checkpoints; a training that was killed goes on from its last one there.
        compute: on Ray, all but probes train on up to `training.workers` workers.
        progress: told of each step; what it raises ends the training there, which goes on from that step next time.
        embeddings: for a probe, vectors of the images in `training_set` and `held_out`.
        held_out: ground truth of test images: on them, too, a probe's curve and a fine-tuning's gain are measured.

    Returns:
        No rows when training is switched off or there is not one label to train on.

    Raises:
        PipelineError: missing weights, an unreadable photo, a failing cluster, settings that do not fit.
    """
    kind, place = kind_of(config), Place(store, compute, progress)
    if kind in ROLES:
        return tune.tune(config, images, training_set, splits, annotated_images, held_out, place)
    if kind == FCOS:
        return _train_fcos(config, images, training_set, splits, annotated_images, place)
    if kind == PROBE and embeddings is not None:
        return _train_probe(config, training_set, embeddings, held_out, place)
    return TrainingResult.nothing()


def _train_fcos(
    config: ProjectConfig,
    images: pa.Table,
    training_set: pa.Table,
    splits: pa.Table,
    annotated_images: pa.Table,
    place: Place,
) -> TrainingResult:
    from pipeline.train import fcos

    rows = training_images(images, training_set, splits, annotated_images)
    boxes = schema.where_in(training_set, "split", ("train",))
    if not boxes.filter(pc.and_(pc.is_valid(boxes["x1"]), pc.invert(boxes["ignore"]))).num_rows:
        return TrainingResult.nothing()
    classes = tuple(config.ontology.names)
    scenes = tuple(make_scenes(rows, boxes, classes))
    job = fcos.Job(scenes, classes, config.training, config.source.tile.min_visible, BACKBONE)
    trained_on = sorted(rows["image_id"].to_pylist())
    identity = fingerprint(_settings(config, FCOS), classes, snapshot_of(training_set), trained_on)
    name = producer(FCOS, VERSION, identity)
    path = place.store.folder(FOLDER) / f"{file_stem(name)}.safetensors"
    checkpoints = place.checkpoints(file_stem(name), identity)
    fitted = place.run(partial(fcos.fit, job), config.training, checkpoints)
    save_fcos(path, fitted.state, job.model)
    place.store.publish(FOLDER, path)
    checkpoints.clear()
    details = {"settings": _settings(config, FCOS), "model": json.loads(job.model.to_json()), "backbone": BACKBONE}
    return TrainingResult(
        models_row(name, FCOS, training_set, path, details, fitted),
        schema.table("curves").empty(),
    )


def _train_probe(
    config: ProjectConfig,
    training_set: pa.Table,
    embeddings: Embeddings,
    held_out: pa.Table | None,
    place: Place,
) -> TrainingResult:
    from pipeline.train import probe

    started = time.monotonic()
    by_split = {s: _labelled(schema.where_in(training_set, "split", (s,)), embeddings) for s in ("train", "val")}
    if held_out is not None:
        by_split["test"] = _labelled(held_out, embeddings)
    data = by_split.pop("train")
    if not len(data):
        return TrainingResult.nothing()
    settings = _settings(config, PROBE)
    name = producer(PROBE, VERSION, settings, config.ontology.names, snapshot_of(training_set), embeddings.encoder)
    model = probe.fit(data, embeddings.encoder, seed("probe", config.training.seed))
    seconds = time.monotonic() - started
    path = place.store.folder(FOLDER) / f"{file_stem(name)}.safetensors"
    model.save(path)
    place.store.publish(FOLDER, path)
    points = probe.learning_curve(data, by_split, config.training, config.evaluation.level, embeddings.encoder)
    if place.progress:
        place.progress(1, 1)
    details = {"settings": settings, "encoder": embeddings.encoder, "classes": list(model.classes)}
    return TrainingResult(
        models_row(name, PROBE, training_set, path, details, Fitted({}, seconds, [], "cpu")),
        schema.table("curves").from_rows([{"model": name, **point} for point in points]),
    )


def _labelled(annotations: pa.Table, embeddings: Embeddings) -> Any:
    """Vectors and classes of the image-level labels; of several labels of an image the first counts."""
    from pipeline.train.probe import Labelled

    whole = annotations.filter(pc.and_(pc.is_null(annotations["x1"]), pc.invert(annotations["ignore"])))
    whole = whole.sort_by([("image_id", "ascending"), ("annotation_id", "ascending")])
    named = dict(zip(whole["image_id"].to_pylist()[::-1], whole["class_name"].to_pylist()[::-1], strict=True))
    found, vectors = embeddings.of(sorted(named))
    return Labelled(vectors, np.array([named[image] for image in found], dtype=str))


def _settings(config: ProjectConfig, kind: str) -> dict[str, Any]:
    """What of the configuration changes the weights; the rest may change without a new model."""
    keys = {
        FCOS: ("steps", "batch_size", "learning_rate", "crop", "input_size", "rotate", "seed"),
        PROBE: ("seed",),
    }[kind]
    chosen: dict[str, Any] = config.training.model_dump(mode="json", include=set(keys))
    return chosen | ({"min_visible": config.source.tile.min_visible} if kind == FCOS else {})
