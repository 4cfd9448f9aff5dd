from __future__ import annotations

import io
from pathlib import Path

import cv2
import imagehash
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import quality, schema
from pipeline.config import CurationConfig, QualityConfig
from pipeline.quality.limits import learned
from tests.pipeline.curated_rows import QUALITY, image_rows, quality_rows


def textured(seed: int = 0, height: int = 90, width: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def measured(n: int, **columns: list[float]) -> pa.Table:
    base = {k: [v] * n for k, v in QUALITY.items()} | {"width": [100] * n, "height": [100] * n} | columns
    types = {f.name: f.type for f in schema.table("quality").schema}
    arrays = {k: pa.array(v, types.get(k, pa.int32())) for k, v in base.items()}
    return pa.table({"image_id": [f"i{i}" for i in range(n)], "batch": ["b"] * n, **arrays})


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(8, 300), st.integers(8, 300), st.floats(0.1, 20))
def test_phash_has_the_bits_of_imagehash(seed: int, height: int, width: int, blur: float) -> None:
    pixels = cv2.GaussianBlur(textured(seed, height, width), (0, 0), blur)
    bits = np.array([int(b) for b in f"{quality.perceptual_hash(pixels) % 2**64:064b}"], bool)
    np.testing.assert_array_equal(bits.reshape(8, 8), imagehash.phash(Image.fromarray(pixels)).hash)


def test_phash_survives_scaling_and_tells_images_apart() -> None:
    a, b = (cv2.GaussianBlur(textured(s, 256, 256), (0, 0), 12) for s in (1, 2))
    half = cv2.resize(a, (128, 128), interpolation=cv2.INTER_AREA)
    hashes = [np.uint64(quality.perceptual_hash(p) % 2**64) for p in (a, half, b)]
    assert np.bitwise_count(hashes[0] ^ hashes[1]) <= 4
    assert np.bitwise_count(hashes[0] ^ hashes[2]) >= 16


def test_measures_agree_with_their_definitions() -> None:
    pixels = textured(3, 1100, 60)  # longer than one strip
    found = quality.measure(pixels)
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float64)
    share = np.bincount(grey.astype(int).ravel(), minlength=256) / grey.size
    r, g, b = np.moveaxis(pixels.astype(np.float64), 2, 0)
    rg, yb = r - g, (r + g) / 2 - b
    colour = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
    assert found["brightness"] == pytest.approx(grey.mean() / 255)
    assert found["contrast"] == pytest.approx(grey.std() / 255)
    assert found["sharpness"] == pytest.approx(cv2.Laplacian(grey, cv2.CV_64F).var())
    assert found["entropy"] == pytest.approx(-(share[share > 0] * np.log2(share[share > 0])).sum())
    assert found["colourfulness"] == pytest.approx(colour, rel=1e-5)
    assert found["dark_share"] == pytest.approx((grey < 0.05 * 255).mean())
    assert found["bright_share"] == pytest.approx((grey > 0.95 * 255).mean())
    assert found["aspect_ratio"] == pytest.approx(60 / 1100)
    sorted_grey = np.sort(grey.ravel()) / 255
    assert found["shadows"] == sorted_grey[int(np.ceil(0.05 * grey.size)) - 1]
    assert found["highlights"] == sorted_grey[int(np.ceil(0.99 * grey.size)) - 1]


@given(st.integers(0, 255), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_a_flat_image_says_nothing(level: int, height: int, width: int) -> None:
    found = quality.measure(np.full((height, width, 3), level, np.uint8))
    assert found["entropy"] == 0 and found["sharpness"] == 0 and found["colourfulness"] == 0
    assert found["brightness"] == pytest.approx(level / 255) and found["contrast"] == pytest.approx(0, abs=1e-7)


def test_worker_measures_tiles_and_leaves_out_what_is_gone(tmp_path) -> None:
    pixels = textured(4, 80, 100)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    uris = [str(tmp_path / n) for n in ("a.png", "gone.png", "a.png")]
    rows = image_rows(["x", "y", "z"], uri=uris, tile_x=[0, 0, 40], width=[40, 40, 60], height=80,
                      photo_width=100, photo_height=80)  # fmt: skip
    found = quality.QualityWorker()(rows)
    assert found.column("image_id").to_pylist() == ["x", "z"]
    assert found.column("phash").to_pylist() == [quality.perceptual_hash(p) for p in (pixels[:, :40], pixels[:, 40:])]
    table = quality.flag(found, CurationConfig())
    assert table.schema == schema.table("quality").schema


def test_no_images_give_an_empty_table() -> None:
    found = quality.QualityWorker()(schema.table("images").empty())
    assert quality.flag(found, CurationConfig()).num_rows == 0


@pytest.mark.parametrize(
    ("column", "value", "issue"),
    [
        ("sharpness", 3.0, "blurry"),
        ("brightness", 0.05, "dark"),
        ("brightness", 0.97, "bright"),
        ("entropy", 1.0, "low_information"),
        ("aspect_ratio", 6.0, "odd_aspect"),
        ("aspect_ratio", 1 / 6, "odd_aspect"),
        ("colourfulness", 0.0, "grayscale"),
        ("contrast", 0.01, "near_uniform"),
        ("thumbnail_sharpness", 0.1, "blurry"),
        ("highlights", 0.2, "dark"),
        ("shadows", 0.97, "bright"),
        ("width", 8, "odd_size"),
    ],
)
def test_absolute_floors_hold_even_for_one_image(column: str, value: float, issue: str) -> None:
    assert quality.flag(measured(1, **{column: [value]}), CurationConfig()).column("issues").to_pylist() == [[issue]]


def test_outliers_of_the_batch_are_flagged_and_the_rest_is_not() -> None:
    generator = np.random.default_rng(0)
    brightness = generator.normal(0.5, 0.03, 200)
    brightness[:2] = 0.2, 0.8
    width = [100] * 199 + [400]
    found = quality.flag(measured(200, brightness=brightness.tolist(), width=width), CurationConfig())
    flagged = {i: issues for i, issues in enumerate(found.column("issues").to_pylist()) if issues}
    assert flagged == {0: ["dark"], 1: ["bright"], 199: ["odd_size"]}


@given(st.lists(st.floats(0, 1), max_size=60))
@settings(deadline=None)
def test_learned_limits_are_as_far_from_the_median_as_said(values: list[float]) -> None:
    config = QualityConfig(learned=["dark", "bright"], outlier=3.0)
    given = {name: np.ones(len(values)) for name in ("sharpness", "entropy", "area", "aspect_ratio")}
    found = learned(given | {"brightness": np.array(values)}, config)
    if len(values) < quality.MIN_BATCH:
        assert found == []
        return
    deviation = max(scipy.stats.median_abs_deviation(values, scale="normal"), 0.02)
    dark, bright = found
    assert dark.low == pytest.approx(np.median(values) - 3 * deviation, abs=1e-4) and dark.high == np.inf
    assert bright.high == pytest.approx(np.median(values) + 3 * deviation, abs=1e-4) and bright.low == -np.inf


def test_what_is_not_learned_is_flagged_by_its_fixed_limit_alone() -> None:
    brightness = [0.5] * 30 + [0.2, 0.05]
    config = CurationConfig(quality=QualityConfig(learned=["blurry"]))
    issues = quality.flag(measured(32, brightness=brightness), config).column("issues").to_pylist()
    assert issues[-2:] == [[], ["dark"]]


def test_the_project_finds_a_batch_that_is_odd_as_a_whole() -> None:
    generator = np.random.default_rng(0)
    images = pa.concat_tables(
        [
            image_rows([f"day{i}" for i in range(60)], "day"),
            image_rows([f"night{i}" for i in range(12)], "night", width=300),
        ]
    )
    brightness = np.concatenate([generator.normal(0.5, 0.02, 60), generator.normal(0.25, 0.02, 12)])
    rows = quality_rows(
        images.column("image_id").to_pylist(), images.column("batch").to_pylist(), brightness=brightness
    )
    night = quality.flag(rows.slice(60).append_column("width", pa.array([300] * 12)).append_column(
        "height", pa.array([100] * 12)).drop_columns("issues"), CurationConfig())  # fmt: skip
    assert night.column("issues").to_pylist() == [[]] * 12  # within the batch nothing is odd
    made = quality.project_limits(rows.slice(0).take(pa.array(generator.permutation(72))), images, CurationConfig())
    limits = {(r["issue"], r["source"]): r for r in made["quality_limits"].to_pylist() if r["measure"] != "highlights"}
    dark = limits["dark", "learned"]
    assert dark["images"] == 72 and dark["flagged"] == 12 and 0.25 < dark["low"] < dark["median"] < 0.52
    found = made["quality_issues"].to_pylist()
    assert {(r["image_id"], r["issue"]) for r in found} == {
        (f"night{i}", issue) for i in range(12) for issue in ("dark", "odd_size")
    }
    first = next(r for r in found if r["issue"] == "dark")
    assert first["limit"] == dark["low"] and first["value"] < first["limit"] and first["source"] == "learned"


def test_of_two_limits_of_one_flag_the_first_is_told_once() -> None:
    images = image_rows(["a"])
    made = quality.project_limits(quality_rows(["a"], brightness=[0.01], highlights=[0.02]), images, CurationConfig())
    (row,) = made["quality_issues"].to_pylist()
    assert (row["issue"], row["measure"], row["source"]) == ("dark", "brightness", "project.yaml")
    empty = quality.project_limits(schema.table("quality").empty(), schema.table("images").empty(), CurationConfig())
    assert empty["quality_issues"].num_rows == 0 and empty["quality_limits"].num_rows == 11


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_large_photos_are_measured_at_half_their_size(tmp_path: Path, kind: str) -> None:
    pixels = cv2.GaussianBlur(textured(7, 321, 515), (0, 0), 6)
    pixels = cv2.normalize(pixels, None, 0, 255, cv2.NORM_MINMAX)
    path = tmp_path / f"a.{kind.lower()}"
    Image.fromarray(pixels).save(path, kind, **({"quality": 95} if kind == "JPEG" else {}))
    rows = image_rows(["x"], uri=str(path), width=515, height=321, photo_width=515, photo_height=321)
    (full,) = quality.QualityWorker()(rows).to_pylist()
    (half,) = quality.QualityWorker(measured_edge=160)(rows).to_pylist()
    (same,) = quality.QualityWorker(measured_edge=161)(rows).to_pylist()
    assert same == full and half != full
    assert half["aspect_ratio"] == full["aspect_ratio"] and (half["width"], half["height"]) == (515, 321)
    for name in ("brightness", "contrast", "shadows", "highlights", "thumbnail_sharpness"):
        assert half[name] == pytest.approx(full[name], abs=0.02), name
    assert np.bitwise_count(np.uint64((half["phash"] ^ full["phash"]) % 2**64)) <= 4


def test_grey_is_found_however_it_is_stored() -> None:
    grey = textured(8)[..., 0]
    stored = io.BytesIO()
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(stored, "JPEG", quality=80)
    pixels = np.asarray(Image.open(stored))
    assert pixels.shape == (90, 120, 3) and quality.measure(pixels)["colourfulness"] < QualityConfig().grayscale
    tinted = np.stack([grey, grey, np.minimum(grey.astype(int) + 12, 255).astype(np.uint8)], axis=2)
    assert quality.measure(tinted)["colourfulness"] > QualityConfig().grayscale


@pytest.mark.peers
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999))
def test_measures_are_those_of_cleanvision(seed: int) -> None:
    """Its measures on drawn pictures of every kind; its limits are the defaults of project.yaml, where we have them."""
    from cleanvision.issue_managers.image_property import (
        BlurrinessProperty,
        BrightnessProperty,
        calc_percentile_brightness,
    )

    generator = np.random.default_rng(seed)
    height, width = generator.integers(40, 400, 2)
    grey = cv2.GaussianBlur(generator.normal(0, 1, (height, width)), (0, 0), float(generator.uniform(0.3, 12)))
    level, spread = generator.uniform(0, 255), generator.uniform(2, 120)
    one = np.clip(level + spread * (grey - grey.mean()) / grey.std(), 0, 255).astype(np.uint8)
    image = Image.fromarray(np.repeat(one[..., None], 3, axis=2))
    found = quality.measure(np.asarray(image))
    dark, bright = calc_percentile_brightness(image, [99, 5])
    assert found["highlights"] == pytest.approx(dark, abs=1 / 255 + 1e-9)
    assert found["shadows"] == pytest.approx(bright, abs=1 / 255 + 1e-9)
    blur = BlurrinessProperty()
    scores = pd.DataFrame([blur.calculate(image)])
    score = blur.get_scores(scores, "blurry", normalizing_factor=0.01, color_threshold=0.18)["blurry_score"][0]
    assert found["thumbnail_sharpness"] == pytest.approx(score, abs=0.01)
    assert BrightnessProperty("dark").calculate(image)["brightness"] == pytest.approx(found["brightness"], abs=0.01)
