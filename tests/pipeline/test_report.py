from __future__ import annotations

import base64
import io
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import plots, report, schema
from pipeline.config import ProjectConfig, parse_config
from pipeline.ids import image_id
from pipeline.images import Reader
from pipeline.report import form, sections
from pipeline.store import Store

BATCHES = ("2026-05-01-yell", "2026-07-01-yell", "2026-08-01-osbs")
FCOS, CROWNS, COMPACT = "fcos@1#a1b2c3d4", "crowns@1#0a0b0c0d", "compact@1#11223344"
EVIL = "<script>alert('x')</script>"


def config(**extra: Any) -> ProjectConfig:
    return parse_config(
        {
            "name": "trees",
            "description": "Tree crowns in aerial photographs of three sites.",
            "classes": {"Tree": {"prompts": ["tree"]}},
            "source": {"uri": "photos"},
        }
        | extra
    )


def synthetic_photos(folder: Path, count: int = 6, size: int = 400) -> list[Path]:
    """Seeded photos of round blobs on a textured ground."""
    rng = np.random.default_rng(3)
    paths = []
    y, x = np.mgrid[:size, :size]
    for i in range(count):
        pixels = rng.normal([110, 120, 80], 12, (size, size, 3))
        for cx, cy, r in rng.uniform([0, 0, 12], [size, size, 40], (12, 3)):
            pixels[(x - cx) ** 2 + (y - cy) ** 2 < r * r] *= [0.45, 0.75, 0.4]
        path = folder / f"photo{i}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        paths.append(path)
    return paths


def fabricate(store: Store, photos: list[Path], file_name: str = "") -> None:
    """Plausible tables of a finished run over `photos`."""
    rng = np.random.default_rng(7)
    images, boxes = [], {}
    for i, path in enumerate(photos):
        with Image.open(path) as photo:
            width, height = photo.size
        edge = min(400, width, height)
        for k, (x, y) in enumerate([(0, 0), (width - edge, height - edge)]):
            key = image_id(path.read_bytes() + bytes([k]))
            images.append(
                {
                    "image_id": key, "batch": BATCHES[i % 3], "uri": str(path), "file_name": file_name or path.name,
                    "parent_id": image_id(path.read_bytes()), "tile_x": x, "tile_y": y, "width": edge, "height": edge,
                    "photo_width": width, "photo_height": height, "format": "PNG", "mode": "RGB", "orientation": 1,
                    "bytes": path.stat().st_size, "location": path.name,
                    "attributes": [("site", BATCHES[i % 3].split("-")[-1])],
                }
            )  # fmt: skip
            corners = rng.uniform(0, edge - 60, (9, 2))
            boxes[key] = np.hstack([corners, corners + rng.uniform(22, 60, (9, 2))])
    ids = [i["image_id"] for i in images]
    batch_of = {i["image_id"]: i["batch"] for i in images}

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        spec = schema.table(name)
        stamp = {"at": "2026-11-23T12:00:00+00:00"}
        if not spec.batched:
            store.write(name, spec.from_rows(rows), written_by=stamp)
            return
        for batch in sorted({r["batch"] for r in rows}):
            store.write(name, spec.from_rows([r for r in rows if r["batch"] == batch]), batch, written_by=stamp)

    def marked(prefix: str, producer: str, shift: float = 0.0, **more: Any) -> list[dict[str, Any]]:
        found = []
        for key in ids:
            for n, (x1, y1, x2, y2) in enumerate(boxes[key] + rng.normal(0, shift, (9, 4)) if shift else boxes[key]):
                row = {
                    "annotation_id": f"{prefix}{key[:12]}{n}", "image_id": key, "batch": batch_of[key],
                    "producer": producer, "class_name": "Tree", "x1": x1, "y1": y1, "x2": x2, "y2": y2,
                    "score": 1.0 if producer == "human" else round(float(rng.uniform(0.3, 0.99)), 3),
                    "truncated": False, "ignore": False, "is_crowd": False,
                }  # fmt: skip
                found.append(row | {k: v(n) if callable(v) else v for k, v in more.items()})
        return found

    write("images", images)
    write("annotated_images", [{"image_id": k, "batch": batch_of[k], "source": "voc"} for k in ids])
    write("ground_truth", marked("g", "human"))
    write("detections", marked("d", CROWNS, 6))
    write("predictions", marked("p", FCOS, 3))
    statuses = ("accepted", "accepted", "accepted", "needs_review", "accepted", "rejected", "verified", "human")
    write(
        "labels",
        marked(
            "l", "fusion@1#99887766", 3, status=lambda n: statuses[n % 8], parts=[], decided_by="score at or above it"
        ),
    )
    damaged = ("empty", "0 bytes; copy it again"), ("not_an_image", EVIL), ("damaged", "truncated after 512 bytes")
    write(
        "rejected_files",
        [
            {"batch": BATCHES[1], "uri": f"/x/{r}", "file_name": f"{r}{n}.jpg", "bytes": 12, "reason": r, "detail": d}
            for n in range(12)
            for r, d in damaged
        ],
    )
    write(
        "splits",
        [
            {"image_id": k, "batch": batch_of[k], "location": k, "gold": True,
             "split": ("train", "val", "test")[BATCHES.index(batch_of[k])]}
            for k in ids
        ],
    )  # fmt: skip
    write(
        "quality",
        [
            {"image_id": k, "batch": batch_of[k], "brightness": 0.4, "contrast": 0.2, "sharpness": 40.0 + n,
             "shadows": 0.1, "highlights": 0.9, "thumbnail_sharpness": 0.5,
             "entropy": 7.1, "colourfulness": 20, "dark_share": 0, "bright_share": 0, "aspect_ratio": 1, "phash": n,
             "issues": [["blurry"], ["dark", "low_information"], []][n % 3]}
            for n, k in enumerate(ids)
        ],
    )  # fmt: skip
    write(
        "quality_issues",
        [
            {"image_id": k, "batch": batch_of[k], "issue": issue, "measure": "sharpness", "value": 4.0, "limit": 15.0,
             "source": "learned"}
            for n, k in enumerate(ids)
            for issue in [["blurry"], ["dark", "low_information"], []][n % 3]
        ],
    )  # fmt: skip
    write(
        "quality_limits",
        [{"issue": "blurry", "measure": "sharpness", "source": "learned", "low": 15.0, "median": 812.0, "images": 90,
          "flagged": 30}],
    )  # fmt: skip
    write(
        "duplicates",
        [
            {"image_id": ids[1], "duplicate_of": ids[0], "kind": "perceptual", "distance": 3, "cluster": "c"},
            {"image_id": ids[3], "duplicate_of": ids[2], "kind": "embedding", "distance": 0.011, "cluster": "d"},
        ],
    )
    trust = {"class_name": "Tree", "slice": "all", "target": 0.9, "confidence": 0.9, "gold": 310, "method": "exact"}
    trust |= {"units": 40, "accepted": 22, "unit": "image"}
    write(
        "trust",
        [
            trust | {"producer": CROWNS, "threshold": 0.71, "precision": 0.92, "precision_low": 0.88,
                     "precision_high": 0.95, "recall": 0.31, "recall_low": 0.26, "recall_high": 0.37, "candidates": 402,
                     "certified": True, "note": "accepted from 0.71 up"},
            trust | {"producer": COMPACT, "precision": 0.08, "precision_low": 0.02, "precision_high": 0.2,
                     "candidates": 22, "certified": False, "note": "no threshold reaches it"},
        ],
    )  # fmt: skip
    numbers = {FCOS: 0.52, CROWNS: 0.27, COMPACT: 0.01}
    evaluation = []
    slices = {"all": 1.0, "site_yell": 1.06, "site_osbs": 0.62, "small_crowns": 0.3, "dense": 0.94}
    for model, base in numbers.items():
        for name, factor in slices.items():
            for metric, k in (("AP50", 1.0), ("AP", 0.4), ("AR100", 0.8), ("count_mae", 12.0)):
                value = base * factor * k
                evaluation.append(
                    {"model": model, "split": "test", "slice": name, "class_name": "all", "metric": metric,
                     "value": value, "low": value * 0.9, "high": value * 1.08, "level": 0.95, "support": 310,
                     "images": 24}
                )  # fmt: skip
    write("evaluation", evaluation)
    write(
        "curves",
        [
            {"model": m, "split": "test", "class_name": "Tree", "curve": "precision_recall", "x": x,
             "y": max(0.0, 1 - x ** (2 if m == FCOS else 0.7))}
            for m in numbers
            for x in np.linspace(0, 0.9, 40).tolist()
        ],
    )  # fmt: skip
    write(
        "slices",
        [
            {"slice": s, "kind": k, "definition": d, "model": FCOS, "metric": "AP50", "images": 12, "value": v,
             "rest": 0.55, "p_value": p, "confirmed": p < 0.01, "members": ids[2:8]}
            for s, k, d, v, p in (
                ("site_osbs", "declared", "attributes['site'] = 'osbs'", 0.32, 0.0004),
                ("d3f1", "discovered", f"cluster 3 of 8 {EVIL}", 0.41, 0.09),
                ("dense", "declared", "boxes >= 30", 0.56, 0.7),
            )
        ],
    )  # fmt: skip
    write(
        "slice_history",
        [
            {"at": datetime(2026, 11, day, tzinfo=UTC), "slice": "site_osbs", "kind": "declared", "metric": "AP50",
             "model": f"fcos@1#{day}", "images": 12, "value": v, "rest": 0.55, "p_value": 0.0004, "confirmed": True}
            for day, v in ((1, 0.2), (2, 0.32))
        ],
    )  # fmt: skip
    errors = ("missed", "background", "localisation", "duplicate")
    write(
        "failures",
        [
            {"model": FCOS, "image_id": k, "batch": batch_of[k], "annotation_id": f"f{k[:10]}{n}", "class_name": "Tree",
             "error": errors[n % 4], "score": None if n % 4 == 0 else 0.4 + 0.1 * n, "iou": 0.3, "x1": b[0], "y1": b[1],
             "x2": b[2], "y2": b[3], "causes": ["small"] if n % 2 else ["crowded", "unlike_training"],
             "nearest": [*ids[:3], "an image that is gone"]}
            for k in ids
            for n, b in enumerate(boxes[k][:4])
        ],
    )  # fmt: skip
    write(
        "label_errors",
        [
            {"model": FCOS, "image_id": k, "batch": batch_of[k], "annotation_id": f"e{k[:10]}{n}", "class_name": EVIL,
             "error": error, "suggested": "Tree", "suspicion": 0.93, "score": 0.8, "x1": b[0], "y1": b[1], "x2": b[2],
             "y2": b[3]}
            for k in ids
            for n, (error, b) in enumerate(zip(("overlooked", "swapped"), boxes[k], strict=False))
        ],
    )  # fmt: skip
    write(
        "comparisons",
        [
            {"model": FCOS, "other": CROWNS, "slice": s, "metric": m, "value": 0.52, "other_value": 0.27,
             "difference": 0.25, "low": 0.19, "high": 0.31, "level": 0.95, "p_value": 0.001, "corrected": 0.002,
             "better": FCOS if s != "dense" else None, "images": 24}
            for m in ("AP50", "AP")
            for s in slices
        ],
    )  # fmt: skip
    reason = "AP50 is above the labeller's by more than both intervals, at a fraction of people's cost."
    write(
        "verdict",
        [
            {"class_name": c, "slice": s, "option": o, "model": m, "metric": "AP50", "value": v and v * f,
             "low": v and v * f * 0.93, "high": v and v * f * 1.06, "support": 310, "certified_coverage": g,
             "seconds_per_1000": t, "milliseconds": t, "cost_per_1000": p, "cost_per_1000_now": p,
             "cost_per_1000_at_1m": p, "recommended": o == "trained", "reason": reason}
            for c, s, f in (("all", "all", 1), ("all", "site_osbs", 0.6), ("Tree", "all", 1))
            for o, m, v, g, t, p in (
                ("people", "human", 0.9, None, None, 1275.0), ("labeller", CROWNS, 0.27, 0.31, 210.0, 0.0058),
                ("foundation", COMPACT, 0.01, 0.0, 105.0, 0.0029), ("trained", FCOS, 0.52, None, 160.0, 0.0044),
            )
        ],
    )  # fmt: skip
    write(
        "champion",
        [{"model": FCOS, "metric": "AP50", "value": 0.52, "promoted": True, "reason": "The first model there is."}],
    )
    history = "[" + ",".join(f'{{"step": {i}, "loss": {3 * 0.98**i + 0.4:.3f}, "lr": 0.001}}' for i in range(120)) + "]"
    write(
        "models",
        [{"model": FCOS, "kind": "fcos", "snapshot": "ab" * 16, "path": "/m.safetensors", "sha256": "0" * 64,
          "config": "{}", "seconds": 241.0, "device": "cpu", "history": history}],
    )  # fmt: skip
    write(
        "deployment",
        [{"model": FCOS, "path": "/store/trees/files/fcos.onnx", "sha256": "0" * 64, "bytes": 9_100_000, "opset": 18,
          "parity_images": 16, "max_abs_difference": 2.1e-6, "agreement": 1.0, "milliseconds_torch": 84.0,
          "milliseconds_onnx": 41.0, "card": "# fcos\n\nTrained on 310 boxes."}],
    )  # fmt: skip
    write(
        "drift",
        [
            {"batch": b, "test": t, "subject": s, "statistic": 0.1, "p_value": p, "drifted": p < 0.01, "alpha": 0.01,
             "images": 24, "reference_images": 60, "note": ""}
            for t, s, values in (
                ("embedding_mmd", "compact@1#5555", (0.61, 0.34, 0.0005)),
                ("score_ks", CROWNS, (0.8, 0.08, 0.00001)),
                ("slice_mix", "site", (1.0, 0.5, 0.002)),
            )
            for b, p in zip(BATCHES, values, strict=True)
        ],
    )  # fmt: skip
    last = [i["image_id"] for i in images if i["batch"] == BATCHES[2]]
    first = [i["image_id"] for i in images if i["batch"] == BATCHES[0]]
    write(
        "drift_regions",
        [
            {"batch": BATCHES[2], "encoder": "compact@1#5555", "region": n, "images": 9 - n, "reference_images": 2,
             "share": share, "reference_share": 0.125, "contribution": 0.3, "p_value": 0.01 * n, "examples": last,
             "reference_examples": first}
            for n, share in enumerate((0.41, 0.32, 0.23, 0.14, 0.05), start=1)
        ],
    )  # fmt: skip
    write(
        "drift_images",
        [
            {"batch": BATCHES[2], "image_id": i, "encoder": "compact@1#5555", "witness": 0.125 - 0.01 * n, "region": 1}
            for n, i in enumerate(last)
        ],
    )
    spent = {"models": ("training", 241), "embeddings": ("curation", 33), "detections": ("labelling", 21),
             "images": ("collection", 4.2), "quality": ("curation", 3), "predictions": ("evaluation", 17)}  # fmt: skip
    write(
        "costs",
        [
            {"entry_id": a, "stage": s, "asset": a, "batch": "", "producer": "x@1#0", "seconds": float(t),
             "device": "cpu", "started_at": datetime(2026, 11, 23, tzinfo=UTC), "images": 24, "rows": 24, "tokens": 0,
             "money": t * 0.1 / 3600, "currency": "USD"}
            for a, (s, t) in spent.items()
        ],
    )  # fmt: skip


class Page(HTMLParser):
    """Collects what a browser would be asked to load or run, and checks that tags balance."""

    VOID = frozenset({"meta", "img", "br", "link", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            assert not key.startswith("on")
            if key in ("src", "href", "srcset", "data"):
                self.links.append(value or "")
            if key == "id":
                self.ids.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    folder = tmp_path_factory.mktemp("report")
    store = Store(str(folder / "store"))
    fabricate(store, synthetic_photos(folder), file_name=f"{EVIL}.png")
    return store, report.render(config(description=EVIL), store, Reader())


def test_it_lies_beside_the_tables_and_asks_nothing_of_anyone(finished: tuple[Store, Path]) -> None:
    store, path = finished
    assert path == report.location(store)
    page = Page(path.read_text())
    assert {link.split(":")[0] if ":" in link else link[:1] for link in page.links} == {"data", "#"}
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not {"script", "iframe", "link", "object", "video"} & set(page.tags)
    css = re.search(r"<style>(.*?)</style>", path.read_text(), re.DOTALL)
    assert css is not None
    assert "url(" not in css[1] and "@import" not in css[1]


def test_everything_from_the_tables_is_escaped(finished: tuple[Store, Path]) -> None:
    _, path = finished
    text = path.read_text()
    assert "<script" not in text
    assert EVIL in Page(text).text


def test_the_verdict_comes_first_with_interval_and_reason(finished: tuple[Store, Path]) -> None:
    _, path = finished
    text = Page(path.read_text()).text
    assert text.index("Take the trained model") < text.index("Refused files")
    for expected in ("0.520", "0.48 to 0.55", "AP50 is above the labeller's", "1,275.00 USD", "recommended"):
        assert expected in text


def test_every_section_is_filled(finished: tuple[Store, Path]) -> None:
    _, path = finished
    text = Page(path.read_text()).text
    assert "Nothing yet" not in text
    for expected in (
        "36files refused", "and 11 more", "blurry", "perceptual", "certified", "below the target", "site osbs",
        "count mae", "confirmed", "unlike training", "drifted", "like the reference", "4.0 min",
        "fcos@1#a1b2c3d4", "Model card", "Which is better beyond chance", "0.19 to 0.31", "trained on: Tree",
        "swapped: <script>", ", not Tree?", "suspicion 0.93, fcos",
    ):  # fmt: skip
        assert expected in text, expected
    assert 'alt="Slices from run to run"' in path.read_text()


def test_what_drives_drift_is_shown_in_images_and_three_regions(finished: tuple[Store, Path]) -> None:
    _, path = finished
    text = Page(path.read_text()).text
    shown = text[text.index(f"What {BATCHES[2]} differs by") :]
    assert "+0.125, region 1" in shown and f"{EVIL}.png" in shown
    assert shown.index("+0.125") < shown.index("+0.115")
    for region, share in ((1, "41%"), (2, "32%"), (3, "23%")):
        assert f"Region {region} of embedding space holds {share}" in shown
    assert "Region 4" not in shown, "three are enough"
    assert f"What {BATCHES[0]} differs by" not in text


def test_pictures_decode_and_galleries_show_the_photos(finished: tuple[Store, Path]) -> None:
    _, path = finished
    links = [x for x in Page(path.read_text()).links if x.startswith("data:")]
    photos = [x for x in links if x.startswith("data:image/jpeg")]
    charts = [x for x in links if x.startswith("data:image/svg+xml")]
    assert len(photos) >= 30
    assert len(charts) >= 5
    for link in photos:
        picture = Image.open(io.BytesIO(base64.b64decode(link.split(",")[1])))
        assert picture.size == (288, 288)
        assert np.asarray(picture).std() > 5
    for link in charts:
        assert base64.b64decode(link.split(",")[1]).rstrip().endswith(b"</svg>")
    assert path.stat().st_size < 8e6


def test_equal_tables_give_an_equal_file(finished: tuple[Store, Path], tmp_path: Path) -> None:
    store, path = finished
    again = report.render(config(description=EVIL), store, Reader(), tmp_path / "again.html")
    assert again.read_bytes() == path.read_bytes()
    assert list(tmp_path.iterdir()) == [again]


def test_an_empty_store_says_so_in_every_section(tmp_path: Path) -> None:
    page = Page(report.render(config(), Store(str(tmp_path)), Reader()).read_text())
    assert page.text.count("Nothing yet") == 12
    assert "no verdict yet" in page.text


def test_empty_tables_say_so_too(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for name, table in schema.TABLES.items():
        store.write(name, table.empty(), "a" if table.batched else None)
    page = Page(report.render(config(), store, Reader()).read_text())
    assert page.text.count("Nothing yet") == 11  # provenance lists the empty tables


def test_each_table_may_be_missing_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for chart in (
        "slice_bars",
        "slice_history",
        "precision_recall",
        "confusion",
        "drift",
        "cost_bars",
        "training_loss",
    ):
        monkeypatch.setattr(plots, chart, lambda *_, **__: b"<svg></svg>")  # drawn in test_plots
    store = Store(str(tmp_path / "store"))
    fabricate(store, synthetic_photos(tmp_path, 2))
    for missing in schema.TABLES:
        if not store.exists(missing):
            continue

        class Without(Store):
            def read_or_empty(self, name: str, *some: Any, **more: Any) -> Any:
                return schema.table(name).empty() if name == missing else super().read_or_empty(name, *some, **more)  # noqa: B023

        Page(report.render(config(), Without(store.uri), Reader(), tmp_path / "r.html").read_text())


def test_a_photo_that_is_gone_is_told_not_fatal(tmp_path: Path) -> None:
    photos = synthetic_photos(tmp_path)
    store = Store(str(tmp_path / "store"))
    fabricate(store, photos)
    photos[0].unlink()
    assert "the file is gone" in Page(report.render(config(), store, Reader()).read_text()).text


def test_classification_needs_no_boxes(tmp_path: Path) -> None:
    photos = synthetic_photos(tmp_path, 3)
    store = Store(str(tmp_path / "store"))
    fabricate(store, photos)
    for name in ("ground_truth", "labels", "predictions", "detections"):
        for batch in store.batches(name):
            rows = store.read(name, batch).to_pylist()
            whole = [r | {"x1": None, "y1": None, "x2": None, "y2": None} for r in rows]
            store.write(name, schema.table(name).from_rows(whole), batch)
    failures = [r | {"x1": None} for r in store.read("failures").to_pylist()]
    store.write("failures", schema.table("failures").from_rows(failures))
    Page(report.render(config(task="classification"), store, Reader()).read_text())


def test_the_map_is_drawn_where_there_is_one(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    fabricate(store, synthetic_photos(tmp_path, 3))
    assert "Where the photos lie" not in report.render(config(), store, Reader()).read_text()
    ids = sorted(store.read("images").column("image_id").to_pylist())
    places = [{"image_id": i, "encoder": "e@1#0", "x": k / 10, "y": -k / 10} for k, i in enumerate(ids)]
    store.write("map", schema.table("map").from_rows(places))
    assert 'alt="Where the photos lie"' in report.render(config(), store, Reader()).read_text()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: form.number(None), "–"),
        (lambda: form.number(float("nan")), "–"),
        (lambda: form.number(0.5236), "0.524"),
        (lambda: form.number(12.345), "12.35"),
        (lambda: form.number(1234.5), "1,234.5"),
        (lambda: form.interval(None, 0.5), ""),
        (lambda: form.money(0.0044, "EUR"), "0.0044 EUR"),
        (lambda: form.money(0.0, "EUR"), "0.00 EUR"),
        (lambda: form.duration(5400), "1.5 h"),
        (lambda: form.duration(90), "1.5 min"),
        (lambda: form.duration(0.0123), "12 ms"),
        (lambda: form.p_value(1e-9), "< 0.0001"),
        (lambda: form.p_value(0.034), "0.034"),
        (lambda: form.percent(0.314), "31%"),
    ],
)
def test_numbers_read_well(call: Any, expected: str) -> None:
    assert call() == expected


def test_of_ranked_classes_the_first_is_shown() -> None:
    ranked = schema.annotations(
        "predictions",
        image_ids=["a"] * 2,
        batch="b",
        producer="m",
        classes=["cat", "dog"],
        boxes=None,
        scores=[0.5, 0.4],
        rank=[1, 2],
    )
    tables = SimpleNamespace(about=lambda name, _: ranked if name == "predictions" else schema.table(name).empty())
    (shot,) = sections._compared(tables, "m", ["a"])  # type: ignore[arg-type]
    assert shot.caption == "0 by people, 1 by the model"
