"""Which certificate covers which answer: of all gold, of a slice, or of the batch's own gold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.fuse.merge import places
from pipeline.matching import ranks

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
ALL = "all"
NONE = "not certified: gold does not show that this labeller is right often enough"


def batch_slice(batch: str) -> str:
    """The slice of `trust` that rests on the gold of one batch alone."""
    return f"batch:{batch}"


@dataclass(frozen=True)
class Standing:
    """What may be relied on for one batch.

    Attributes:
        batch: its name. doubts: for 'all' gold and that of the 'batch', why it does not speak for the
            batch's other images; '' where nothing speaks against it.
        slices: rows of (slice, image_id), of slices that tell where an image belongs before it is labelled.
    """

    batch: str = ""
    doubts: Mapping[str, str] = field(default_factory=dict)
    slices: pa.Table | None = None

    @property
    def revoked(self) -> str:
        """Why the certificates of all gold do not hold here; '' if they do."""
        return self.doubts.get(ALL, "")

    def withdrawn(self) -> str:
        """Why nothing is accepted where not even the batch's own gold certifies a labeller."""
        words = f"certificate withdrawn: batch unlike gold ({self.revoked})"
        if "batch" not in self.doubts:
            return f"{words}; label some of it"
        own = self.doubts["batch"]
        return (
            f"{words}, and its own gold is unlike the rest ({own})" if own else f"{words}; its own gold is too little"
        )

    def usable(self, trust: pa.Table) -> list[str]:
        """Slices of `trust` whose certificates may be used, the first one that has one wins."""
        if not self.revoked:
            return [ALL, *self._disjoint(set(trust.column("slice").to_pylist()))]
        own = batch_slice(self.batch)
        return [] if self.doubts.get("batch") else [own]

    def _disjoint(self, known: set[str]) -> list[str]:
        """Declared slices that share no image of the batch: what holds in each then holds in all of them."""
        if self.slices is None:
            return []
        taken: set[str] = set()
        chosen = []
        for name in sorted(known & set(self.slices["slice"].to_pylist()) - {ALL}):
            images = set(self.slices.filter(pc.equal(self.slices["slice"], name))["image_id"].to_pylist())
            if not images & taken:
                chosen.append(name)
                taken |= images
        return chosen

    def inside(self, name: str, images: pa.ChunkedArray) -> Flags:
        """(n,) whether each image belongs to a slice of `trust`."""
        if self.slices is None or name == ALL or name == batch_slice(self.batch):
            return np.ones(len(images), bool)
        members = self.slices.filter(pc.equal(self.slices["slice"], name))["image_id"].combine_chunks()
        return np.asarray(pc.is_in(images, members).to_numpy(zero_copy_only=False), bool)


@dataclass(frozen=True)
class Terms:
    """(n,) what each answer is covered by.

    Attributes:
        threshold, precision: of its certificate; NaN where there is none.
        accepted: at or above the threshold, and among the `most` of its image that the certificate covers.
        covered: False where only that cap keeps it out.
        most: the cap; infinity where there is none. certificate: name, or None.
        unit: what the cap counts in. why_none: what to say where there is no certificate.
    """

    threshold: Floats
    precision: Floats
    most: Floats
    accepted: Flags
    covered: Flags
    certificate: NDArray[np.object_]
    unit: str
    why_none: str

    @classmethod
    def of(cls, rows: pa.Table, trust: pa.Table, images: pa.Table, standing: Standing) -> Terms:
        """Look up rows of annotations, with their scores, in `trust`."""
        sure = trust.filter(trust.column("certified"))
        found = {name: np.full(rows.num_rows, np.nan) for name in ("threshold", "precision", "most")}
        certificate = np.full(rows.num_rows, None, object)
        for name in standing.usable(trust):
            inside = standing.inside(name, rows.column("image_id")) if rows.num_rows else np.zeros(0, bool)
            for row in sure.filter(pc.equal(sure.column("slice"), name)).to_pylist():
                which = inside & _said_by(rows, row) & (certificate == None)  # noqa: E711
                certificate[which] = row["certificate"] or ""
                for column, values in found.items():
                    values[which] = np.nan if row[column] is None else row[column]
        units = sure.column("unit").unique().to_pylist()
        unit = units[0] if units else "image"
        most = np.nan_to_num(found["most"], nan=np.inf)
        score = rows.column("score").to_numpy().astype(np.float64)
        passed = score >= np.nan_to_num(found["threshold"], nan=np.inf)
        covered = ~passed | (_place(rows, score, images, unit) < most)
        why = standing.withdrawn() if standing.revoked else NONE
        return cls(found["threshold"], found["precision"], most, passed & covered, covered, certificate, unit, why)


def _said_by(rows: pa.Table, row: Mapping[str, Any]) -> Flags:
    same = pc.and_(
        pc.equal(rows.column("producer"), row["producer"]), pc.equal(rows.column("class_name"), row["class_name"])
    )
    return np.asarray(same.to_numpy(zero_copy_only=False), bool)


def _place(rows: pa.Table, score: Floats, images: pa.Table, unit: str) -> NDArray[np.int64]:
    """(n,) place of each row among those of its producer and class on its image (or location), best score first."""
    where = rows.column("image_id")
    if unit == "location":
        found = pc.index_in(where, images.column("image_id").combine_chunks())
        where = pc.coalesce(images.column("location").take(found), where)
    group = np.zeros(rows.num_rows, np.int64)
    for values in (where, rows.column("producer"), rows.column("class_name")):
        place = places(values)
        group = group * (place.max(initial=0) + 1) + place
    return ranks(group, np.argsort(-score, kind="stable"))
