"""What a run will take, before it starts: told from what such work took before."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from assets.plan import Piece
from assets.resources import StoreResource, s3_resource, source_of
from assets.tables import Recipe
from pipeline import costs
from pipeline.config import Project, find_projects, load_project
from pipeline.errors import PipelineError
from pipeline.store import Store

SCHEMA = pa.schema(
    {
        "asset": pa.string(),
        "stage": pa.string(),
        "batches": pa.int64(),  # null where it has none
        "images": pa.int64(),
        "seconds": pa.float64(),  # null without a record
        "low": pa.float64(),
        "high": pa.float64(),
        "money": pa.float64(),
        "record": pa.string(),
    }
)


@dataclass
class _Record:
    """What one asset took so far, a finished piece of work a value."""

    whose: str = ""
    seconds: list[float] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    money: list[float] = field(default_factory=list)

    def of(self, images: int, pieces: int, batched: bool) -> dict[str, float]:
        """Seconds (also at the best and worst pace seen) and money of so many images, or of doing it once more."""
        if not batched:
            return {
                "seconds": self.seconds[-1],
                "low": min(self.seconds),
                "high": max(self.seconds),
                "money": self.money[-1],
            }
        # Work that counts no images is alike from batch to batch.
        units, wanted = (self.images, images) if any(self.images) else ([1] * len(self.seconds), pieces)
        # Where no image was new there is no pace.
        done = [(s, m, n) for s, m, n in zip(self.seconds, self.money, units, strict=True) if n]
        paces = [s / n for s, _, n in done]
        share = wanted / sum(n for *_, n in done)
        return {
            "seconds": sum(s for s, *_ in done) * share,
            "low": min(paces) * wanted,
            "high": max(paces) * wanted,
            "money": sum(m for _, m, _ in done) * share,
        }


def estimate(project: Project, pieces: Sequence[Piece]) -> pa.Table:
    """One row for each asset that a run over `pieces` would make, with the seconds and money it would take.

    Bookkeeping, which never enters the ledger, is left out.
    An asset of batches takes what its images took before, one without batches what it took the last time.
    Where the project has no record, one of the same profile lends its own; else seconds and money are null.
    `low` and `high` are of the quickest and slowest piece of work on record.
    It is what it may come to: work whose inputs turn out unchanged is not done at all.
    """
    store = StoreResource().open(project).remembering()
    sizes = _images(project, store, sorted({p.batch for p in pieces if p.batch is not None}))
    own, lent = _records(project, store), None
    wanted: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        if piece.recipe.ledger:
            wanted[piece.recipe.name].append(piece)
    rows = []
    for name, found in wanted.items():
        recipe = found[0].recipe
        record = own.get(name)
        if record is None:
            lent = lent if lent is not None else _lent(project)
            record = lent.get(name)
        rows.append(_row(recipe, found, sizes, record))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _row(recipe: Recipe, pieces: Sequence[Piece], sizes: Mapping[str, int], record: _Record | None) -> dict[str, Any]:
    images = sum(sizes[p.batch] for p in pieces if p.batch is not None) if recipe.batched else None
    row: dict[str, Any] = {"asset": recipe.name, "stage": recipe.stage, "images": images}
    row["batches"] = len(pieces) if recipe.batched else None
    if record is not None:
        said = record.of(images or 0, len(pieces), recipe.batched)
        return row | said | {"record": f"{record.whose}{len(record.seconds)} earlier"}
    return row | {"record": "none"}


def _images(project: Project, store: Store, batches: Iterable[str]) -> dict[str, int]:
    """Images of each batch: as counted, or, of a new one, its files times the tiles that files have elsewhere."""
    source = source_of(project, s3_resource())
    counted = {b: receipt.rows for b in store.batches("images") if (receipt := store.receipt("images", b))}
    new = [b for b in batches if b not in counted]
    tiles = 1.0
    if new and project.config.source.tile.size and counted:
        files = sum(len([f for f in source.files(b) if not f.is_sidecar]) for b in counted if b in source.batches())
        tiles = sum(counted.values()) / files if files else 1.0
    return counted | {b: round(tiles * len([f for f in source.files(b) if not f.is_sidecar])) for b in new}


def _records(project: Project, store: Store) -> dict[str, _Record]:
    """What the ledger knows of each asset. Time of attempts that failed is added to the work that then succeeded."""
    ledger = costs.ledger(store, project.config.prices)
    keys = ["asset", "batch", "started_at"]
    work = ledger.group_by(keys, use_threads=False).aggregate(
        [("seconds", "sum"), ("images", "max"), ("money", "sum"), ("producer", "max")]
    )
    found: dict[str, _Record] = {}
    lost: Counter[tuple[str, str, str]] = Counter()
    for row in work.sort_by("started_at").to_pylist():
        key = row["asset"], row["batch"]
        if row["producer_max"] == costs.UNFINISHED:
            lost[(*key, "seconds")] += row["seconds_sum"]
            lost[(*key, "money")] += row["money_sum"]
            continue
        record = found.setdefault(row["asset"], _Record())
        record.seconds.append(row["seconds_sum"] + lost.pop((*key, "seconds"), 0))
        record.money.append(row["money_sum"] + lost.pop((*key, "money"), 0))
        record.images.append(row["images_max"])
    return found


def _lent(project: Project) -> dict[str, _Record]:
    """Records of other projects of the same profile, task and way to compute; of several, the longest record."""
    found: dict[str, _Record] = {}
    mine = project.config
    for folder in find_projects():
        try:
            other = load_project(folder)
            config = other.config
            alike = (config.profile, config.task, config.compute) == (mine.profile, mine.task, mine.compute)
            records = _records(other, Store(other.store_uri)) if alike and other.name != project.name else {}
        except PipelineError:  # another project's broken file or store is not this one's trouble
            continue
        for name, record in records.items():
            if name not in found or len(record.seconds) > len(found[name].seconds):
                record.whose = f"{other.name}: "
                found[name] = record
    return found


def spent(project: Project, since: datetime) -> float:
    """Money of the work that was begun since then, at today's prices."""
    ledger = costs.ledger(Store(project.store_uri), project.config.prices)
    return float(pc.sum(ledger.filter(pc.greater_equal(ledger["started_at"], pa.scalar(since)))["money"]).as_py() or 0)
