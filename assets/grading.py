"""What grading rests on: the gold images, their slices, and whether they speak for a batch."""

import re
from collections.abc import Iterable

import pyarrow as pa

from assets.comparing import others, vectors_of
from assets.curation import encoder_of
from assets.tables import Work
from pipeline import drift, exchangeability, fuse, schema, slices, trust


def gold_of(work: Work) -> trust.Gold:
    """The images that labellers are graded on, with the slices that may have certificates of their own."""
    gold = work.read("gold")
    graded = gold.filter(gold.column("graded"))
    ids, places, batches = (gold.column(c).to_pylist() for c in ("image_id", "location", "batch"))
    images, quality = (work.read(name, images=ids) for name in ("images", "quality"))
    counts = slices.image_counts(
        work.read("ground_truth"), work.read("annotated_images").column("image_id").to_pylist()
    )
    splits = schema.table("splits").empty()
    wanted = [s for s in work.config.evaluation.slices if s.where and not re.search(r"\b(split|gold)\b", s.where)]
    declared = slices.declared(slices.per_image(images, quality, splits, counts), wanted)
    by_batch = pa.table({"slice": [fuse.batch_slice(b) for b in batches], "image_id": ids}, schema=declared.schema)
    return trust.Gold(
        graded.column("image_id").to_pylist(),
        ids,
        slices=pa.concat_tables([declared, by_batch]),
        locations=dict(zip(ids, places, strict=True)),
    )


def said_by_labellers(work: Work, images: Iterable[str] | None = None) -> pa.Table:
    """The answers that labels are made of, of all images or of these."""
    return work.read("tags" if work.config.task == "classification" else "detections", images=images)


def gold_tags(work: Work) -> pa.Table | None:
    """Tags on graded gold, which labellers' skills are learnt from; None where no skills are asked for."""
    if work.config.task != "classification" or work.config.labelling.agreement != "dawid_skene":
        return None
    gold = work.read("gold").filter(work.read("gold").column("graded"))
    batches = sorted(gold.column("batch").unique().to_pylist())
    ids = gold.column("image_id").to_pylist()
    return work.store.read("tags", batches, images=ids) if batches else schema.table("tags").empty()


def graded_on(work: Work, which: tuple[str, ...]) -> trust.Gold:
    """Labelled images of the given splits to grade a trained model on; the other labelled ones lay the grid."""
    labelled = work.read("splits").filter(work.read("splits").column("gold"))
    images = schema.where_in(labelled, "split", which).column("image_id").to_pylist()
    ids, places = (labelled.column(c).to_pylist() for c in ("image_id", "location"))
    return trust.Gold(images, ids, locations=dict(zip(ids, places, strict=True)))


def against_gold(work: Work, gold: list[str], labelled: list[str]) -> pa.Table:
    """Rows of `drift` that compare this batch's unlabelled images with gold images, wherever those are from."""
    known = schema.where_in(work.read("gold"), "image_id", gold).column("batch").unique().to_pylist()

    def rows(name: str) -> pa.Table:
        elsewhere = others(work, name, gold, known) if set(known) - {work.batch} else schema.table(name).empty()
        return pa.concat_tables([work.read(name), elsewhere])

    images = rows("images")
    ids, vectors = vectors_of(work, images, gold, encoder_of(work.project))
    said = schema.best_classes(rows("tags")) if work.config.task == "classification" else rows("detections")
    return drift.test_batch(
        work.batch or "",
        exchangeability.sides(images, gold, labelled),
        rows("quality"),
        gold,
        work.config.drift,
        encoder=encoder_of(work.project),
        ids=ids,
        vectors=vectors,
        predictions=said,
    )


def standing_of(work: Work) -> fuse.Standing:
    """Which certificates may be relied on for this batch."""
    wanted = slices.without_labels(work.config.evaluation.slices)
    empty = schema.table("splits").empty(), slices.image_counts(schema.table("ground_truth").empty(), [])
    members = slices.declared(slices.per_image(work.read("images"), work.read("quality"), *empty), wanted)
    return fuse.Standing(work.batch or "", exchangeability.standing(work.read("exchangeability")), members)
