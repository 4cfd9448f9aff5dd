"""What is measured of an image, all in one pass over its pixels.

The measures are the usual ones: moments, percentiles, histogram and entropy of luma, the variance of its
Laplacian (Pech-Pacheco et al. 2000), colourfulness (Hasler & Suesstrunk 2003), the blur score of a thumbnail
as in cleanvision 0.3, and the DCT perceptual hash in the variant of the `imagehash` package, bit for bit.

Large photos are measured at a half, a quarter or an eighth (`curation.quality.measured_edge`), for JPEGs
without decoding the rest. The hash of a shrunk photo is not always `imagehash`'s: at a half, 0.25 of 64 bits
differed on average and 4 at most, on 24 views of aerial photos (`python benchmarks/quality.py`). Blur of a few
pixels is not seen at a quarter; with `measured_edge: 0` all is measured in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline import schema
from pipeline.compute import AheadWorker
from pipeline.images import Pixels, Reader

MEASURES = (
    "brightness",
    "contrast",
    "shadows",
    "highlights",
    "sharpness",
    "thumbnail_sharpness",
    "entropy",
    "colourfulness",
    "dark_share",
    "bright_share",
    "aspect_ratio",
    "phash",
)
_LEVELS = np.arange(256) / 255
_THUMBNAIL = 64  # pixels of the longer edge
_PEAKED = 0.18  # cleanvision's: how peaked a histogram must be to count
_SCALE = 0.01  # cleanvision's, of edges and of the histogram


class QualityWorker(AheadWorker):
    """Rows of `images` -> the measures of `quality`, with `width` and `height`.

    Images whose file has become unusable since collection have no row.

    Args:
        max_pixels: larger photos are not decoded.
        measured_edge: photos are halved, once to three times, as long as their shorter edge keeps so many
            pixels; 0: never.
    """

    def __init__(self, max_pixels: int = 200_000_000, measured_edge: int = 0) -> None:
        self.reader = Reader(max_pixels)
        self.least = measured_edge

    def read(self, rows: pa.Table) -> Iterator[dict[str, Any] | None]:
        """The measures of each image."""
        return self.reader.stream(rows, measure, self.least)

    def answer(self, rows: pa.Table, read: Iterable[dict[str, Any] | None]) -> pa.Table:
        """The measures of the images that can be read, as a table."""
        found = list(read)
        usable = [i for i, values in enumerate(found) if values is not None]
        measured = [values for values in found if values is not None]
        identity = rows.select(["image_id", "batch", "width", "height"]).take(pa.array(usable, pa.int64()))
        # Of the image, not of its shrunk copy.
        ratio = np.divide(*(identity.column(c).to_numpy().astype(np.float64) for c in ("width", "height")))
        types = schema.table("quality").schema
        columns = {n: pa.array([m[n] for m in measured], types.field(n).type) for n in MEASURES if n != "aspect_ratio"}
        columns["aspect_ratio"] = pa.array(ratio, types.field("aspect_ratio").type)
        return pa.table({**{c: identity.column(c) for c in identity.column_names}, **columns})


def measured_before(quality: pa.Table, images: pa.Table) -> pa.Table:
    """What QualityWorker gave when rows of `quality` were made, of those whose images are still there."""
    place = pc.index_in(quality["image_id"], images["image_id"].combine_chunks())
    sizes = images.select(["width", "height"]).take(place.drop_null())
    found = quality.filter(pc.is_valid(place)).drop_columns("issues")
    return found.append_column("width", sizes["width"]).append_column("height", sizes["height"])


def measure(pixels: Pixels) -> dict[str, Any]:
    """The measures of one (height, width, 3) uint8 RGB image, by column name of `quality`."""
    import cv2

    grey = Image.fromarray(pixels).convert("L")
    luma = np.asarray(grey)
    height, width = luma.shape
    share = np.array(grey.histogram()) / luma.size
    brightness = float(share @ _LEVELS)
    present = share[share > 0]
    below = np.cumsum(share)
    return {
        "brightness": brightness,
        "contrast": float(np.sqrt(share @ (_LEVELS - brightness) ** 2)),
        "shadows": float(_LEVELS[np.searchsorted(below, 0.05)]),
        "highlights": float(_LEVELS[np.searchsorted(below, 0.99)]),
        "sharpness": float(cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))[1][0, 0] ** 2),
        "thumbnail_sharpness": thumbnail_sharpness(grey),
        "entropy": float(max(0.0, -(present * np.log2(present)).sum())),
        "colourfulness": _colourfulness(pixels),
        "dark_share": float(share[_LEVELS < 0.05].sum()),
        "bright_share": float(share[_LEVELS > 0.95].sum()),
        "aspect_ratio": width / height,
        "phash": _hash(grey),
    }


def thumbnail_sharpness(grey: Image.Image) -> float:
    """cleanvision's blur score, 0 to 1: how strong the edges of a 64-pixel thumbnail are.

    1 - exp(-s/100), where s is the standard deviation of its edges; a thumbnail of few greys gets the same
    of its histogram's on top, so that drawings do not count as blurred.
    """
    ratio = max(1.0, max(grey.size) / _THUMBNAIL)
    size = (max(int(grey.width // ratio), 1), max(int(grey.height // ratio), 1))
    small = grey.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0) if ratio > 1 else grey
    edges = np.asarray(small.filter(ImageFilter.FIND_EDGES), np.float64).std()
    peaked = 1 - np.exp(-_SCALE * np.std(small.histogram()))
    return float(min(1 - np.exp(-_SCALE * edges) + (peaked if peaked > _PEAKED else 0.0), 1.0))


def _colourfulness(pixels: Pixels) -> float:
    """Hasler & Suesstrunk's M3, of opponent colours on the 0 to 255 scale."""
    import cv2

    red, green, blue = cv2.split(pixels)
    red_green = cv2.subtract(red, green, dtype=cv2.CV_16S)
    # Twice the yellow-blue one, so that it stays a whole number.
    yellow_blue = cv2.subtract(cv2.add(red, green, dtype=cv2.CV_16S), cv2.add(blue, blue, dtype=cv2.CV_16S))
    (rg, rg_spread), (yb, yb_spread) = (np.ravel(cv2.meanStdDev(c)) for c in (red_green, yellow_blue))
    return float(np.hypot(rg_spread, yb_spread / 2) + 0.3 * np.hypot(rg, yb / 2))


def perceptual_hash(pixels: Pixels) -> int:
    """64-bit DCT hash of a (height, width, 3) uint8 image, as a signed integer."""
    return _hash(Image.fromarray(pixels).convert("L"))


def _hash(grey: Image.Image) -> int:
    """The grey image is shrunk to 32 x 32 (Lanczos); each bit says whether one of the 8 x 8 lowest
    coefficients of its unnormalised DCT-II is above their median; the first bit is the highest.
    """
    from scipy.fft import dctn

    small: NDArray[np.uint8] = np.asarray(grey.resize((32, 32), Image.Resampling.LANCZOS))
    low = dctn(small.astype(np.float64), type=2)[:8, :8]
    bits = np.packbits(low > np.median(low))
    return int(bits.view(">i8")[0])
