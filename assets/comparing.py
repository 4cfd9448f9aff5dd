"""A batch's images beside others that it is compared with: what of these is read once serves all batches of a run."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from assets.tables import Work
from pipeline.ids import joined


def others(work: Work, name: str, image_ids: Sequence[str], batches: Sequence[str]) -> pa.Table:
    """Rows of a table about the given images from the other ones of `batches`."""
    key = "rows", name, joined(image_ids), joined(batches)
    rows = work.once(key, lambda: work.store.read_or_empty(name, sorted(batches), images=image_ids))
    return rows.filter(pc.not_equal(rows.column("batch"), work.batch))


def vectors_of(
    work: Work, images: pa.Table, compared: Sequence[str], encoder: str
) -> tuple[list[str], NDArray[np.float32]]:
    """Ids and vectors in the order of `images`: the batch's own first, then others, which are among `compared`.

    They are of windows, where drift is told by these.
    """
    patch = None if work.config.drift.unit == "patch" and work.config.curation.patches > 1 else 0
    inside = pc.equal(images.column("batch"), work.batch)
    own = images.filter(inside).column("image_id").unique()
    more = images.filter(pc.invert(inside)).column("image_id").unique()
    more = more.filter(pc.invert(pc.is_in(more, own)))
    ids, vectors = work.vectors.fetch(own.to_pylist(), encoder, patch, batch=work.batch)
    if not len(more):
        return ids, vectors
    key = "vectors", encoder, patch, joined(compared)
    known, held = work.once(key, lambda: work.vectors.fetch(compared, encoder, patch))
    place = pc.fill_null(pc.index_in(pa.array(known, pa.string()), more), -1).to_numpy()
    order = np.argsort(place, kind="stable")[np.count_nonzero(place < 0) :]
    return ids + [known[i] for i in order.tolist()], np.concatenate([vectors, held[order]] if ids else [held[order]])
