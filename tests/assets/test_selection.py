"""What is proposed for annotation: from thin slices, and nothing that is not worth a look."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from assets import launch
from pipeline.store import Store
from tests.assets.conftest import World, settings


def selecting(world: World, select: dict[str, object], **more: object) -> Store:
    world.write(curation=settings()["curation"] | {"select": select}, **more)
    outcome = launch.run("squares")
    assert outcome.success, outcome.failure
    return Store(world.project.store_uri)


def unlabelled(store: Store) -> set[str]:
    splits = store.read("splits")
    return set(splits.filter(pc.invert(splits["gold"])).column("image_id").to_pylist())


def test_black_pictures_and_copies_are_not_proposed_unless_asked_for(finished: World) -> None:
    folder = finished.source / "d"
    finished.add("d", 3, seed=300, labelled=False)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "black.png")
    copied = Image.open(folder / "d_00.png").convert("RGB")
    copied.putpixel((0, 0), (1, 2, 3))
    copied.save(folder / "copy.png")
    store = selecting(finished, {"budget": 50})
    files = store.read("images", columns=["image_id", "file_name"]).to_pylist()
    name = {row["image_id"]: row["file_name"] for row in files}
    copies = set(store.read("duplicates").column("image_id").to_pylist())
    assert {name[i] for i in copies} & {"copy.png", "d_00.png"}
    (black,) = (i for i, file in name.items() if file == "black.png")
    proposed = set(store.read("selection").column("image_id").to_pylist())
    assert proposed == unlabelled(store) - copies - {black} and len(proposed) >= 5
    everything = selecting(finished, {"budget": 50, "leave_out": []})
    assert set(everything.read("selection").column("image_id").to_pylist()) == proposed | {black}


def test_a_slice_drawn_on_the_map_is_thin_and_comes_first(finished: World) -> None:
    store = Store(finished.project.store_uri)
    pool = unlabelled(store)
    places = [row for row in store.read("map").to_pylist() if row["image_id"] in pool]
    wanted = sorted(places, key=lambda row: row["image_id"])[-1]
    x, y, edge = wanted["x"], wanted["y"], 1e-6
    around = [[x - edge, y - edge], [x + edge, y - edge], [x, y + edge]]
    select = {"budget": 2, "diversity": 0.1, "slice_deficit": 1}
    store = selecting(finished, select, evaluation={"slices": [{"name": "here", "polygon": around}]})
    first, second = store.read("selection").sort_by("rank").to_pylist()
    assert (first["image_id"], first["slice_deficit"]) == (wanted["image_id"], 1.0)
    assert second["slice_deficit"] == 0
