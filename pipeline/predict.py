"""Trained models over images: rows of `predictions`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import looked, schema
from pipeline.compute import AheadWorker
from pipeline.errors import WeightsError
from pipeline.images import Pixels, Reader, UnusableImage
from pipeline.models import fcos, probe, zero_shot
from pipeline.models.foundation import Chosen
from pipeline.models.probe import Embeddings
from pipeline.models.roles import Detections
from pipeline.models.threads import each_on_one_thread
from pipeline.ontology import Class, Ontology
from pipeline.store import Store
from pipeline.weights import checkpoint

FOLDER = "models"  # of the store's files: checkpoints
FLOOR = 0.05  # low, so that precision-recall curves have a right end
NMS_IOU = 0.5
LIMIT = 300
MOST_CLASSES = 5  # of an image that are kept, most probable first


def labelling(models: pa.Table) -> pa.Table:
    """Those rows of `models` that say what is in images; a fine-tuned segmenter does not."""
    return models.filter(pc.is_in(models["kind"], pa.array([probe.KIND, *WORKERS])))


def worker(model: dict[str, Any], max_pixels: int = 200_000_000, store: str = "") -> tuple[type, dict[str, Any]]:
    """The worker that predicts with a row of `models` in the store with the URI `store`, and its arguments."""
    options = worker_options(model, max_pixels, store)
    if model["kind"] != fcos.KIND:
        options["details"] = json.loads(model["config"])
    return WORKERS[model["kind"]], options


def worker_options(model: dict[str, Any], max_pixels: int = 200_000_000, store: str = "") -> dict[str, Any]:
    """Arguments of `PredictWorker` for a row of `models` in the store with the URI `store`."""
    return {key: model[key] for key in ("model", "path", "sha256")} | {"max_pixels": max_pixels, "store": store}


class TunedClipWorker(AheadWorker):
    """A fine-tuned CLIP: of each image the most probable classes by its words. Unreadable images are left out.

    Args:
        as `PredictWorker`. details: the `config` of its row of `models`.
    """

    def __init__(
        self,
        model: str,
        path: str,
        sha256: str,
        details: dict[str, Any],
        max_pixels: int = 200_000_000,
        store: str = "",
    ) -> None:
        from pipeline.models.clip import ClipEncoder

        here = _checked(path, sha256, store)
        self.model = model
        self._ontology, self._templates = _ontology(details), details["templates"]
        self._encoder = ClipEncoder(_tuned("encoder", here, details))
        self._reader = Reader(max_pixels)

    def read(self, rows: pa.Table) -> Iterator[Any]:
        """What the model sees of each image."""
        return self._reader.stream(rows, self._encoder.prepare)

    def answer(self, rows: pa.Table, read: Iterable[Any]) -> pa.Table:
        """The most probable classes of each image."""
        readable: list[int] = []

        def prepared() -> Iterator[Any]:
            for i, seen in enumerate(read):
                if seen is not None:
                    readable.append(i)
                    yield seen

        vectors = self._encoder.encode_prepared(prepared())
        shares = zero_shot.probabilities(vectors, self._ontology, self._templates, self._encoder)
        kept = rows.take(pa.array(readable, pa.int64()))
        return looked.marked(class_rows(self.model, self._ontology.names, kept, shares), kept, self.model)


class TunedDinoWorker(AheadWorker):
    """A fine-tuned Grounding DINO: boxes of the classes whose words it learnt. Unreadable images are left out.

    Args:
        as `PredictWorker`. details: the `config` of its row of `models`.
    """

    def __init__(
        self,
        model: str,
        path: str,
        sha256: str,
        details: dict[str, Any],
        max_pixels: int = 200_000_000,
        store: str = "",
    ) -> None:
        from pipeline.models import grounding_dino

        here = _checked(path, sha256, store)
        self.model = model
        floors = {"box_threshold": FLOOR, "text_threshold": 0.0, "floor": FLOOR}
        chosen = _tuned("detector", here, details)
        self._detector = grounding_dino.build(chosen, _ontology(details), details["nms_iou"], "tuned", floors)
        self._reader = Reader(max_pixels)

    def read(self, rows: pa.Table) -> Iterator[Pixels | UnusableImage]:
        """Pixels of each image."""
        return self._reader.whole(rows)

    def answer(self, rows: pa.Table, read: Iterable[Pixels | UnusableImage]) -> pa.Table:
        """Boxes of each image."""
        return _detected(self.model, self._detector.detect, rows, read)


def _ontology(details: dict[str, Any]) -> Ontology:
    return Ontology(tuple(Class(name, tuple(prompts)) for name, prompts in details["classes"].items()))


def _tuned(role: str, path: Path, details: dict[str, Any]) -> Chosen:
    return Chosen(role, checkpoint(str(path)), "", details["options"])


class PredictWorker(AheadWorker):
    """A trained detector as a worker of `compute.map_batches`: rows of images to rows of predictions, with a mark
    for each image that it has looked at (`looked.apart`).

    Images that can no longer be read get neither.

    Args:
        model: producer that the predictions carry. path: its checkpoint. sha256: of that file.
        store: URI of the store that has the checkpoint too, for machines on which it was not trained.

    Raises:
        WeightsError: the checkpoint is missing, damaged, or not the one that was trained.
    """

    def __init__(self, model: str, path: str, sha256: str, max_pixels: int = 200_000_000, store: str = "") -> None:
        import torch

        here = _checked(path, sha256, store)
        self.model = model
        network, self.config = fcos.load(here)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = network.to(self.device, memory_format=torch.channels_last)
        self._reader = Reader(max_pixels)

    def read(self, rows: pa.Table) -> Iterator[Pixels | UnusableImage]:
        """Pixels of each image."""
        return self._reader.whole(rows)

    def answer(self, rows: pa.Table, read: Iterable[Pixels | UnusableImage]) -> pa.Table:
        """Boxes of each image."""
        return _detected(self.model, self.detect, rows, read)

    def detect(self, images: Sequence[Pixels]) -> list[Detections]:
        """Boxes of each (height, width, 3) uint8 image.

        On a GPU images of one shape go through together. On a CPU each goes through alone, on one thread: it is as
        fast there, and the same bits come out whatever the batch, the number of cores and where it runs.
        """
        import torch

        if self.device == "cpu":
            return each_on_one_thread(self._detect_one, images)
        found = [Detections()] * len(images)
        for at in by_shape(images):
            batch = torch.from_numpy(fcos.prepare([images[i] for i in at], self.config.scale))
            with torch.inference_mode():
                output = self.network(batch.to(self.device, memory_format=torch.channels_last)).cpu().numpy()
            sizes = [images[i].shape[:2] for i in at]
            for i, boxes in zip(at, fcos.decode(output, sizes, self.config, FLOOR, NMS_IOU, LIMIT), strict=True):
                found[i] = boxes
        return found

    def _detect_one(self, image: Pixels) -> Detections:
        import torch

        batch = torch.from_numpy(fcos.prepare([image], self.config.scale)).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            output = self.network(batch).numpy()
        return fcos.decode(output, [image.shape[:2]], self.config, FLOOR, NMS_IOU, LIMIT)[0]


def _detected(
    model: str,
    detect: Callable[[Sequence[Pixels]], Sequence[Detections]],
    rows: pa.Table,
    read: Iterable[Pixels | UnusableImage],
) -> pa.Table:
    """Rows of `predictions` of the rows of images that can be read, which are marked as looked at."""
    seen = [(i, image) for i, image in enumerate(read) if not isinstance(image, UnusableImage)]
    found = detect([image for _, image in seen])
    readable = rows.take(pa.array([i for i, _ in seen], pa.int64()))
    return looked.marked(prediction_rows(model, readable, found), readable, model)


def by_shape(images: Sequence[Pixels]) -> list[list[int]]:
    """Positions of images, grouped by shape: padding would make a result depend on its neighbours."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape, []).append(i)
    return list(groups.values())


def prediction_rows(model: str, images: pa.Table, found: Sequence[Detections]) -> pa.Table:
    """Detections of `images`, row by row, as rows of `predictions`."""
    at = np.repeat(np.arange(len(found)), [len(d.scores) for d in found])
    ids, batches = images["image_id"].to_pylist(), images["batch"].to_pylist()
    return schema.annotations(
        "predictions",
        image_ids=[ids[i] for i in at],
        batch=[batches[i] for i in at],
        producer=model,
        classes=[name for d in found for name in d.classes],
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *(d.boxes for d in found)]),
        scores=np.concatenate([np.zeros(0, np.float32), *(d.scores for d in found)]),
    )


def predict_classes(model: str, path: Path, sha256: str, images: pa.Table, embeddings: Embeddings) -> pa.Table:
    """A linear probe over stored vectors: the most probable classes of each image, without reading pixels.

    Images that have no vector get no prediction.

    Raises:
        WeightsError: the checkpoint is missing, damaged, or not the one that was trained, or reads the
            vectors of another encoder.
    """
    _check(path, sha256)
    classifier = probe.load(path)
    if classifier.encoder != embeddings.encoder:
        raise WeightsError(
            f"{model} reads vectors of {classifier.encoder}, not of {embeddings.encoder}", "train the model again"
        )
    ids, vectors = embeddings.of(images["image_id"].to_pylist())
    kept = images.filter(pc.is_in(images["image_id"], pa.array(ids, pa.string())))
    return class_rows(model, classifier.classes, kept, classifier.probabilities(vectors))


def class_rows(model: str, classes: Sequence[str], images: pa.Table, shares: NDArray[np.floating]) -> pa.Table:
    """The most probable classes of each row of `images` as rows of `predictions`, by rank.

    Args:
        shares: (n, classes); of equal ones the first ranks higher.
    """
    most = min(MOST_CLASSES, len(classes))
    order = np.argsort(-shares, axis=1, kind="stable")[:, :most]
    kept = images.take(pa.array(np.repeat(np.arange(len(order)), most)))
    return schema.annotations(
        "predictions",
        image_ids=kept["image_id"].to_pylist(),
        batch=kept["batch"].to_pylist(),
        producer=model,
        classes=np.asarray(classes, object)[order.ravel()].tolist(),
        boxes=None,
        scores=np.take_along_axis(shares, order, axis=1).ravel(),
        rank=np.tile(np.arange(1, most + 1, dtype=np.int32), len(order)),
    )


WORKERS: dict[str, type] = {fcos.KIND: PredictWorker, "clip": TunedClipWorker, "grounding_dino": TunedDinoWorker}


def _checked(path: str, sha256: str, store: str) -> Path:
    """The checkpoint's file on this machine, which may not be the one that it was trained on."""
    here = Store(store).file(FOLDER, Path(path).name) if store.startswith("s3://") else Path(path)
    _check(here, sha256)
    return here


def _check(path: Path, sha256: str) -> None:
    from pipeline.weights import file_sha256

    if not path.is_file():
        raise WeightsError(f"there is no checkpoint {path}", "train the model again")
    if file_sha256(path) != sha256:
        raise WeightsError(f"{path} is not the checkpoint that was trained", "train the model again")
