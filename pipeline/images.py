"""Files to arrays: every photo becomes upright 8-bit RGB, or an error that says what is wrong."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, groupby
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline import s3
from pipeline.ahead import ahead
from pipeline.errors import ComputeError, DataError, PipelineError, StoreUnavailable
from pipeline.presence import batch_folder, local_path, require_neighbours

Pixels = NDArray[np.uint8]  # (height, width, 3)
T = TypeVar("T")
E = TypeVar("E", bound=PipelineError)

# Files' flaws that Pillow survives are no news. Not `catch_warnings`: it is not safe on threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class UnusableImage(DataError):
    """A file that cannot be used. `reason` is one word for the rejected_files table."""

    def __init__(self, reason: str, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.what, self.remedy)


@dataclass(frozen=True)
class Photo:
    """A decoded file: (height, width, 3) uint8 pixels, upright, and what the file was.

    `size` is its (width, height) upright and in full, also where `pixels` are shrunk; `captured_at` is when it was
    taken, by the camera's own clock.
    """

    pixels: Pixels
    format: str
    mode: str
    orientation: int
    size: tuple[int, int]
    captured_at: datetime | None = None


# What Pillow's plugins raise on damaged input.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
)

# EXIF orientation -> what turns the stored pixels upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, max_pixels: int = 200_000_000, shrink: int = 1) -> Photo:
    """Decode a file's bytes. The first frame of an animation is taken, transparency is laid on white,
    EXIF rotation is applied. Whole-number greys are scaled by the depth that holds them (8, 12 or 16
    bits), others by their own range.

    Args:
        shrink: 1, 2, 4 or 8: width and height are divided by it. JPEGs are decoded at that scale, which
            leaves out most of the work (libjpeg's scaled inverse DCT); others are averaged over squares.

    Raises:
        UnusableImage: empty, not an image, truncated, or more than `max_pixels`.
    """
    if not data:
        raise UnusableImage("empty", "the file has no bytes", "copy it again from its source")
    # Pillow checks sizes before it allocates, also those of images inside images, and refuses twice this.
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError(f"{image.width:,} x {image.height:,}")
            return _decoded(image, shrink)
    except UnidentifiedImageError as error:
        raise UnusableImage("not_an_image", "no known image format", "remove it, or convert it to PNG") from error
    except Image.DecompressionBombError as error:
        what = f"more pixels than the limit of {max_pixels:,}: {error}"
        raise UnusableImage(
            "too_large", what, "raise source.max_pixels in project.yaml if the photo is real"
        ) from error
    except MemoryError as error:
        raise UnusableImage("too_large", "decoding needs more memory than there is", "shrink it") from error
    except _DAMAGE as error:
        raise UnusableImage("damaged", f"cannot be decoded: {error}", "copy it again from its source") from error


def _decoded(image: Image.Image, shrink: int) -> Photo:
    kind, mode, size = image.format or "unknown", image.mode, image.size
    if 0 in image.size:
        raise UnusableImage("empty", "the image has no pixels", "remove it")
    if shrink > 1:
        image.draft(None, (max(1, size[0] // shrink), max(1, size[1] // shrink)))
    image.load()
    orientation = _orientation(image)
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    # `transpose` makes a new image, which keeps the palette's transparency.
    pixels = np.ascontiguousarray(_rgb(upright))
    if image.size == size:
        pixels = shrunk(pixels, shrink)
    return Photo(pixels, kind, mode, orientation, size[::-1] if orientation >= 5 else size, _captured_at(image))


def shrunk(pixels: Pixels, by: int) -> Pixels:
    """Means over squares of `by` x `by` pixels; what is left over at the right and below is a pixel, too."""
    return pixels if by == 1 else np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).reduce(by))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where it is missing, senseless or unreadable, as every viewer has it."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:
        return 1
    return int(value) if isinstance(value, int) and 1 <= value <= 8 else 1


def _captured_at(image: Image.Image) -> datetime | None:
    """EXIF DateTimeOriginal; None where it is missing, senseless (a clock never set) or unreadable."""
    try:
        said = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal)
        return datetime.strptime(str(said).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except _DAMAGE:
        return None


def _rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I") or image.mode == "F":
        return _scaled_grey(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, "white")
        return np.asarray(Image.alpha_composite(ground, rgba).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _scaled_grey(values: NDArray[Any]) -> Pixels:
    """Greys of more than 8 bits to 8 bits; what is not a number becomes black."""
    grey = values.astype(np.float32)
    finite = grey[np.isfinite(grey)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if values.dtype.kind in "iu" and low >= 0 and high <= 65535:
        # Cameras store 12 bits, and other tools 8, in 16: the depth is a scale that photos share,
        # whereas stretching each one over its own range would undo their exposure.
        low, high = 0.0, next(top for top in (255.0, 4095.0, 65535.0) if high <= top)
    with np.errstate(all="ignore"):
        scaled = (grey - low) / (high - low) * 255 if high > low else np.zeros_like(grey)
    return np.repeat(np.clip(np.round(np.nan_to_num(scaled)), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def shrink_by(width: int, height: int, least: int) -> int:
    """The largest of 1, 2, 4 and 8 that leaves the shorter edge `least` pixels; 1 where `least` is 0."""
    return max((by for by in (2, 4, 8) if least and min(width, height) >= by * least), default=1)


_AHEAD, _WHOLE_AHEAD = 32, 16  # photos that are done, or being done, before they are asked for

# Columns of `images` that a Reader needs.
READ = ("uri", "file_name", "tile_x", "tile_y", "width", "height", "photo_width", "photo_height")


class Reader:
    """Loads the pixels of `images` rows. Tiles of one photo decode it once. Safe on threads.

    Args:
        max_pixels: as in `decode`.
        keep: decoded photos held at a time.
    """

    def __init__(self, max_pixels: int = 200_000_000, keep: int = 2) -> None:
        self.max_pixels = max_pixels
        self.keep = keep
        self._photos: OrderedDict[tuple[str, int], Photo] = OrderedDict()
        self._held = threading.Lock()  # while `_photos` is touched

    def read(self, row: dict[str, Any], shrink: int = 1) -> Pixels:
        """(height, width, 3) uint8 pixels of one row of `images`, both divided by `shrink` (1, 2, 4 or 8).

        Raises:
            UnusableImage: the file is gone, changed or damaged.
            ComputeError: its batch's folder is not on this machine.
            StoreUnavailable: S3 does not answer, or lets us read nothing there.
        """
        x, y, width, height = row["tile_x"], row["tile_y"], row["width"], row["height"]
        size = (row["photo_width"], row["photo_height"])
        whole = (width, height) == size
        photo = self._photo(row["uri"], row["file_name"], shrink if whole else 1)
        if photo.size != size:
            raise UnusableImage(
                "changed", f"{row['uri']} is not the file that was collected", "collect its batch again"
            )
        return photo.pixels if whole else shrunk(photo.pixels[y : y + height, x : x + width], shrink)

    def read_rows(self, rows: pa.Table) -> list[Pixels | None]:
        """Pixels of each row, to be looked at; None where a file cannot be read, whosever fault it is."""
        found = self._attempts(rows, lambda pixels: pixels, 0, _WHOLE_AHEAD, (UnusableImage, ComputeError))
        return [None if isinstance(one, PipelineError) else one for one in found]

    def whole(self, rows: pa.Table) -> Iterator[Pixels | UnusableImage]:
        """Pixels of each row, in order, or why a file has become unusable. Few are held ahead: photos are large."""
        return self._attempts(rows, lambda pixels: pixels, 0, _WHOLE_AHEAD, (UnusableImage,))

    def stream(self, rows: pa.Table, function: Callable[[Pixels], T], least: int = 0) -> Iterator[T | None]:
        """`function` of the pixels of each row, in order; None where a file has become unusable.

        Photos are decoded, and `function` runs, on threads ahead of what was asked for.

        Args:
            least: images are halved, once to three times, as long as the shorter edge keeps so many pixels;
                0: never.
        """
        found = self._attempts(rows, function, least, _AHEAD, (UnusableImage,))
        return (None if isinstance(one, UnusableImage) else one for one in found)

    def _attempts(
        self,
        rows: pa.Table,
        function: Callable[[Pixels], T],
        least: int,
        depth: int,
        excused: tuple[type[E], ...],
    ) -> Iterator[T | E]:
        wanted = rows.select(list(READ))
        photos = [list(tiles) for _, tiles in groupby(wanted.to_pylist(), key=lambda row: row["uri"])]

        def of_photo(tiles: list[dict[str, Any]]) -> list[T | E]:
            sizes = [shrink_by(row["width"], row["height"], least) for row in tiles]
            return [self._attempt(row, function, size, excused) for row, size in zip(tiles, sizes, strict=True)]

        return chain.from_iterable(ahead(of_photo, photos, depth))

    def _attempt(
        self, row: dict[str, Any], function: Callable[[Pixels], T], shrink: int, excused: tuple[type[E], ...]
    ) -> T | E:
        try:
            pixels = self.read(row, shrink)
        except excused as error:
            return error
        return function(pixels)

    def _photo(self, uri: str, file_name: str, shrink: int) -> Photo:
        key = (uri, shrink)
        with self._held:
            if key in self._photos:
                self._photos.move_to_end(key)
                return self._photos[key]
        photo = decode(self.read_bytes(uri, file_name), self.max_pixels, shrink)
        with self._held:
            self._photos[key] = photo
            while len(self._photos) > self.keep:
                self._photos.popitem(last=False)
        return photo

    def read_bytes(self, uri: str, file_name: str) -> bytes:
        """A file's bytes, from a folder or S3.

        Args:
            file_name: its path inside its batch.

        Raises:
            UnusableImage: it is not there or cannot be read, though others of its batch can be.
            ComputeError: its batch's folder is not on this machine, or nothing in it can be read.
            StoreUnavailable: S3 does not answer, or lets us read nothing there.
        """
        return original(uri, batch_folder(uri, file_name))


def original(uri: str, folder: str, s3_client: Any = None) -> bytes:
    """The bytes of a file below `folder`; a machine or server that fails is no fault of the file.

    Raises:
        UnusableImage: it is not there or cannot be read, though others in the folder can be.
        ComputeError: the folder is not on this machine, or nothing in it can be read.
        StoreUnavailable: S3 does not answer, or lets us read nothing there.
    """
    try:
        if not uri.startswith("s3://"):
            return local_path(uri).read_bytes()
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return s3.get(bucket, key, s3_client)
    except OSError as error:
        if uri.startswith("s3://") and not isinstance(error, FileNotFoundError | PermissionError):
            raise StoreUnavailable(
                f"cannot read {uri}: {error}", "run again when S3 answers: finished work is kept"
            ) from error
        require_neighbours(uri, folder, s3_client)
        raise UnusableImage("unreadable", f"{uri}: {error}", "check that it is there and may be read") from error
