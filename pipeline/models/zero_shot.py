"""Classes of images by the words that describe them: no label is needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.models.roles import Encoder
from pipeline.ontology import Ontology


def probabilities(
    vectors: NDArray[np.floating], ontology: Ontology, templates: Sequence[str], encoder: Encoder
) -> NDArray[np.float64]:
    """(n, classes) softmax of the cosines times the encoder's temperature (Radford et al. 2021).

    Args:
        vectors: (n, d) unit vectors of `encoder`.
        templates: texts with one `{}` for the prompt.
    """
    texts = class_vectors(ontology, templates, encoder)
    # Not BLAS: the order of its sums follows the number of threads.
    cosines = np.einsum("nd,cd->nc", vectors.astype(np.float64), texts)
    return _softmax(cosines * encoder.temperature)


def class_vectors(ontology: Ontology, templates: Sequence[str], encoder: Encoder) -> NDArray[np.float64]:
    """(classes, d) float64 unit vectors of the classes' prompt ensembles.

    An ensemble is every template filled with every prompt: unit vectors, averaged and made unit again.
    """
    groups = [[t.format(prompt) for prompt in c.prompts for t in templates] for c in ontology]
    encoded = encoder.encode_texts([text for group in groups for text in group]).astype(np.float64)
    ends = np.cumsum([len(group) for group in groups])[:-1]
    return np.stack([_unit(part.mean(axis=0)) for part in np.split(encoded, ends)])


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """`vector` at length 1; prompts that cancel out exactly leave zeros, so chance."""
    length = np.linalg.norm(vector)
    return vector / length if length > 0 else vector


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
    return result
