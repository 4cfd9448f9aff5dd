"""A batch that gold does not speak for loses its certificates before a label is accepted; new gold restores them.

Takes the scenes sample. Gold is the smaller day batch; the new one, made of the larger, has the same kind of
scenes, darkened and blurred. It is run three times: as it was taken (so that the withdrawal is shown to be about
the pictures), darkened and blurred, and so again with people's boxes on four fifths of it.

Run: python benchmarks/revocation.py [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import pyarrow.compute as pc
import yaml
from PIL import Image, ImageEnhance, ImageFilter

from pipeline.config import find_project, samples_root
from pipeline.fuse import batch_slice
from pipeline.store import Store

GOLD, OTHERS, NEW = "2026-07-01-day", "2026-06-01-day", "2026-06-20-new"
BRIGHTNESS, BLUR = 0.35, 1.5  # of the original; pixels
TARGET = 0.7  # what a small batch's own gold can show of 27 classes


def darker(source: Path, target: Path) -> None:
    """Write a darkened and blurred copy of a picture."""
    with Image.open(source) as image:
        ImageEnhance.Brightness(image.convert("RGB")).enhance(BRIGHTNESS).filter(ImageFilter.GaussianBlur(BLUR)).save(
            target, quality=92
        )


def new_batch(folder: Path, spoiled: bool, labelled: bool) -> None:
    """Make the batch NEW under `folder` out of OTHERS; `labelled`: with people's boxes on four fifths of its images."""
    source, target = samples_root() / "scenes" / OTHERS, folder / NEW
    shutil.rmtree(target, ignore_errors=True)
    (target / "images").mkdir(parents=True)
    for path in sorted((source / "images").iterdir()):
        copy = target / "images" / path.name
        darker(path, copy) if spoiled else shutil.copy(path, copy)
    if labelled:
        annotations = json.loads((source / "annotations.json").read_text(encoding="utf-8"))
        kept = {image["id"] for number, image in enumerate(annotations["images"]) if number % 5}
        annotations["images"] = [i for i in annotations["images"] if i["id"] in kept]
        annotations["annotations"] = [a for a in annotations["annotations"] if a["image_id"] in kept]
        (target / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")


def write_project(folder: Path) -> None:
    """The project `scenes` over the folder's own source, without masks and with all labelled images as gold."""
    data = yaml.safe_load((find_project("scenes").folder / "project.yaml").read_text(encoding="utf-8"))
    data["source"]["uri"] = str(folder / "source")
    data["curation"]["splits"] = {"assign": [{"split": "train", "where": "true"}]}
    data["labelling"]["masks"] = False
    data["trust"] |= {"target": TARGET, "unit": "image"}
    (folder / "projects" / "scenes").mkdir(parents=True)
    (folder / "projects" / "scenes" / "project.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")


def show(words: str) -> None:
    """Run the pipeline up to labels, and print what became of the new batch."""
    from assets import launch

    outcome = launch.run("scenes", select="collection,curation,labelling")
    if not outcome.success:
        raise SystemExit(outcome.failure)
    store = Store(find_project("scenes").store_uri)
    tests = store.read("exchangeability", NEW)
    differing = tests.filter(tests.column("differs")).to_pylist()
    labels = store.read("labels", NEW)
    accepted = labels.filter(pc.equal(labels.column("status"), "accepted"))
    trust = store.read("trust")
    sure = trust.filter(trust.column("certified"))
    everywhere = sure.filter(pc.equal(sure.column("slice"), "all")).num_rows
    own = sure.filter(pc.equal(sure.column("slice"), batch_slice(NEW))).num_rows
    waiting = labels.filter(pc.not_equal(labels.column("status"), "human")).num_rows
    print(f"{words}: {accepted.num_rows} of {waiting} labels accepted")
    print(f"    certified: {everywhere} classes on all gold, {own} on the batch's own")
    for side in sorted(set(tests.column("gold").to_pylist())):
        why = [f"{r['test']} p = {r['p_value']:.2g}" for r in differing if r["gold"] == side]
        print(f"    against {side} gold: {', '.join(why) or 'no test differs'}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", type=Path, help="leave everything in this folder")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="cvp-revocation-"))
    write_project(folder)
    os.environ |= {
        "CVP_STORE": str(folder / "store"),
        "CVP_PROJECTS": str(folder / "projects"),
        "DAGSTER_HOME": str(folder / "dagster"),
    }
    source = folder / "source"
    shutil.copytree(samples_root() / "scenes" / GOLD, source / GOLD)
    try:
        for words, spoiled, labelled in (
            ("as taken", False, False),
            ("darkened and blurred", True, False),
            ("darkened and blurred, four fifths of it labelled", True, True),
        ):
            new_batch(source, spoiled, labelled)
            show(words)
    finally:
        if not given.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
