"""Zero-shot classes of whole images, from their stored vectors: no image is opened."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import ids, schema
from pipeline.models import zero_shot
from pipeline.models.roles import Encoder
from pipeline.ontology import Ontology


def tag(
    vectors: NDArray[np.float32],
    image_ids: Sequence[str],
    batch: str,
    ontology: Ontology,
    templates: Sequence[str],
    encoder: Encoder,
) -> pa.Table:
    """Rows of `tags`: every class of every image, with its probability and rank.

    The score is the probability; see `zero_shot.probabilities`. Ties rank in the ontology's order.

    Args:
        vectors: (n, d) float32 unit vectors of `encoder`, one for each of `image_ids`.
        templates: texts with one `{}` for the prompt.
    """
    producer = tag_producer(encoder.producer, ontology, templates)
    if not image_ids:
        return schema.table("tags").empty()
    probabilities = zero_shot.probabilities(vectors, ontology, templates, encoder)
    classes = len(ontology)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1).ravel()
    return schema.annotations(
        "tags",
        image_ids=np.repeat(np.asarray(image_ids, object), classes).tolist(),
        batch=batch,
        producer=producer,
        classes=np.asarray(ontology.names, object)[order.ravel()].tolist(),
        boxes=None,
        scores=ranked,
        probability=ranked.astype(np.float32),
        rank=np.tile(np.arange(1, classes + 1, dtype=np.int32), len(image_ids)),
    )


def vocabulary(encoder: str, ontology: Ontology, templates: Sequence[str]) -> pa.Table:
    """Rows of `vocabulary`: every text that a class is compared with by the encoder of that producer."""
    name = tag_producer(encoder, ontology, templates)
    texts = [(c.name, template.format(prompt)) for c in ontology for prompt in c.prompts for template in templates]
    rows = [{"producer": name, "class_name": c, "prompt": t, "matched": t, "similarity": 1.0} for c, t in texts]
    return schema.table("vocabulary").from_rows(rows)


def tag_producer(encoder: str, ontology: Ontology, templates: Sequence[str]) -> str:
    """The producer of tags made from vectors of the producer `encoder`."""
    name, _, version = encoder.partition("@")
    return ids.producer(f"{name}_zero_shot", version.split("#")[0], encoder, list(templates), ontology.prompts())
