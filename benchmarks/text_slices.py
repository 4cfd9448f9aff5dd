"""How well a text selects a slice: precision and recall where people's labels or folders say what is in each image.

Run: python benchmarks/text_slices.py, after `cvp samples pull scenes` and `cvp samples pull textile`

The project's own encoder, images of all batches, learned similarities as a text without `at_least` has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema, slices
from pipeline.collect import collect_ground_truth, collect_images
from pipeline.compute import Compute
from pipeline.config import Project, SliceConfig, find_project
from pipeline.encode import EncodeWorker
from pipeline.models.profiles import build_encoder
from pipeline.sources import open_source
from pipeline.store import Store

LEAST = 20  # images of a class


def collected(project: Project) -> tuple[pa.Table, pa.Table]:
    """The tables `images` and `ground_truth` of all batches."""
    source, config = open_source(project.source_uri), project.config
    parts = []
    with TemporaryDirectory() as folder:
        for batch in source.batches():
            staging = Store(folder).staging("images", batch, "f")
            images, _ = collect_images(source, batch, config.source, Compute(), staging)
            truth, _ = collect_ground_truth(source, batch, images, project.ontology, config.source)
            parts.append((images, truth))
    images, truth = (pa.concat_tables(tables) for tables in zip(*parts, strict=True))
    return images, truth


def asked(project: Project, images: pa.Table, truth: pa.Table) -> Iterator[tuple[str, set[str]]]:
    """Texts, and the images that each should select."""
    if project.name == "scenes":
        night = [("light", "night") in dict(row).items() for row in images.column("attributes").to_pylist()]
        yield "a photo at night", set(images.filter(pa.array(night)).column("image_id").to_pylist())
    for item in project.ontology:
        shown = truth.filter(pc.equal(truth.column("class_name"), item.name)).column("image_id").to_pylist()
        if len(set(shown)) >= LEAST:
            yield f"a photo of {item.prompts[0]}", set(shown)


def main() -> None:
    print("| project | text | images with it | selected | precision | recall |\n|---|---|---|---|---|---|")
    for name in ("scenes", "textile"):
        project = find_project(name)
        images, truth = collected(project)
        texts = dict(asked(project, images, truth))
        rows = EncodeWorker(project.config)(images).filter(pc.field("patch") == 0)
        vectors = rows.column("vector").combine_chunks()
        points = vectors.flatten().to_numpy().reshape(rows.num_rows, -1)
        encoder = build_encoder(project.config)
        members, _ = slices.in_embeddings(
            [SliceConfig(name=text, text=text) for text in texts],
            rows.column("image_id").to_pylist(),
            points,
            schema.table("map").empty(),
            lambda encoder=encoder: slices.text_tower(encoder, "a text"),
        )
        for text, right in texts.items():
            found = set(members.filter(pc.equal(members["slice"], text)).column("image_id").to_pylist())
            hits = len(found & right)
            precision = f"{hits / len(found):.2f}" if found else ""
            share = f"{len(right)} of {images.num_rows}"
            print(f"| {name} | {text} | {share} | {len(found)} | {precision} | {hits / len(right):.2f} |", flush=True)


if __name__ == "__main__":
    main()
