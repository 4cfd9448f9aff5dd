"""How well a text selects a slice: precision and recall where people's labels, or folders, say what is in each image.

Run: python benchmarks/text_slices.py, after `cvp samples pull scenes` and `cvp samples pull textile`

Similarities are learned, as for a slice without `at_least`. `as many` is the precision among as many images as there
are right ones, the most alike first: what a well given `at_least` could do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema, slices
from pipeline.collect import collect_ground_truth, collect_images
from pipeline.compute import Compute
from pipeline.config import Project, SliceConfig, find_project
from pipeline.images import Pixels, Reader
from pipeline.models.profiles import build_encoder
from pipeline.sources import open_source
from pipeline.store import Store

LEAST = 20  # images with it
Texts = dict[str, NDArray[np.bool_]]


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


def cut_out(images: pa.Table, truth: pa.Table) -> Iterator[Pixels]:
    """What is in each box of people's."""
    row_of = {row["image_id"]: row for row in images.to_pylist()}
    reader = Reader()
    for box in truth.to_pylist():
        x1, y1, x2, y2 = (round(box[c]) for c in schema.CORNERS)
        yield reader.read(row_of[box["image_id"]])[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]


def of_classes(project: Project, said: Sequence[set[str]]) -> Texts:
    """A text for each class that enough images have, and which images those are."""
    texts = {f"a photo of {c.prompts[0]}": np.array([c.name in names for names in said]) for c in project.ontology}
    return {text: right for text, right in texts.items() if right.sum() >= LEAST}


def measured(
    encode: Callable[[Sequence[str]], NDArray[np.floating]], vectors: NDArray[np.floating], texts: Texts
) -> None:
    """Print a line for each text, and the means over all."""
    ids = [f"{k:06d}" for k in range(len(vectors))]
    specs = [SliceConfig(name=text, text=text) for text in texts]
    members, _ = slices.in_embeddings(specs, ids, vectors, schema.table("map").empty(), lambda: encode)
    rows = []
    for (text, right), vector in zip(texts.items(), encode(list(texts)), strict=True):
        chosen = np.isin(ids, members.filter(pc.equal(members["slice"], text)).column("image_id").to_pylist())
        likest = np.argsort(-(vectors @ vector), kind="stable")[: right.sum()]
        hits = (chosen & right).sum()
        rows.append((right.mean(), chosen.sum(), hits / max(1, chosen.sum()), hits / right.sum(), right[likest].mean()))
        print(f"  {text:50}" + "".join(f"{v:9.2f}" if k != 1 else f"{v:9.0f}" for k, v in enumerate(rows[-1])))
    share, count, precision, recall, as_many = np.array(rows).T
    some = count > 0
    print(
        f"  {some.sum()} of {len(rows)} texts select anything: precision {precision[some].mean():.2f}, "
        f"share {share[some].mean():.2f}, recall {recall[some].mean():.2f}"
        if some.any()
        else "  none selects anything"
    )
    print(f"  all: as many {as_many.mean():.2f}, share {share.mean():.2f}", flush=True)


def main() -> None:
    print(f"{'':52}{'share':>9}{'selected':>9}{'precision':>10}{'recall':>8}{'as many':>9}")
    for name in ("scenes", "textile"):
        project = find_project(name)
        images, truth = collected(project)
        encoder = build_encoder(project.config)
        encode = slices.text_tower(encoder, "a text")
        ids = images.column("image_id").to_pylist()
        shown: dict[str, set[str]] = {i: set() for i in ids}
        for row in truth.select(["image_id", "class_name"]).to_pylist():
            shown[row["image_id"]].add(row["class_name"])
        texts = of_classes(project, [shown[i] for i in ids])
        if name == "scenes":
            light = [dict(row)["light"] == "night" for row in images.column("attributes").to_pylist()]
            texts = {"a photo at night": np.array(light)} | texts
        print(f"{name}: {len(ids)} images", flush=True)
        measured(encode, encoder.encode_images([p for p in Reader().read_rows(images) if p is not None]), texts)
        if name == "scenes":
            of_box = [{c} for c in truth.column("class_name").to_pylist()]
            print(f"{name}: {len(of_box)} boxes, cut out", flush=True)
            measured(encode, encoder.encode_images(list(cut_out(images, truth))), of_classes(project, of_box))


if __name__ == "__main__":
    main()
