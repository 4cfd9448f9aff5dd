"""Slices declared by a text, or by a polygon on the map: what no column says, but the encoder may."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import SliceConfig
from pipeline.errors import ConfigError
from pipeline.slices.declared import declared, members
from pipeline.slices.mapped import inside

Texts = Callable[[Sequence[str]], NDArray[np.floating]]
_LEAST = 20  # images from which a similarity can be learned


def text_tower(encoder: object, needed_by: str) -> Texts:
    """What turns texts into the vectors of an encoder.

    Raises:
        ConfigError: it has none.
    """
    found: Texts | None = getattr(encoder, "encode_texts", None)
    if found is None:
        raise ConfigError(
            f"{needed_by} needs an encoder of texts, and {type(encoder).__name__} knows images only",
            "choose an encoder with a text tower (`profile: compact`, or open_clip under `models.encoder`), "
            "or declare the slice by `where` or `polygon`",
        )
    return found


def declared_table(
    facts: pa.Table,
    slices: Sequence[SliceConfig],
    ids: Sequence[str],
    vectors: NDArray[np.floating],
    places: pa.Table,
    texts: Callable[[], Texts],
) -> pa.Table:
    """The table `declared_slices`: slices by predicate, as `declared` finds them, by text and by polygon.

    Args:
        facts: as `per_image` gives it. ids, vectors, places, texts: as of `in_embeddings`.

    Raises:
        ConfigError: a predicate is wrong, or the encoder has no texts.
    """
    found, words = in_embeddings(slices, ids, vectors, places, texts)
    words = {"all": ""} | {s.name: s.where for s in slices if s.where} | words
    rows = pa.concat_tables([declared(facts, slices), found])
    told = pa.array([words[name] for name in rows.column("slice").to_pylist()], pa.string())
    return schema.table("declared_slices").conform(rows.append_column("definition", told))


def in_embeddings(
    slices: Sequence[SliceConfig],
    ids: Sequence[str],
    vectors: NDArray[np.floating],
    places: pa.Table,
    texts: Callable[[], Texts],
) -> tuple[pa.Table, dict[str, str]]:
    """Rows of (slice, image_id) of the slices by `text` and by `polygon`, and what defines each, in words.

    Args:
        ids, vectors: n images and their (n, d) unit vectors. places: the table `map`.
        texts: gives the encoder of texts; asked for only if a slice needs it.
    """
    found: dict[str, list[str]] = {}
    words: dict[str, str] = {}
    wanted = [s for s in slices if s.text]
    encoded = texts()([s.text for s in wanted]) if wanted else np.zeros((0, 0))
    for spec, vector in zip(wanted, np.asarray(encoded, np.float64), strict=True):
        alike = np.asarray(vectors, np.float64) @ vector if len(ids) else np.zeros(0)
        limit = spec.at_least if spec.at_least is not None else learned_similarity(alike)
        found[spec.name] = [i for i, s in zip(ids, alike, strict=True) if limit is not None and s >= limit]
        how = "none stands out" if limit is None else f"similarity of {limit:.4g} or more"
        words[spec.name] = f"text '{spec.text}': {how}{', learned' if spec.at_least is None else ''}"
    for spec in slices:
        if spec.polygon:
            found[spec.name] = inside(spec.polygon, places)
            words[spec.name] = f"polygon of {len(spec.polygon)} corners on the map"
    return members({name: sorted(images) for name, images in found.items()}), words


def learned_similarity(alike: NDArray[np.floating]) -> float | None:
    """Similarity from which an image more likely belongs to the upper of two normal distributions than to the lower.

    None where two describe the similarities no better than one, by BIC: then no group stands out, and the
    similarity should be given.
    """
    from sklearn.mixture import GaussianMixture

    values = np.asarray(alike, np.float64)[:, None]
    if len(values) < _LEAST or np.ptp(values) == 0:
        return None
    values = (values - values.mean()) / values.std()
    one, two = (GaussianMixture(k, n_init=3, random_state=0, reg_covar=1e-4).fit(values) for k in (1, 2))
    if two.bic(values) >= one.bic(values):
        return None
    upper = int(two.means_.argmax())
    # A wide lower component wins again far above the upper one's mean: what is still more alike stays in.
    likely = two.predict_proba(values)[:, upper] >= 0.5
    above = likely | (values[:, 0] >= two.means_[upper, 0])
    first = alike[above & (values[:, 0] > two.means_[1 - upper, 0])]
    return float(first.min()) if len(first) else None
