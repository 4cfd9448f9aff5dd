"""Monitoring: drift of every batch, the bill, the DuckDB file of views, and the report."""

from collections.abc import Mapping
from datetime import UTC, datetime

import pyarrow as pa

from assets.comparing import others, vectors_of
from assets.conditions import follows
from assets.curation import encoder_of
from assets.metadata import picture
from assets.pictures import image_sheet
from assets.tables import Check, Finding, Stage, Work
from pipeline import costs, drift, plots, report, schema, slices, warehouse
from pipeline.config import Project
from pipeline.images import Reader
from pipeline.weights import file_sha256

# Everything that enters its costs, so that the bill is complete when it is made.
_BILLED = (
    "quality_issues", "duplicates", "selection", "vocabulary", "review_queue", "learning_curves", "model_trust",
    "slices", "comparisons", "failures", "label_errors", "drift", "alarms", "descriptions",
)  # fmt: skip
ANNOTATED = [c.name for c in schema.ANNOTATION]
_REPORTED = ("verdict", "champion", "deployment", "warehouse", "rejected_files", "quality_issues", "map", "slices")


def build(project: Project) -> Stage:
    """The monitoring stage of a project."""
    stage = Stage(project, "monitoring")

    @stage.table(
        "reference",
        inputs=("images", "splits"),
        config=lambda p: p.config.drift.reference,
        checks=(Check("reference_not_empty", reference_not_empty),),
        condition=follows(),
    )
    def reference(work: Work) -> pa.Table:
        """The images that every batch is compared with."""
        images = work.read("images")
        chosen = drift.reference_images(images, work.read("splits"), work.config.drift)
        rows = schema.where_in(images, "image_id", chosen).select(["image_id", "batch"])
        return (
            rows.group_by("image_id", use_threads=False).aggregate([("batch", "min")]).rename_columns(rows.column_names)
        )

    @stage.table(
        *drift.TABLES,
        inputs=("images", "quality", "embeddings", "detections", "predictions", "splits", "reference"),
        config=lambda p: p.config.model_dump(mode="json", include={"drift": True, "evaluation": {"slices"}}),
        checks=(Check("batch_like_reference", batch_like_reference),),
        condition=follows(),
    )
    def drift_(work: Work) -> Mapping[str, pa.Table]:
        """Embeddings, looks, scores, classes and counts of this batch against the reference, and what drives it."""
        rows = work.read("reference")
        compared, batches = (rows.column(c).unique().to_pylist() for c in ("image_id", "batch"))

        def both(name: str) -> list[pa.Table]:
            return [work.read(name), others(work, name, compared, batches)]

        images, quality = (pa.concat_tables(both(name)) for name in ("images", "quality"))
        encoder = encoder_of(work.project)
        ids, vectors = vectors_of(work, images, compared, encoder)
        (found, found_there), (foreseen, foreseen_there) = both("detections"), both("predictions")
        said = [found, foreseen, found_there, foreseen_there]
        tables = drift.examine(
            work.batch or "",
            images,
            quality,
            compared,
            work.config.drift,
            encoder=encoder,
            ids=ids,
            vectors=vectors,
            predictions=pa.concat_tables([schema.best_classes(t).select(ANNOTATED) for t in said]),
            slices=slices_of(work, images, quality),
        )
        show_drift(work, tables, images)
        return tables

    @stage.table(
        "alarms",
        inputs=("drift",),
        config=lambda p: p.config.drift.model_dump(mode="json", include={"alarm_rate", "horizon"}),
        checks=(Check("no_alarm", no_alarm),),
        condition=follows(),
    )
    def alarms(work: Work) -> pa.Table:
        """The first look at each batch: alarms whose chance of ever being false is bounded over many batches."""
        # Another run may be adding its looks, too.
        work.over["alarms"] = work.store.version("alarms")
        return drift.alarms(work.read("drift"), work.read_all("alarms"), work.config.drift, datetime.now(UTC))

    @stage.table(
        "costs",
        inputs=_BILLED,
        config=lambda p: p.config.prices.model_dump(mode="json"),
        external=pending_entries,
        consumes=True,
        condition=follows(),
        ledger=False,
    )
    def costs_(work: Work) -> pa.Table:
        """The ledger: seconds, images, tokens and money of every piece of work, at today's prices."""
        # Another run may be compacting too, and what only its table holds must not be written over.
        work.over["costs"] = work.store.version("costs")
        known = work.read_all("costs")
        work.store.drop_ledger(known.column("entry_id").to_pylist())
        ledger = costs.compact([known, work.store.read_ledger()], work.config.prices)
        work.show(bill=picture(plots.cost_bars(ledger), "costs by asset"))
        return ledger

    @stage.table(
        "prices",
        config=lambda p: p.config.prices.model_dump(mode="json"),
        condition=follows(),
        ledger=False,
    )
    def prices(work: Work) -> pa.Table:
        """What things cost, as project.yaml says, so that SQL can tell what labels did and would cost."""
        return costs.price_list(work.config.prices)

    @stage.table(
        "warehouse",
        inputs=("verdict", "champion", "deployment", "prices"),
        checks=(Check("views_readable", views_readable, blocking=True),),
        condition=follows(),
        ledger=False,
        kinds=("duckdb",),
    )
    def warehouse_(work: Work) -> pa.Table:
        """One DuckDB file of views over the Parquet tables, renamed into place."""
        path = warehouse.build(work.store)
        names = [n for n in schema.TABLES if n not in ("warehouse", "report")]
        counts = " UNION ALL ".join(f"SELECT '{n}' AS view, count(*) AS rows FROM {n}" for n in names)
        views = warehouse.query(path, counts).to_pylist()
        return schema.table("warehouse").from_rows([v | {"path": str(path)} for v in views])

    @stage.table("report", code="4", inputs=_REPORTED, condition=follows(), ledger=False, kinds=("html",))
    def report_(work: Work) -> pa.Table:
        """One self-contained HTML file: the verdict, and everything it rests on."""
        reader = Reader(work.config.source.max_pixels)
        path = report.render(work.config, work.store, reader)
        work.show(open=path.as_uri())
        row = {"path": str(path), "sha256": file_sha256(path), "bytes": path.stat().st_size}
        return schema.table("report").from_rows([row])

    return stage


def show_drift(work: Work, tables: Mapping[str, pa.Table], images: pa.Table) -> None:
    """p-values; the batch's images that are least like the reference; the region that it has most in excess."""
    work.show(tests=picture(plots.drift(tables["drift"]), "p-value of each test"))
    if tables["drift_images"].num_rows:
        first = tables["drift_regions"].slice(0, 1).to_pylist()[0]
        work.show(
            least_like_reference=image_sheet(work, images, tables["drift_images"].column("image_id").to_pylist()),
            most_in_excess=image_sheet(work, images, first["examples"]),
            contribution=first["contribution"],
        )
    for row in tables["drift"].to_pylist():
        if row["detectable"] is not None:
            work.show(smallest_shift_caught=f"{row['detectable']:.2g} {row['unit']}, at {row['alpha']:g}")


def slices_of(work: Work, images: pa.Table, quality: pa.Table) -> dict[str, list[str]]:
    """Images of each declared slice that needs no labels."""
    declared = slices.without_labels(work.config.evaluation.slices)
    empty = schema.table("splits").empty(), slices.image_counts(schema.table("ground_truth").empty(), [])
    members = slices.declared(slices.per_image(images, quality, *empty), declared)
    rows = members.group_by("slice").aggregate([("image_id", "list")]).to_pylist()
    return {row["slice"]: row["image_id_list"] for row in rows if row["slice"] != "all"}


def reference_not_empty(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """There are images to compare with."""
    return Finding(outputs["reference"].num_rows > 0, f"{outputs['reference'].num_rows} images")


def batch_like_reference(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """No test finds this batch unlike the reference."""
    rows = outputs["drift"].filter(outputs["drift"].column("drifted")).to_pylist()
    return Finding(not rows, ", ".join(f"{r['test']} p = {r['p_value']:.2g}" for r in rows))


def no_alarm(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """No batch, as it is now, raises an alarm, at a level that many batches share."""
    rows = drift.standing(outputs["alarms"], work.read("drift")).to_pylist()
    return Finding(not rows, ", ".join(f"{r['batch']} ({r['test']}, p = {r['p_value']:.2g})" for r in rows))


def pending_entries(work: Work) -> list[str]:
    """Ledger entries that are not in `costs` yet."""
    known = set(work.read_all("costs").column("entry_id").to_pylist())
    return [entry for entry in work.store.ledger() if entry not in known]


def views_readable(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """Every view of the DuckDB file answers, with as many rows as its table has."""
    rows = {r["view"]: r["rows"] for r in outputs["warehouse"].to_pylist()}
    columns = {"images": "batch", "labels": "batch", "verdict": "slice"}
    wrong = [n for n, c in columns.items() if rows.get(n) != work.store.read_or_empty(n, columns=[c]).num_rows]
    return Finding(not wrong, f"{len(rows)} views" if not wrong else f"wrong: {', '.join(wrong)}")
