"""Every photo becomes upright 8-bit RGB, or an error with a reason."""

import io
import struct
import zlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from pipeline.images import Photo, Reader, UnusableImage, decode, shrink_by

RNG = np.random.default_rng(7)
# Smooth, so that JPEG keeps it, and without any symmetry, so that every turn shows.
RAMP = np.stack(np.broadcast_arrays(np.arange(48)[:, None] * 5, np.arange(64)[None, :] * 3, 40), -1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A valid PNG that claims a size and holds next to no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def close(photo: Photo, expected: np.ndarray, tolerance: float = 6) -> bool:
    return photo.pixels.shape == expected.shape and bool(np.abs(photo.pixels.astype(int) - expected).max() <= tolerance)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_lossless_formats_are_exact(kind: str) -> None:
    photo = decode(encoded(Image.fromarray(RAMP), kind))
    assert np.array_equal(photo.pixels, RAMP) and photo.pixels.dtype == np.uint8 and photo.format == kind


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_lossy_formats_are_close(kind: str, options: dict[str, int]) -> None:
    assert close(decode(encoded(Image.fromarray(RAMP), kind, **options)), RAMP, 12)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_rotation_is_applied(orientation: int, kind: str) -> None:
    # How the stored pixels come out of the upright ones, by the EXIF standard.
    stored: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored[orientation](RAMP)))
    photo = decode(encoded(image, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {})))
    assert photo.orientation == orientation and close(photo, RAMP, 12)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_senseless_orientation_is_taken_for_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = decode(encoded(Image.fromarray(RAMP), "PNG", exif=exif))
    assert photo.orientation == 1 and np.array_equal(photo.pixels, RAMP)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0" + b"II*\0\x08\0\0\0" + struct.pack("<HHHI4s", 1, 0x0112, 2, 4, b"abc\0") + b"\0" * 4,
        b"Exif\0\0" + b"II*\0\xff\xff\xff\x7f",
        b"Exif\0\0garbage",
        b"Exif\0\0",
    ],
    ids=["text", "points outside", "garbage", "empty"],
)
def test_photo_with_broken_exif_is_taken_for_upright(exif: bytes) -> None:
    photo = decode(encoded(Image.fromarray(RAMP), "JPEG", quality=95, exif=exif))
    assert photo.orientation == 1 and close(photo, RAMP, 12)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("2026:07:01 18:30:05", datetime(2026, 7, 1, 18, 30, 5)),
        ("2026:07:01 18:30:05\0", datetime(2026, 7, 1, 18, 30, 5)),
        ("0000:00:00 00:00:00", None),
        ("    :  :     :  :  ", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_time_of_capture_is_that_of_exif(kind: str, said: str | None, meant: datetime | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x0132] = "2020:01:01 00:00:00"  # when the file was changed, which is another matter
    if said is not None:
        exif.get_ifd(0x8769)[0x9003] = said
    photo = decode(encoded(Image.fromarray(RAMP), kind, exif=exif))
    assert (photo.captured_at, photo.orientation) == (meant, 6)


def test_sixteen_bit_grey_is_scaled_by_its_range() -> None:
    values = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    photo = decode(encoded(Image.fromarray(values), "PNG"))
    assert photo.mode.startswith("I;16") and np.abs(photo.pixels[..., 0] - values / 257).max() <= 0.51


def test_sixteen_bit_without_contrast_stays_what_it_is() -> None:
    values = np.full((8, 8), 32768, np.uint16)
    assert np.abs(decode(encoded(Image.fromarray(values), "PNG")).pixels.astype(int) - 127.5).max() <= 1


@pytest.mark.parametrize(("top", "depth"), [(200, 255), (255, 255), (256, 4095), (4095, 4095), (4096, 65535)])
def test_grey_is_scaled_by_the_depth_that_holds_it(top: int, depth: int) -> None:
    """Not by its own range: a dark photo must stay dark."""
    values = np.linspace(0, top, 48 * 64).reshape(48, 64).round().astype(np.uint16)
    photo = decode(encoded(Image.fromarray(values), "PNG"))
    assert np.abs(photo.pixels[..., 0] - values * (255 / depth)).max() <= 0.51


def test_float_tiff_is_stretched_over_its_values() -> None:
    values = np.linspace(-3, 5, 48 * 64).reshape(48, 64).astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    pixels = decode(encoded(Image.fromarray(values), "TIFF")).pixels[..., 0]
    assert pixels[0, :3].tolist() == [0, 255, 0]
    expected = (values - values[0, 3]) / (5 - values[0, 3]) * 255
    assert np.abs(pixels[1:] - expected[1:]).max() <= 0.51


def test_cmyk_is_converted() -> None:
    photo = decode(encoded(Image.fromarray(RAMP).convert("CMYK"), "JPEG", quality=95))
    assert photo.mode == "CMYK" and close(photo, RAMP, 12)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "YCbCr", "LAB", "HSV"])
def test_modes_become_three_channels(mode: str) -> None:
    kind = "TIFF" if mode in ("YCbCr", "LAB") else "PNG"
    image = Image.fromarray(RAMP).convert(mode) if mode not in ("LAB", "HSV") else Image.new(mode, (64, 48))
    if mode == "HSV":
        image = image.convert("RGB")
    photo = decode(encoded(image, kind))
    assert photo.pixels.shape == (48, 64, 3) and photo.pixels.dtype == np.uint8 and photo.pixels.flags.c_contiguous


def test_transparency_is_laid_on_white() -> None:
    rgba = np.dstack([RAMP, np.zeros((48, 64), np.uint8)])
    rgba[:24, :, 3] = 255
    pixels = decode(encoded(Image.fromarray(rgba, "RGBA"), "PNG")).pixels
    assert np.array_equal(pixels[:24], RAMP[:24]) and (pixels[24:] == 255).all()


def test_transparent_palette_is_laid_on_white() -> None:
    image = Image.fromarray((np.arange(64 * 48).reshape(48, 64) // 2000).astype(np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0])
    pixels = decode(encoded(image, "PNG", transparency=0)).pixels
    assert (pixels[0, 0] == 255).all() and (pixels[-1, -1] == (0, 255, 0)).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation_is_taken(kind: str) -> None:
    red, blue = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 10), "blue")
    data = encoded(red, kind, save_all=True, append_images=[blue, blue])
    pixels = decode(data).pixels
    assert pixels.shape == (10, 20, 3) and pixels[..., 0].min() > 240 and pixels[..., 2].max() < 15


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\0" * 5000, "not_an_image"),
        (b"just some text", "not_an_image"),
        (b"\xff\xd8\xff", "not_an_image"),
        (b"\x89PNG\r\n\x1a\n", "damaged|not_an_image"),
        (png_header(60000, 60000), "too_large"),
        (png_header(400, 400), "damaged"),
        (png_header(0, 10), "damaged|not_an_image|empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (b"%PDF-1.4", "not_an_image"),
    ],
)
def test_what_cannot_be_used_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnusableImage) as error:
        decode(data)
    assert error.value.reason in reason.split("|") and error.value.what and error.value.remedy


def test_limit_on_pixels_is_the_projects_own() -> None:
    data = encoded(Image.fromarray(RAMP), "PNG")
    assert decode(data, max_pixels=48 * 64).pixels.shape == (48, 64, 3)
    with pytest.raises(UnusableImage, match="max_pixels"):
        decode(data, max_pixels=48 * 64 - 1)


def test_limit_may_be_above_pillows() -> None:
    """Pillow refuses some 179 million pixels by itself; the project's limit alone must count."""
    data = png_header(20000, 9100)  # 182 million, and no pixels behind them
    with pytest.raises(UnusableImage) as error:
        decode(data, max_pixels=181_000_000)
    assert error.value.reason == "too_large" and "181,000,000" in error.value.what
    with pytest.raises(UnusableImage) as error:
        decode(data, max_pixels=190_000_000)
    assert error.value.reason == "damaged"


def test_text_bomb_in_png_is_refused() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "x" * (80 * 1024 * 1024), zip=True)
    with pytest.raises(UnusableImage):
        decode(encoded(Image.fromarray(RAMP), "PNG", pnginfo=info))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@settings(deadline=None)
@given(share=st.floats(0.0, 0.9))
def test_truncated_files_raise_only_unusable(kind: str, share: float) -> None:
    whole = encoded(Image.fromarray(NOISE), kind)
    with pytest.raises(UnusableImage):
        decode(whole[: int(len(whole) * share)])


NOISE = RNG.integers(0, 255, (60, 80, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "DDS", "PCX", "SGI"]
)
@settings(deadline=None)
@given(where=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12))
def test_scrambled_files_decode_or_raise_unusable(kind: str, where: list[tuple[float, int]]) -> None:
    data = bytearray(encoded(Image.fromarray(NOISE), kind))
    for place, value in where:
        data[int(place * len(data))] = value
    try:
        photo = decode(bytes(data), max_pixels=1_000_000)
    except UnusableImage:
        return
    assert photo.pixels.ndim == 3 and photo.pixels.shape[2] == 3 and photo.pixels.dtype == np.uint8


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_decode_or_raise_unusable(data: bytes) -> None:
    try:
        decode(data)
    except UnusableImage as error:
        assert error.reason


def test_bomb_inside_an_icon_is_refused() -> None:
    """An icon's directory says 16 x 16; the PNG inside says otherwise."""
    inner = png_header(30000, 30000)
    head = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    with pytest.raises(UnusableImage) as error:
        decode(head + inner)
    assert error.value.reason == "too_large"


def row(
    path: Path | str, window: tuple[int, int, int, int] = (0, 0, 64, 48), photo: tuple[int, int] = (64, 48)
) -> dict:
    keys = ("tile_x", "tile_y", "width", "height", "photo_width", "photo_height")
    return {"uri": str(path), "file_name": Path(path).name, **dict(zip(keys, (*window, *photo), strict=True))}


def test_reader_cuts_tiles_and_decodes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(RAMP), "PNG"))
    reader, opened = Reader(), []
    real = reader.read_bytes
    monkeypatch.setattr(reader, "read_bytes", lambda *file: opened.append(file) or real(*file))
    for x, y in ((0, 0), (32, 0), (32, 24)):
        assert np.array_equal(reader.read(row(path, (x, y, 32, 24))), RAMP[y : y + 24, x : x + 32])
    assert len(opened) == 1


def test_reader_keeps_only_as_many_photos_as_told(tmp_path: Path) -> None:
    reader = Reader(keep=2)
    for i in range(5):
        path = tmp_path / f"{i}.png"
        path.write_bytes(encoded(Image.fromarray(RAMP), "PNG"))
        reader.read(row(path))
    assert len(reader._photos) == 2


def test_reader_says_when_a_file_changed_or_went(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    (tmp_path / "b.png").write_bytes(b"another")
    with pytest.raises(UnusableImage) as error:
        Reader().read(row(path))
    assert error.value.reason == "unreadable"
    path.write_bytes(encoded(Image.fromarray(RAMP[:20]), "PNG"))
    with pytest.raises(UnusableImage) as error:
        Reader().read(row(path))
    assert error.value.reason == "changed"


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("kind", "by"), [("JPEG", 2), ("JPEG", 4), ("JPEG", 8), ("PNG", 2), ("WEBP", 4)])
def test_a_shrunk_photo_is_the_mean_over_squares(kind: str, by: int, orientation: int) -> None:
    height, width = (203, 333) if orientation == 1 else (208, 336)  # turned, what is left over lies at the other side
    smooth = np.linspace(0, 255, height * width * 3).reshape(height, width, 3).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(smooth), kind, exif=exif, quality=98)
    full, small = decode(data), decode(data, shrink=by)
    assert small.size == full.size == full.pixels.shape[1::-1]
    assert small.pixels.shape == (*(-(-n // by) for n in full.pixels.shape[:2]), 3)
    inside = full.pixels[: full.pixels.shape[0] // by * by, : full.pixels.shape[1] // by * by].astype(float)
    means = inside.reshape(inside.shape[0] // by, by, inside.shape[1] // by, by, 3).mean((1, 3))
    assert np.abs(small.pixels[: means.shape[0], : means.shape[1]] - means).max() < 6


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 700))
def test_photos_are_shrunk_as_far_as_the_edge_allows(width: int, height: int, least: int) -> None:
    by = shrink_by(width, height, least)
    assert by == 1 or min(width, height) / by >= least > 0
    assert by == 8 or least == 0 or min(width, height) / (2 * by) < least


def test_tiles_are_shrunk_from_the_whole_photo(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    row = {"uri": str(tmp_path / "a.png"), "file_name": "a.png", "photo_width": 96, "photo_height": 64}
    tile = row | {"tile_x": 31, "tile_y": 7, "width": 40, "height": 50}
    assert np.array_equal(Reader().read(tile, 2), np.asarray(Image.fromarray(pixels[7:57, 31:71]).reduce(2)))
    with pytest.raises(UnusableImage, match="not the file"):
        Reader().read(
            row | {"tile_x": 0, "tile_y": 0, "width": 48, "height": 32, "photo_width": 48, "photo_height": 32}, 2
        )
