"""Trained models as one ONNX file that needs neither torch nor this pipeline's tables.

`OnnxModel` runs such a file with onnxruntime, NumPy and OpenCV alone.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema, weights
from pipeline.errors import WeightsError
from pipeline.files import replaced
from pipeline.ids import producer_name
from pipeline.images import Pixels, Reader
from pipeline.models import fcos, probe
from pipeline.models.roles import Detections

OPSET = 18
EXPORTABLE = (fcos.KIND, probe.KIND)  # fine-tuned foundation models stay safetensors, for `models:`
FLOOR, NMS_IOU, LIMIT = 0.05, 0.5, 300  # of decoding, written into the file
# Two runtimes add up in different orders: decisions are equal within these.
SAME_PIXELS, SAME_SCORE = 0.1, 1e-3
_SAMPLE = 16

Card = dict[str, Any]


class OnnxModel:
    """An exported model: images in, boxes or classes out.

    Args:
        path: the file that `export` wrote.
        threads: of ONNX Runtime; 0 for one a core.

    Raises:
        WeightsError: the file is missing, damaged, or was not exported from here.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # onnxruntime's own exceptions share no public base class.
            if type(error).__module__.split(".")[0] != "onnxruntime":
                raise
            raise WeightsError(f"cannot run {path}: {error}", "export the model again") from error
        properties = self._session.get_modelmeta().custom_metadata_map
        if "kind" not in properties:
            raise WeightsError(f"{path} was not exported by this pipeline", "export the model again")
        self.kind = properties["kind"]
        self.properties: dict[str, Any] = json.loads(properties["config"])
        self.classes = tuple(self.properties["classes"])

    def predict(self, images: Sequence[Pixels]) -> list[Detections]:
        """What the model sees in each (height, width, 3) uint8 RGB image.

        A classifier gives one row without a box for each class, the most probable first.
        """
        if self.kind == fcos.KIND:
            return self._detect(images)
        return [self._ranked(p) for p in self.probabilities(images)]

    def _detect(self, images: Sequence[Pixels]) -> list[Detections]:
        config = fcos.FcosConfig.from_json(json.dumps(self.properties["network"]))
        found = []
        for image in images:
            output = self.raw(fcos.prepare([image], config.scale))
            found += fcos.decode(output, [image.shape[:2]], config, **self.properties["decode"])
        return found

    def probabilities(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """(n, c) probabilities of a classifier whose file holds the encoder too.

        Raises:
            WeightsError: the file holds a probe alone; give its vectors to `raw`.
        """
        if self.properties["input"] != "pixels":
            raise WeightsError(
                f"this file reads vectors of {self.properties['encoder']}, not images", "embed them and call raw()"
            )
        from pipeline.models.compact_encoder import preprocess

        if not images:
            return np.zeros((0, len(self.classes)), np.float32)
        return self.raw(np.stack([preprocess(image) for image in images]))

    def raw(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """The network's output for one batch of its input."""
        (name,) = [i.name for i in self._session.get_inputs()]
        return np.asarray(self._session.run(None, {name: batch})[0], np.float32)

    def _ranked(self, probabilities: NDArray[np.float32]) -> Detections:
        order = np.argsort(-probabilities, kind="stable")
        boxes = np.full((len(order), 4), np.nan, np.float32)
        return Detections(boxes, probabilities[order], tuple(self.classes[i] for i in order))


def export(
    model: dict[str, Any],
    images: pa.Table,
    folder: Path,
    metrics: Sequence[dict[str, Any]] = (),
    vectors: NDArray[np.float32] | None = None,
    max_pixels: int = 200_000_000,
) -> pa.Table:
    """Write ONNX file and model card, compare with PyTorch on real images; one row of `deployment`.

    A detector becomes one file from pixels to boxes. A probe becomes one file from pixels to classes where
    its encoder is the compact one; otherwise the file holds the probe alone and reads stored vectors.

    Args:
        model: a row of `models`.
        images: rows of `images` to compare on; the first sixteen that can be read are used.
        metrics: rows of `evaluation` for the card.
        vectors: (n, d) stored vectors, to compare a probe on whose encoder cannot be exported.

    Raises:
        WeightsError: the checkpoint is missing or damaged.
    """
    path = folder / f"{model['model'].replace('@', '-').replace('#', '-')}.onnx"
    sample = [p for p in Reader(max_pixels).read_rows(images.slice(0, _SAMPLE)) if p is not None]
    if model["kind"] == fcos.KIND:
        comparison, reads = _export_fcos(model, path, sample)
    else:
        comparison, reads = _export_probe(model, path, sample, vectors)
    row: dict[str, Any] = {
        "model": model["model"],
        "path": str(path),
        "sha256": weights.file_sha256(path),
        "bytes": path.stat().st_size,
        "opset": OPSET,
        **comparison,
    }
    row["card"] = model_card(model, row, metrics, reads)
    with replaced(path.with_suffix(".md")) as made:
        made.write_text(row["card"], encoding="utf-8")
    return schema.table("deployment").from_rows([row])


def _export_fcos(model: dict[str, Any], path: Path, sample: list[Pixels]) -> tuple[Card, str]:
    import torch

    network, config = fcos.load(Path(model["path"]))
    decoding = {"floor": FLOOR, "nms_iou": NMS_IOU, "limit": LIMIT}
    properties = {"classes": config.classes, "network": json.loads(config.to_json()), "decode": decoding}
    example = torch.zeros((2, 3, 2 * fcos.STRIDE, 3 * fcos.STRIDE))
    axes = {"images": {0: "n", 2: "height", 3: "width"}, "output": {0: "n", 1: "locations"}}
    _write(network, example, path, axes, fcos.KIND, properties)
    exported = OnnxModel(path, torch.get_num_threads())
    batches = [fcos.prepare([image], config.scale) for image in sample]
    ours, theirs, timing = _run_both(lambda x: network(torch.from_numpy(x)).numpy(), exported.raw, batches)

    def decided(output: NDArray[np.float32], image: Pixels) -> Detections:
        return fcos.decode(output, [image.shape[:2]], config, FLOOR, NMS_IOU, LIMIT)[0]

    equal = [same_decision(decided(a, i), decided(b, i)) for a, b, i in zip(ours, theirs, sample, strict=True)]
    return _comparison(ours, theirs, equal, timing), (
        "RGB images as float32 (n, 3, height, width) in 0 to 255, resized by "
        f"{config.scale} and padded to multiples of {fcos.STRIDE}; gives (n, locations, 4 + classes): xyxy boxes in "
        "pixels of that input, then scores. Suppression of overlapping boxes follows outside of the file"
    )


def _export_probe(
    model: dict[str, Any], path: Path, sample: list[Pixels], vectors: NDArray[np.float32] | None
) -> tuple[Card, str]:
    import torch

    classifier = probe.load(Path(model["path"]))
    whole = producer_name(classifier.encoder) == "compact_encoder"
    network = _probe_network(classifier, whole)
    properties = {
        "classes": classifier.classes,
        "encoder": classifier.encoder,
        "input": "pixels" if whole else "vectors",
    }
    if whole:
        from pipeline.models.compact_encoder import CROPPED, preprocess

        example = torch.zeros((2, CROPPED, CROPPED, 3), dtype=torch.uint8)
        batches: list[NDArray[Any]] = [preprocess(image)[None].copy() for image in sample]
        reads = "RGB images as uint8 (n, 224, 224, 3): shorter edge resized to 256, centre crop; gives probabilities"
    else:
        example = torch.zeros((2, classifier.weight.shape[1]))
        given = np.zeros((0, classifier.weight.shape[1]), np.float32) if vectors is None else vectors[:_SAMPLE]
        batches = [v[None].astype(np.float32) for v in given]
        reads = f"vectors of {classifier.encoder}, which this file does not hold; gives probabilities"
    _write(network, example, path, {"images": {0: "n"}, "output": {0: "n"}}, probe.KIND, properties)
    exported = OnnxModel(path, torch.get_num_threads())
    ours, theirs, timing = _run_both(lambda x: network(torch.from_numpy(x)).numpy(), exported.raw, batches)
    equal = [bool((a.argmax(1) == b.argmax(1)).all()) for a, b in zip(ours, theirs, strict=True)]
    return _comparison(ours, theirs, equal, timing), reads


def _probe_network(classifier: probe.Probe, whole: bool) -> Any:
    import torch
    from torch import nn

    linear = nn.Linear(*reversed(classifier.weight.shape))
    linear.weight.data = torch.from_numpy(classifier.weight.copy())
    linear.bias.data = torch.from_numpy(classifier.bias.copy())
    head = nn.Sequential(linear, nn.Softmax(dim=1))
    if not whole:
        return head.eval()
    from pipeline.models.compact_encoder import CompactEncoder

    encoder = CompactEncoder()
    if encoder.producer != classifier.encoder:
        raise WeightsError(
            f"this probe was trained on vectors of {classifier.encoder}, the encoder here is {encoder.producer}",
            "embed the images and train again",
        )

    class Classifier(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = encoder.model, head

        def forward(self, pixels: Any) -> Any:
            return self.head(self.encoder.encode_image(self.encoder.normalise(pixels), normalize=True))

    return Classifier().eval()


def _write(
    network: Any, example: Any, path: Path, axes: dict[str, dict[int, str]], kind: str, properties: dict[str, Any]
) -> None:
    import onnx
    import torch

    with replaced(path) as made:
        with warnings.catch_warnings(), torch.inference_mode():
            # The tracing exporter is marked as old, but takes 1 s where the newer one takes 20 s.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            torch.onnx.export(
                network,
                (example,),
                str(made),
                dynamo=False,
                input_names=["images"],
                output_names=["output"],
                dynamic_axes=axes,
                opset_version=OPSET,
            )
        graph = onnx.load(str(made))
        onnx.helper.set_model_props(graph, {"kind": kind, "config": json.dumps(properties, sort_keys=True)})
        onnx.checker.check_model(graph)
        onnx.save(graph, str(made))


Run = Callable[[NDArray[Any]], NDArray[np.float32]]


def _run_both(
    torch_run: Run, onnx_run: Run, batches: list[NDArray[Any]]
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]], tuple[float, float]]:
    """Outputs of both and their median milliseconds an image (one image a call), after a call to warm up."""
    import torch

    def timed(run: Run) -> tuple[list[NDArray[np.float32]], float]:
        outputs, milliseconds = [], []
        for batch in [*batches[:1], *batches]:
            started = time.perf_counter()
            outputs.append(run(batch))
            milliseconds.append((time.perf_counter() - started) * 1000)
        return outputs[1:], float(np.median(milliseconds[1:])) if batches else 0.0

    with torch.inference_mode():
        ours, torch_time = timed(torch_run)
    theirs, onnx_time = timed(onnx_run)
    return ours, theirs, (torch_time, onnx_time)


def same_decision(a: Detections, b: Detections) -> bool:
    """Whether two lists of boxes are the same boxes, up to rounding and the order of equal scores."""
    if sorted(a.classes) != sorted(b.classes):
        return False
    left = np.ones(len(b.scores), bool)
    for box, score, name in zip(a.boxes, a.scores, a.classes, strict=True):
        near = (np.abs(b.boxes - box).max(axis=1) <= SAME_PIXELS) & (np.abs(b.scores - score) <= SAME_SCORE)
        match = np.flatnonzero(near & left & (np.array(b.classes) == name))
        if not len(match):
            return False
        left[match[0]] = False
    return True


def _comparison(
    ours: list[NDArray[np.float32]], theirs: list[NDArray[np.float32]], equal: list[bool], timing: tuple[float, float]
) -> Card:
    return {
        "parity_images": len(ours),
        "max_abs_difference": max((float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)), default=0.0),
        # Nothing compared is no agreement.
        "agreement": float(np.mean(equal)) if equal else 0.0,
        "milliseconds_torch": timing[0],
        "milliseconds_onnx": timing[1],
    }


def model_card(model: dict[str, Any], row: dict[str, Any], metrics: Sequence[dict[str, Any]], reads: str) -> str:
    """Markdown in the manner of Mitchell et al., Model Cards for Model Reporting (2019)."""
    details = json.loads(model["config"])
    lines = [
        f"# {model['model']}",
        "",
        f"- kind: {model['kind']}",
        f"- trained on: snapshot `{model['snapshot']}`, {model['seconds']:.0f} s on {model['device']}",
        f"- settings: `{json.dumps(details['settings'], sort_keys=True)}`",
        f"- file: `{Path(row['path']).name}`, {row['bytes'] / 1e6:.1f} MB, ONNX opset {row['opset']}, "
        f"SHA-256 `{row['sha256']}`",
        f"- reads: {reads}.",
        "",
        "## Agreement with PyTorch",
        "",
        _parity_text(row),
        "",
        "## Measured",
        "",
        *_metric_lines(metrics),
        "",
        "## Where its weights come from",
        "",
        *_origin_lines(model["kind"]),
        "",
        "## Limits",
        "",
        "- It knows only images like those of its snapshot; see the table `drift` before using it elsewhere.",
        "- Scores are not probabilities of being right; choose a threshold on your own labelled images.",
        "- The intervals above hold for images drawn as the evaluated ones were.",
        "",
    ]
    return "\n".join(lines)


def _parity_text(row: dict[str, Any]) -> str:
    if not row["parity_images"]:
        return "Not compared: there was no image to compare on."
    return (
        f"On {row['parity_images']} images the raw outputs differ by at most {row['max_abs_difference']:.2g}, and "
        f"{row['agreement']:.0%} of the decisions are equal. One image takes {row['milliseconds_torch']:.0f} ms in "
        f"PyTorch and {row['milliseconds_onnx']:.0f} ms in ONNX Runtime."
    )


def _metric_lines(metrics: Sequence[dict[str, Any]]) -> list[str]:
    if not metrics:
        return ["Not evaluated yet."]
    lines = ["| split | slice | class | metric | value | interval | support |", "|---|---|---|---|---|---|---|"]
    for m in metrics:
        value = "–" if m["value"] is None else f"{m['value']:.3f}"
        known = m.get("low") is not None and m.get("high") is not None
        interval = f"{m['low']:.3f} to {m['high']:.3f}" if known else "–"
        names = [str(m[k]).replace("|", "\\|") for k in ("split", "slice", "class_name", "metric")]
        lines.append(f"| {' | '.join(names)} | {value} | {interval} | {m['support']} |")
    return lines


def _origin_lines(kind: str) -> list[str]:
    names = ["mobilenet_v2"] if kind == fcos.KIND else ["mobilenet_v2", "bge_small_en"]
    items = [weights.checkpoint(name) for name in names]
    return [f"- {c.note or c.name}, from `{c.uri}`; licence: {c.licence}." for c in items]
