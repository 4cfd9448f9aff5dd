"""Curation: what the data is like, what repeats, what may be trained on, and what to label next."""

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from assets.conditions import follows
from assets.pictures import image_sheet
from assets.tables import Check, Finding, Stage, Work
from pipeline import duplicates as dup
from pipeline import encode, quality, schema, selection, splits
from pipeline.config import Project
from pipeline.models import profiles


def build(project: Project) -> Stage:
    """The curation stage of a project."""
    stage = Stage(project, "curation")

    @stage.table(
        "quality",
        inputs=("images",),
        config=lambda p: p.config.curation.quality.model_dump(mode="json"),
        code="2",
        condition=follows(),
    )
    def quality_(work: Work) -> pa.Table:
        """Blur, exposure, entropy and size, with flags for outliers."""
        edge = work.config.curation.quality.measured_edge
        options = {"max_pixels": work.config.source.max_pixels, "measured_edge": edge}
        images = work.read("images")
        before = quality.measured_before(work.known("quality"), images)
        measured = work.map("quality", quality.QualityWorker, options, images, known=before)
        return quality.flag(measured, work.config.curation)

    @stage.table(
        "quality_limits",
        "quality_issues",
        inputs=("images", "quality"),
        config=lambda p: p.config.curation.quality.model_dump(mode="json"),
        condition=follows(),
    )
    def quality_limits(work: Work) -> dict[str, pa.Table]:
        """Limits learned from the whole project's images, and the images that are beyond them."""
        sizes = work.read("images", ["image_id", "batch", "width", "height"])
        return quality.project_limits(work.read("quality"), sizes, work.config.curation)

    @stage.table(
        "embeddings",
        inputs=("images",),
        config=lambda p: [encoder_of(p), p.config.curation.patches, p.config.batch_size],
        code="2",
        checks=(Check("unit_norm", unit_norm, blocking=True),),
        condition=follows(),
        pool="gpu",
        kinds=("lancedb",),
    )
    def embeddings(work: Work) -> pa.Table:
        """One unit vector an image (and one a window, if asked) into LanceDB, in one commit."""
        rows = work.read("images", encode.NEEDED)
        batch, known = work.batch or "", work.known("embeddings")
        kept = encode.kept(rows, batch, work.vectors, work.config, known)
        work.images = rows.num_rows - kept.num_rows
        return encode.embed_batch(
            rows, batch, work.vectors, work.config, work.compute, work.staging("embeddings"), kept
        )

    @stage.table(
        "duplicates",
        "duplicate_clusters",
        inputs=("images", "quality", "embeddings"),
        config=lambda p: p.config.curation.model_dump(
            include={"embedding_duplicate", "hash_duplicate", "exact_up_to", "recall"}
        ),
        code="2",
        condition=follows(),
    )
    def duplicates(work: Work) -> dict[str, pa.Table]:
        """Exact, perceptual and embedding near-duplicates, each with the image that is kept.

        Only what is new or changed is compared, with all images."""
        images = work.read("images", ["image_id", "parent_id", "tile_x", "tile_y", "width", "height"])
        ids, vectors = work.vectors.fetch(images.column("image_id").unique().to_pylist(), encoder_of(work.project))
        before = work.store.read_or_empty("duplicate_clusters")
        quality = work.read("quality", ["image_id", "sharpness", "phash", "issues"])
        found = dup.find_duplicates(images, quality, ids, vectors, work.config.curation, before)
        work.show(compared=found.compared, recall=found.recall.low if found.recall else 1.0)
        return {"duplicates": found.duplicates, "duplicate_clusters": found.duplicate_clusters}

    @stage.table(
        "splits",
        inputs=("images", "annotated_images", "ground_truth", "duplicates"),
        config=lambda p: p.config.curation.splits.model_dump(mode="json"),
        checks=(Check("no_leakage_between_splits", no_leakage_between_splits, blocking=True),),
        condition=follows(),
    )
    def splits_(work: Work) -> pa.Table:
        """Train, val and test, drawn by location so that nothing leaks between them."""
        found = splits.assign_splits(
            work.read("images"),
            work.read("annotated_images"),
            work.read("ground_truth"),
            work.read("duplicates"),
            work.config.curation.splits,
        )
        moved = Counter(found.column("moved_by").drop_null().to_pylist())
        work.show(moved_by_duplicate=moved["duplicate"], moved_by_location=moved["location"])
        return found

    wanted = project.config.curation.select
    tagged = project.config.task == "classification"
    said = ("tags" if tagged else "detections",) if wanted.asks_labellers else ()

    weak = ("declared_slices", "slice_images") if wanted.slice_deficit else ()

    @stage.table(
        "selection",
        inputs=("images", "splits", "embeddings", "quality_issues", "duplicates", *said, *weak),
        config=lambda p: wanted.model_dump(mode="json"),
        condition=follows(),
    )
    def selection_(work: Work) -> pa.Table:
        """Which unlabelled images to annotate next: unlike what is labelled, undecided, rare, from thin slices."""
        images = work.read("images", ["image_id", "batch"])
        ids, vectors = work.vectors.fetch(images.column("image_id").unique().to_pylist(), encoder_of(work.project))
        answers = work.read(said[0]) if said else None
        members = slice_members(work) if weak else None
        left_out = not_worth_a_look(work)
        chosen = selection.propose(images, work.read("splits"), ids, vectors, wanted, answers, members, left_out)
        best = chosen.column("image_id").to_pylist()
        work.show(proposed=image_sheet(work, work.read("images", images=best), best), left_out=len(left_out))
        return chosen

    return stage


def encoder_of(project: Project) -> str:
    """Producer of the project's vectors."""
    return profiles.encoder_producer(project.config)


def slice_members(work: Work) -> pa.Table:
    """(slice, image_id) of the declared slices, and of the found ones of each model that are confirmed."""
    declared, found = work.read("declared_slices"), work.read("slice_images")
    named = pc.binary_join_element_wise(found.column("slice"), found.column("model"), " ")
    return pa.concat_tables(
        [
            declared.filter(pc.not_equal(declared.column("slice"), "all")).select(["slice", "image_id"]),
            pa.table({"slice": named, "image_id": found.column("image_id")}),
        ],
        promote_options="permissive",
    )


def not_worth_a_look(work: Work) -> set[str]:
    """Images beyond the fixed limits of quality, and near-duplicates of an image that is kept."""
    issues = schema.where_in(work.read("quality_issues"), "issue", work.config.curation.select.leave_out)
    fixed = issues.filter(pc.equal(issues.column("source"), quality.FIXED)).column("image_id").to_pylist()
    return {*fixed, *work.read("duplicates").column("image_id").to_pylist()}


def unit_norm(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """Every vector has length 1."""
    if not outputs["embeddings"].num_rows:
        return Finding(True, "no images")
    worst = work.vectors.furthest_from_unit(work.batch or "", encoder_of(work.project))
    return Finding(worst < 1e-3, f"largest deviation {worst:.1e}")


def no_leakage_between_splits(work: Work, outputs: Mapping[str, pa.Table]) -> Finding:
    """No location (unless splits.straddle) and no cluster of duplicates has images in two of train, val and test."""
    straddle = work.config.curation.splits.straddle
    found = splits.leaks(outputs["splits"], work.read("duplicates"), straddle)
    if found:
        remedy = "let curation.splits.assign keep locations together, or set curation.splits.straddle"
        return Finding(False, "; ".join([*found[:5], remedy]))
    moved = len(outputs["splits"].column("moved_by").drop_null())
    return Finding(True, f"{moved} images moved so that nothing leaks" if moved else "")
