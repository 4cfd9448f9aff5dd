"""A linear classifier on stored embeddings: the cheapest model that can be trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, WeightsError
from pipeline.files import replaced

KIND = "linear_probe"
HEADER = "model"  # key of the description in a checkpoint's metadata


@dataclass(frozen=True)
class Embeddings:
    """Vectors of whole images: (n, d) float32, one for each of n `image_ids`, made by `encoder`."""

    encoder: str
    image_ids: tuple[str, ...]
    vectors: NDArray[np.float32]

    def of(self, image_ids: list[str]) -> tuple[list[str], NDArray[np.float32]]:
        """Those of `image_ids` that have a vector, in that order, and their vectors."""
        at = {image: i for i, image in enumerate(self.image_ids)}
        found = [image for image in image_ids if image in at]
        return found, self.vectors[[at[image] for image in found]]


@dataclass(frozen=True)
class Probe:
    """Softmax of a linear map.

    Attributes:
        classes: c names. weight: (c, d) and bias: (c,), float32. encoder: producer of its vectors.
    """

    classes: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    encoder: str

    def probabilities(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n, c) probabilities of (n, d) vectors.

        Raises:
            DataError: the vectors are of another length, so of another encoder.
        """
        if not len(vectors):
            return np.zeros((0, len(self.classes)))
        if vectors.shape[1] != self.weight.shape[1]:
            raise DataError(
                f"this probe reads vectors of length {self.weight.shape[1]}, not {vectors.shape[1]}",
                f"embed the images with {self.encoder}",
            )
        # Not BLAS: the order of its sums follows the number of threads and rows.
        logits = np.einsum("nd,cd->nc", vectors.astype(np.float64), self.weight.astype(np.float64)) + self.bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def save(self, path: Path) -> None:
        """Write safetensors with classes and encoder in the header, atomically."""
        from safetensors.numpy import save_file

        # One key: safetensors shuffles several, and then equal weights would hash differently.
        header = {HEADER: json.dumps({"kind": KIND, "classes": self.classes, "encoder": self.encoder})}
        # safetensors writes memory as it lies: it must lie row by row.
        tensors = {"weight": np.ascontiguousarray(self.weight), "bias": np.ascontiguousarray(self.bias)}
        with replaced(path) as made:
            save_file(tensors, made, metadata=header)


def load(path: Path) -> Probe:
    """Raises:
    WeightsError: the file is missing, damaged, or of another kind of model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            if header.get("kind") != KIND:
                raise WeightsError(f"{path} is not a linear probe", "look up its kind in the table `models`")
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read the checkpoint {path}: {error}", "train the model again") from error
    return Probe(tuple(header["classes"]), weight, bias, header["encoder"])
