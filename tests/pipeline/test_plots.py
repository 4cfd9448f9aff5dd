from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import plots, schema
from tests.pipeline.curated_rows import image_rows

GREY = np.full((100, 200, 3), 128, np.uint8)


def curves(*kinds: str) -> pa.Table:
    rows = [
        {"model": m, "split": "test", "class_name": "Tree", "curve": k, "x": x, "y": 1 - x / 2, "low": 0.1, "high": 0.9}
        for k in kinds
        for m in ("fcos@1#a", "crowns@1#b")
        for x in (0.1, 0.5, 0.9)
    ]
    return schema.table("curves").from_rows(rows)


def evaluation() -> pa.Table:
    rows = [
        {
            "model": m,
            "split": "test",
            "slice": s,
            "class_name": "all",
            "metric": "AP50",
            "value": v,
            "support": 9,
            "images": 3,
        }
        for m in ("fcos@1#a", "crowns@1#b")
        for s, v in (("all", 0.5), ("dark", None), ("small", 0.2))
    ]
    return schema.table("evaluation").from_rows(rows)


def drift() -> pa.Table:
    rows = [
        {"batch": b, "test": t, "subject": "x", "p_value": p, "drifted": p is not None and p < 0.01, "alpha": 0.01,
         "images": 5, "reference_images": 5, "note": ""}
        for t in ("embedding_mmd", "score_ks")
        for b, p in (("2026-01", 0.4), ("2026-02", 0.0), ("2026-03", None), ("2026-04", 1e-30))
    ]  # fmt: skip
    return schema.table("drift").from_rows(rows)


def costs() -> pa.Table:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [
        {"entry_id": str(i), "stage": "s", "asset": f"asset{i}", "batch": "", "producer": "p", "started_at": now,
         "seconds": float(i), "device": "cpu", "images": 1, "rows": 1, "tokens": 0, "money": 0.0, "currency": "USD"}
        for i in range(20)
    ]  # fmt: skip
    return schema.table("costs").from_rows(rows)


def confusion() -> pa.Table:
    rows = [
        {"model": "m", "split": "test", "actual": a, "predicted": b, "count": 3}
        for a in ("x", "background")
        for b in ("x", "y")
    ]
    return schema.table("confusion").from_rows(rows)


def slice_history() -> pa.Table:
    rows = [
        {"at": datetime(2026, 11, day, tzinfo=UTC), "slice": s, "kind": "declared", "model": f"fcos@1#{day}",
         "metric": "image_error", "images": 9, "value": v, "confirmed": True}
        for day, s, v in ((1, "dark", 0.4), (2, "dark", 0.3), (3, "small", None), (4, "small", 0.2), (4, "other", 0.9))
    ]  # fmt: skip
    return schema.table("slice_history").from_rows(rows)


HISTORY = json.dumps([{"step": i, "loss": 1 / (i + 1), "lr": 0.1} for i in range(5)])
IDS = [f"i{k:02d}" for k in range(30)]


def map_places() -> pa.Table:
    x, y = np.random.default_rng(0).normal(size=(2, 30)).tolist()
    return schema.table("map").from_columns({"image_id": IDS, "encoder": ["e"] * 30, "x": x, "y": y})


DRAWN: dict[str, Callable[[Any], bytes]] = {
    "precision_recall": lambda f: plots.precision_recall(curves("precision_recall"), form=f),
    "reliability": lambda f: plots.reliability(curves("reliability"), models=["fcos"], form=f),
    "learning": lambda f: plots.learning_curve(curves("learning"), 0.4, form=f),
    "slices": lambda f: plots.slice_bars(evaluation(), "AP50", form=f),
    "slice_history": lambda f: plots.slice_history(
        slice_history(), {"dark": "brightness < 0.35 AND site = 'b'", "small": "small"}, form=f
    ),
    "drift": lambda f: plots.drift(drift(), form=f),
    "map": lambda f: plots.embedding_map(
        map_places(), image_rows(IDS, batch=["a"] * 10 + ["b"] * 20), {"a slice": [(0, 0), (3, 0), (3, 3)]}, form=f
    ),
    "costs": lambda f: plots.cost_bars(costs(), form=f),
    "confusion": lambda f: plots.confusion(confusion(), form=f),
    "loss": lambda f: plots.training_loss(HISTORY, form=f),
    "counts": lambda f: plots.class_counts(["a", "b"], [3, 1], title="Counts", form=f),
}
EMPTY: dict[str, Callable[[Any], bytes]] = {
    "precision_recall": lambda f: plots.precision_recall(schema.table("curves").empty(), form=f),
    "reliability": lambda f: plots.reliability(schema.table("curves").empty(), form=f),
    "learning": lambda f: plots.learning_curve(schema.table("curves").empty(), form=f),
    "slices": lambda f: plots.slice_bars(schema.table("evaluation").empty(), "AP50", form=f),
    "slice_history": lambda f: plots.slice_history(schema.table("slice_history").empty(), {"dark": "dark"}, form=f),
    "drift": lambda f: plots.drift(schema.table("drift").empty(), form=f),
    "map": lambda f: plots.embedding_map(schema.table("map").empty(), image_rows([]), {}, form=f),
    "costs": lambda f: plots.cost_bars(schema.table("costs").empty(), form=f),
    "confusion": lambda f: plots.confusion(schema.table("confusion").empty(), form=f),
    "loss": lambda f: plots.training_loss("[]", form=f),
    "counts": lambda f: plots.class_counts([], [], title="Counts", form=f),
}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.filterwarnings("error")
def test_charts_are_drawn_at_phone_size_and_differ_from_empty_ones(name: str) -> None:
    picture = pixels(DRAWN[name]("png"))
    assert 800 <= picture.shape[1] <= 960  # 4.6 inches at twice a screen's density
    assert (picture[:4] == 255).all() and (picture[:, :4] == 255).all()  # nothing is cut off at the edges
    # Axes and words are grey; only data has a colour.
    assert coloured(picture) > 100
    assert coloured(pixels(EMPTY[name]("png"))) == 0


def coloured(picture: np.ndarray) -> int:
    channels = picture.astype(int)
    return int((channels.max(axis=2) - channels.min(axis=2) > 40).sum())


@pytest.mark.parametrize("name", DRAWN)
def test_svg_is_well_formed_repeatable_and_self_contained(name: str) -> None:
    drawn = DRAWN[name]("svg")
    assert drawn == DRAWN[name]("svg")
    root = ElementTree.fromstring(drawn)
    assert root.tag.endswith("svg")
    for node in root.iter():
        for key, value in node.attrib.items():
            if key.endswith("href"):
                assert value.startswith(("#", "data:"))


def test_png_is_repeatable() -> None:
    assert DRAWN["drift"]("png") == DRAWN["drift"]("png")


def test_rc_settings_are_left_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    DRAWN["slices"]("png")
    assert dict(matplotlib.rcParams) == before


def test_colours_follow_the_given_order() -> None:
    one = plots.precision_recall(curves("precision_recall"), models=["fcos", "crowns"], form="svg").decode()
    two = plots.precision_recall(curves("precision_recall"), models=["crowns", "fcos"], form="svg").decode()
    assert one != two
    unused = plots.precision_recall(curves("precision_recall"), models=["other", "another"], form="svg").decode()
    assert plots.SERIES[0] not in unused
    assert plots.SERIES[2] in unused


def test_the_map_shows_coordinates_and_the_outlines_of_slices() -> None:
    places = map_places()
    corners = [(-0.5, 0.1), (1.5, 0.1), (0.5, 1.2)]
    plain, outlined = (
        plots.embedding_map(places, image_rows(IDS), named, form="svg").decode() for named in ({}, {"glare": corners})
    )
    labels = re.findall(r"<!-- (.*?) -->", outlined)
    assert "glare" in labels and "glare" not in plain
    ticks = [float(t.replace("\N{MINUS SIGN}", "-")) for t in labels if re.fullmatch(r"[−\d.]+", t)]
    x, y = (places.column(c).to_numpy() for c in "xy")
    assert len(ticks) >= 10 and min(ticks) < min(x.min(), y.min()) + 0.5 and max(ticks) > max(x.max(), y.max()) - 0.5


@given(st.integers(0, 9), st.integers(1, 5), st.sampled_from([32, 64, 100]))
def test_contact_sheet_has_one_cell_an_image(count: int, columns: int, cell: int) -> None:
    sheet = pixels(plots.contact_sheet([GREY] * count, columns=columns, cell=cell))
    if not count:
        assert sheet.shape == (cell // 2, cell * 2, 3)
        return
    gap = max(4, cell // 40)
    wide = min(columns, count)
    tall = -(-count // wide)
    assert sheet.shape == (tall * (cell + gap) - gap, wide * (cell + gap) - gap, 3)
    photo = (sheet == 128).all(axis=2).sum()
    assert photo == count * cell * (cell // 2)  # twice as wide as high, fitted whole


def test_boxes_are_drawn_where_they_are() -> None:
    overlay = plots.Overlay(np.array([[50.0, 20.0, 150.0, 80.0]]), ["#ff0000"])
    sheet = pixels(plots.contact_sheet([GREY], [overlay], columns=1, cell=200))
    red = np.argwhere((sheet == [255, 0, 0]).all(axis=2))
    top, left = red.min(axis=0)
    bottom, right = red.max(axis=0)
    # The photo is 200 x 100 in a square of 200, so it begins at row 50.
    assert (left, right) == (50, 150)
    assert (top, bottom) == (70, 130)


def test_odd_boxes_do_no_harm() -> None:
    boxes = np.array([[150, 80, 50, 20], [np.nan, 0, 1, 1], [-500, -500, 900, 900], [5, 5, 5, 5]], np.float32)
    overlay = plots.Overlay(boxes, ["#ff0000"] * 4, ["", "<b>", "x", "äöü 木"])
    sheet = pixels(plots.contact_sheet([GREY], [overlay], ["a caption that is far too long to fit below"], cell=200))
    assert (sheet == [255, 0, 0]).all(axis=2).any()


def test_labels_and_captions_are_written() -> None:
    boxes = np.array([[50.0, 40.0, 150.0, 80.0]])
    bare = plots.contact_sheet([GREY], [plots.Overlay(boxes, ["#ff0000"])], cell=200)
    told = plots.contact_sheet([GREY], [plots.Overlay(boxes, ["#ff0000"], ["0.91"])], cell=200)
    assert (pixels(bare) != pixels(told)).any()
    assert pixels(plots.contact_sheet([GREY], captions=["name"], cell=200)).shape[0] > 200


def test_jpeg_is_smaller_than_png_for_photos() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    jpeg = plots.contact_sheet([noise], cell=200, form="JPEG")
    assert Image.open(io.BytesIO(jpeg)).format == "JPEG"
    assert len(jpeg) < len(plots.contact_sheet([noise], cell=200))


def test_tiny_and_empty_photos() -> None:
    tiny = np.zeros((1, 1, 3), np.uint8)
    assert pixels(plots.contact_sheet([tiny], cell=64)).shape == (64, 64, 3)
