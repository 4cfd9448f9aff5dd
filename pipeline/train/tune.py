"""Fine-tuning: the encoder, segmenter or detector of a project goes on learning from the project's own labels.

The result is a checkpoint of the same layout, which takes the old one's place: `models: {encoder: PATH}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema, weights
from pipeline.config import ProjectConfig
from pipeline.errors import ConfigError, DataError
from pipeline.ids import fingerprint, producer
from pipeline.models import foundation
from pipeline.models.foundation import Chosen
from pipeline.store import Store
from pipeline.train import measure
from pipeline.train.loop import Learner, fit, put
from pipeline.train.measure import Measured
from pipeline.train.result import TrainingResult, file_stem, models_row, snapshot_of
from pipeline.train.run import FOLDER, Place
from pipeline.train.scenes import make_scenes, training_images
from pipeline.train.state import Checkpoints, Fitted, Peers, Progress

ROLES = {"clip": "encoder", "sam": "segmenter", "grounding_dino": "detector"}  # kind -> what it fine-tunes
VERSION = "1"
CURVE = "fine_tuning"  # in `learning_curves`: quality at step 0 and at the end
_SETTINGS = ("kind", "tune", "rank", "layer_decay", "steps", "batch_size", "learning_rate", "crop", "rotate", "seed")


@dataclass(frozen=True)
class Given:
    """What there is to learn from, and the ground truth of test images. It travels to workers.

    Attributes:
        captions: by file name.
    """

    config: ProjectConfig
    images: pa.Table
    training_set: pa.Table
    splits: pa.Table
    annotated_images: pa.Table
    held_out: pa.Table
    captions: Mapping[str, str]

    def labels(self, split: str) -> pa.Table:
        """Annotations of the train or val split, or of held-out images (test)."""
        return self.held_out if split == "test" else schema.where_in(self.training_set, "split", (split,))

    def tuned(self, default: str) -> str:
        """`training.tune`, with auto resolved."""
        return default if self.config.training.tune == "auto" else self.config.training.tune


class Tuning(Protocol):
    """One kind of fine-tuning.

    Attributes:
        given: what it was made with.
        learns_from: whatever of the data its weights depend on, for their name.
    """

    given: Given
    learns_from: Any

    def __init__(self, given: Given, chosen: Chosen) -> None: ...

    def learner(self) -> Learner:
        """Raises:
        ConfigError, DataError, WeightsError: there is nothing to learn from, or nothing that can learn.
        """

    def save(self, path: Path) -> None:
        """Write what the learner's network holds."""

    def measured(self, chosen: Chosen, split: str) -> Measured | None:
        """How good a checkpoint is on val or test; None where there is nothing to tell by."""


def start(config: ProjectConfig) -> Chosen:
    """The checkpoint that fine-tuning starts from.

    Raises:
        ConfigError: the profile's models cannot be tuned. WeightsError: project.yaml names one that does not exist.
    """
    kind = config.training.kind
    if config.profile != "foundation":
        raise ConfigError(
            f"training.kind {kind} tunes a model of profile foundation, and this is profile {config.profile}",
            "set `profile: foundation`, or another kind",
        )
    return foundation.choose(config, ROLES[kind])


def tune(
    config: ProjectConfig,
    images: pa.Table,
    training_set: pa.Table,
    splits: pa.Table,
    annotated_images: pa.Table,
    held_out: pa.Table | None,
    place: Place,
) -> TrainingResult:
    """As `train.train`, for one of the kinds in `ROLES`; what was gained on val and test is in `curves`.

    Raises:
        ConfigError: the profile's models cannot be tuned, or not so. WeightsError: their checkpoint is missing.
    """
    kind, chosen = config.training.kind, start(config)
    if not training_set.num_rows:
        return TrainingResult.nothing()
    truth = schema.table("ground_truth").empty() if held_out is None else held_out
    given = Given(config, images, training_set, splits, annotated_images, truth, _captions(config))
    work = work_of(given)
    settings = config.training.model_dump(mode="json", include=set(_SETTINGS))
    identity = fingerprint(settings, snapshot_of(training_set), chosen.identity, work.learns_from)
    name = producer(kind, VERSION, identity)
    path = place.store.folder(FOLDER) / f"{file_stem(name)}.safetensors"
    try:
        learner = begun(work)
    except DataError:
        return TrainingResult.nothing()
    checkpoints = place.checkpoints(file_stem(name), identity)
    # On Ray, each worker makes a learner of its own.
    train = partial(learn, given) if place.compute.on_ray else partial(fit, learner, config.training)
    fitted = place.run(train, config.training, checkpoints)
    put(learner, fitted.state)
    work.save(path)
    place.store.publish(FOLDER, path)
    points = place.once(partial(gained, given, name, place.store))
    checkpoints.clear()
    details = {
        "settings": settings,
        "start": chosen.identity,
        "classes": {c.name: list(c.prompts) for c in config.ontology},
        "templates": config.labelling.templates,
        "options": dict(chosen.options),
        "nms_iou": config.labelling.nms_iou,
    }
    row = models_row(name, kind, training_set, path, details, fitted)
    return TrainingResult(row, schema.table("learning_curves").from_rows(points))


def work_of(given: Given) -> Tuning:
    """The fine-tuning of a project's kind, from the checkpoint that it starts from."""
    makers: dict[str, type[Tuning]] = {"clip": Clip, "sam": Sam, "grounding_dino": GroundingDino}
    return makers[given.config.training.kind](given, start(given.config))


def learn(given: Given, checkpoints: Checkpoints, progress: Progress | None, peers: Peers) -> Fitted:
    """What a worker does: `fit` of a learner that it makes itself."""
    return fit(begun(work_of(given)), given.config.training, checkpoints, progress, peers)


def gained(given: Given, name: str, store: Store) -> list[dict[str, Any]]:
    """How good the model was at the start, and is now, on val and test: rows of `learning_curves`."""
    work, before = work_of(given), start(given.config)
    path = store.file(FOLDER, f"{file_stem(name)}.safetensors")
    after = Chosen(before.role, weights.checkpoint(str(path)), "", before.options)
    return [
        {"model": name, "split": split, "class_name": "all", "curve": CURVE, "x": float(step), **vars(found)}
        for split in ("val", "test")
        for step, which in ((0, before), (given.config.training.steps, after))
        if (found := work.measured(which, split)) is not None
    ]


def begun(work: Tuning) -> Learner:
    """The learner before its first step: the same on every worker, new weights of adapters included."""
    import torch

    torch.manual_seed(work.given.config.training.seed)
    return work.learner()


def _captions(config: ProjectConfig) -> Mapping[str, str]:
    from pipeline.train.clip import read_captions

    named = config.training.captions if config.training.kind == "clip" else ""
    return read_captions(Path(named)) if named else {}


class Clip:
    """Both towers, from image-level labels and captions."""

    def __init__(self, given: Given, chosen: Chosen) -> None:
        self.given, self._chosen = given, chosen
        texts = {c.name: c.prompts for c in given.config.ontology}
        self.learns_from = [texts, given.config.labelling.templates, given.captions]

    def learner(self) -> Learner:
        from pipeline.models.clip import ClipEncoder
        from pipeline.train.clip import ClipLearner, Picture

        config = self.given.config
        named = measure.classes_of(self.given.labels("train"))
        index = {name: i for i, name in enumerate(config.ontology.names)}
        train = set(schema.where_in(self.given.splits, "split", ("train",))["image_id"].to_pylist())
        rows = self.given.images.sort_by("image_id").to_pylist()
        captions = {r["image_id"]: self.given.captions.get(r["file_name"], "") for r in rows if r["image_id"] in train}
        pictures = [
            Picture(row, index.get(named.get(row["image_id"], ""), -1), captions.get(row["image_id"], ""))
            for row in rows
            if row["image_id"] in named or captions.get(row["image_id"])
        ]
        self._encoder = ClipEncoder(self._chosen)
        templates, how = config.labelling.templates, self.given.tuned("adapters")
        self._learner = ClipLearner(self._encoder, pictures, config.ontology, templates, config.training, how)
        return self._learner

    def save(self, path: Path) -> None:
        from pipeline.models import clip_net

        self._learner.finish()
        clip_net.save(path, self._encoder.network, self._encoder.design)

    def measured(self, chosen: Chosen, split: str) -> Measured | None:
        from pipeline.models.clip import ClipEncoder

        named = measure.classes_of(self.given.labels(split))
        images = schema.where_in(self.given.images, "image_id", sorted(named))
        return measure.zero_shot_accuracy(ClipEncoder(chosen), images, named, self.given.config) if named else None


class Sam:
    """The mask decoder, or the whole network, from masks of people and accepted ones."""

    def __init__(self, given: Given, chosen: Chosen) -> None:
        self.given, self._chosen = given, chosen
        self.learns_from = None  # no class and no word

    def learner(self) -> Learner:
        from pipeline.models import sam_net
        from pipeline.train.sam import Cuts, SamLearner, outlined

        training = self.given.config.training
        pictures = outlined(self.given.images, self.given.labels("train"))
        self._network, sizes = sam_net.load(self._chosen.path)
        fine = 4 * sizes.image // sizes.patch
        cuts = Cuts(pictures, training.crop, sizes.image, fine, training.rotate, training.seed)
        return SamLearner(_on_device(self._network), cuts, training, self.given.tuned("decoder"))

    def save(self, path: Path) -> None:
        from pipeline.models import sam_net

        sam_net.save(path, self._network)

    def measured(self, chosen: Chosen, split: str) -> Measured | None:
        from pipeline.models import sam
        from pipeline.train.sam import outlined

        pictures = outlined(self.given.images, self.given.labels(split))
        level, seed = self.given.config.evaluation.level, self.given.config.training.seed
        return measure.mask_iou(sam.build(chosen), pictures, level, seed) if pictures else None


class GroundingDino:
    """All but the towers, or the whole network, from boxes of people and accepted ones.

    How good it is, `predictions` and `evaluation` say, as of any detector.
    """

    def __init__(self, given: Given, chosen: Chosen) -> None:
        self.given, self._chosen = given, chosen
        self._images = training_images(given.images, given.training_set, given.splits, given.annotated_images)
        visible = given.config.source.tile.min_visible
        prompts = {c.name: c.prompts for c in given.config.ontology}
        self.learns_from = [prompts, visible, sorted(self._images["image_id"].to_pylist())]

    def learner(self) -> Learner:
        from pipeline.models import grounding_dino_net
        from pipeline.models.captions import WordPieces
        from pipeline.train.grounding_dino import DinoLearner
        from pipeline.train.scenes import Crops

        config, training = self.given.config, self.given.config.training
        boxes = self.given.labels("train")
        if not boxes.filter(pc.and_(pc.is_valid(boxes["x1"]), pc.invert(boxes["ignore"]))).num_rows:
            raise DataError("no box to train on", "label some images of the train split")
        scenes = make_scenes(self._images, boxes, config.ontology.names)
        words = WordPieces(weights.resolve(foundation.COMPANIONS["detector"][0]))
        self._network, self._sizes = grounding_dino_net.load(self._chosen.path, words)
        visible = config.source.tile.min_visible
        crops = Crops(scenes, training.crop, self._sizes.shorter, visible, training.rotate, training.seed, keep=256)
        how = self.given.tuned("decoder")
        return DinoLearner(_on_device(self._network), crops, config.ontology, words, training, how)

    def save(self, path: Path) -> None:
        from pipeline.models import grounding_dino_net

        grounding_dino_net.save(path, self._network, self._sizes)

    def measured(self, chosen: Chosen, split: str) -> Measured | None:
        return None


def _on_device(network: Any) -> Any:
    import torch

    return network.to("cuda" if torch.cuda.is_available() else "cpu")
