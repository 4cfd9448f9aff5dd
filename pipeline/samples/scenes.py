"""The `scenes` sample: cut-outs with alpha composed onto photographs, with exact boxes and masks.

A copy-paste generator (Dwibedi et al. 2017, "Cut, Paste and Learn"): every image is drawn from its
own seed, so the sample comes out the same each time. Masks are what is visible: whatever a later
cut-out covers is taken away from those below. The cut-outs are GPL-2, so they are fetched, never shipped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import masks
from pipeline.config import samples_root
from pipeline.errors import DataError
from pipeline.ids import fingerprint, seed
from pipeline.samples.stamps import CLUTTER, STAMPS, UNMIRRORED
from pipeline.weights import Say

WIDTH, HEIGHT = 640, 480
CLASSES = tuple(STAMPS)
NEEDS = ("trees", "textile")  # the photographs behind the cut-outs
_STAMPS_FOLDER = "usr/share/tuxpaint/stamps"
_LEAST_VISIBLE = 0.35  # of every cut-out, once all are placed
_LEAST_PIXELS = 150
_TRIES = 12


@dataclass(frozen=True)
class BatchPlan:
    """How many images a batch has and what its camera does."""

    name: str
    images: int
    brightness: tuple[float, float] = (0.85, 1.15)
    noise: float = 2.0
    blur: float = 0.4


BATCHES = (
    BatchPlan("2026-06-01-day", 180),
    BatchPlan("2026-07-01-day", 70),
    BatchPlan("2026-08-01-night", 50, (0.25, 0.45), 7.0, 1.1),
)
IMAGES = sum(plan.images for plan in BATCHES)
RECIPE = fingerprint("1", str(BATCHES), STAMPS, CLUTTER, _LEAST_VISIBLE, _LEAST_PIXELS, _TRIES)


@dataclass
class _Placed:
    """One cut-out in a scene: its class ("" for clutter), its pixels before and after being covered."""

    class_name: str
    whole: int
    visible: NDArray[np.bool_] = field(repr=False)


def download_deb(requirement: str, folder: Path, say: Say) -> Path:
    """The Debian package `NAME=VERSION`, downloaded with apt-get and not installed; needs no root.

    Raises:
        DataError: there is no apt-get, or it has no such package.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise DataError(
            f"{requirement} is a Debian package and this machine has no apt-get",
            "use the samples trees and textile, or make this one on Debian or Ubuntu and copy its folder",
        )
    result = _apt(["download", requirement], folder)
    if result.returncode:
        say("apt-get has no list of that package yet: fetching lists into a temporary folder")
        state = folder / "apt"
        (state / "lists" / "partial").mkdir(parents=True)
        (state / "cache" / "archives" / "partial").mkdir(parents=True)
        own = ["-o", f"Dir::State::Lists={state / 'lists'}", "-o", f"Dir::Cache={state / 'cache'}"]
        updated = _apt([*own, "update"], folder)
        result = updated if updated.returncode else _apt([*own, "download", requirement], folder)
    found = sorted(folder.glob("*.deb"))
    if result.returncode or not found:
        detail = (result.stderr.strip().splitlines() or ["nothing was downloaded"])[-1]
        raise DataError(
            f"apt-get cannot download {requirement}: {detail}",
            "check the connection, and that this Debian release carries that version",
        )
    return found[0]


def _apt(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def build(package: Path, folder: Path, say: Say) -> None:
    """Compose all batches from the Debian `package` into the empty `folder`."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        unpacked = subprocess.run(
            ["dpkg-deb", "-x", str(package), temporary], capture_output=True, text=True, check=False
        )
        if unpacked.returncode:
            raise DataError(f"cannot unpack {package.name}: {unpacked.stderr.strip()}", "pull the sample again")
        composer = Composer(Path(temporary) / _STAMPS_FOLDER, samples_root())
        for plan in BATCHES:
            say(f"composing {plan.images} images of {plan.name}")
            _write_batch(composer, plan, folder / plan.name)


def _write_batch(composer: Composer, plan: BatchPlan, folder: Path) -> None:
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, plan.images + 1):
        pixels, placed = composer.compose(plan, number)
        name = f"scene_{number:04d}.jpg"
        Image.fromarray(pixels).save(folder / "images" / name, quality=92)
        images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for item in placed:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **_annotation(item)})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")


def _annotation(item: _Placed) -> dict[str, Any]:
    rle = masks.encode(item.visible)
    x1, y1, x2, y2 = (float(v) for v in masks.box(rle, HEIGHT, WIDTH))
    pixels = int(item.visible.sum())
    return {
        "category_id": CLASSES.index(item.class_name) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": pixels,
        "iscrowd": 0,
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle},
        "visible": round(pixels / item.whole, 4),
    }


class Composer:
    """Draws scenes.

    Args:
        stamps: the unpacked folder of cut-outs.
        samples: where the samples `trees` and `textile` lie.
    """

    def __init__(self, stamps: Path, samples: Path) -> None:
        from PIL import Image

        self._stamps = {path: _load_stamp(stamps / path) for path in sorted({*CLUTTER, *sum(STAMPS.values(), ())})}
        self._aerial = [
            np.asarray(Image.open(path).convert("RGB"))
            for path in sorted((samples / "trees" / "2026-06-01-yell").glob("yell_*.png"))
        ]
        self._fabric = sorted((samples / "textile" / "2026-06-01-mill" / "nominal").glob("*.jpg"))[:60]
        if not self._aerial or not self._fabric:
            raise DataError("the photographs for the background are missing", "run: cvp samples pull trees textile")

    def compose(self, plan: BatchPlan, number: int) -> tuple[NDArray[np.uint8], list[_Placed]]:
        """One scene: (480, 640, 3) uint8 pixels and its labelled objects, lowest first."""
        rng = np.random.default_rng(seed("scenes", plan.name, number))
        canvas = self._background(rng)
        placed: list[_Placed] = []
        for class_name, path in self._cast(rng):
            _place(rng, canvas, placed, class_name, self._stamps[path])
        return _expose(rng, canvas, plan), [item for item in placed if item.class_name]

    def _cast(self, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Which cut-outs appear, lowest first; every class is equally likely."""
        things = [CLASSES[i] for i in rng.integers(len(CLASSES), size=rng.integers(2, 7))]
        cast = [(name, STAMPS[name][rng.integers(len(STAMPS[name]))]) for name in things]
        cast += [("", CLUTTER[i]) for i in rng.integers(len(CLUTTER), size=rng.integers(1, 5))]
        return [cast[i] for i in rng.permutation(len(cast))]

    def _background(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """(480, 640, 3) float32: a window of an aerial photograph, or tinted fabric as a table-top."""
        from PIL import Image

        if rng.random() < 0.6:
            photo = self._aerial[rng.integers(len(self._aerial))]
            width = int(rng.integers(320, 641))
            height = width * HEIGHT // WIDTH
            x, y = rng.integers(photo.shape[1] - width + 1), rng.integers(photo.shape[0] - height + 1)
            window = Image.fromarray(photo[y : y + height, x : x + width])
            return np.asarray(window.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        fabric = Image.open(self._fabric[rng.integers(len(self._fabric))]).convert("L")
        # A woven pattern, one side cropped to the canvas's shape, in a random cloth colour.
        weave = np.asarray(fabric.crop((10, 10, 240, 182)).resize((WIDTH, HEIGHT)), np.float32)[..., None]
        colour = rng.uniform(60, 230, 3).astype(np.float32)
        return np.clip(colour * (1 + (weave - 128) / 400), 0, 255).astype(np.float32)


def _load_stamp(path: Path) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            stamp = image.convert("RGBA")
    except OSError as error:
        raise DataError(f"the package holds no readable {path.name}: {error}", "pull the sample again") from error
    return stamp.crop(stamp.getchannel("A").getbbox())


def _place(
    rng: np.random.Generator, canvas: NDArray[np.float32], placed: list[_Placed], class_name: str, stamp: Any
) -> None:
    """Paste a cut-out where it and all below stay visible enough; leave it out when no place is found."""
    for _ in range(_TRIES):
        layer = _layer(rng, stamp, class_name not in UNMIRRORED)
        alpha = layer[..., 3] / 255
        solid = alpha > 0.5
        x = int(rng.integers(-layer.shape[1] // 4, WIDTH - layer.shape[1] * 3 // 4))
        y = int(rng.integers(-layer.shape[0] // 4, HEIGHT - layer.shape[0] * 3 // 4))
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + layer.shape[1], WIDTH), min(y + layer.shape[0], HEIGHT)
        inside = (slice(top - y, bottom - y), slice(left - x, right - x))
        region = (slice(top, bottom), slice(left, right))
        own = _Placed(class_name, int(solid.sum()), np.zeros((HEIGHT, WIDTH), bool))
        own.visible[region] = solid[inside]
        if not _enough(own, own.visible) or not all(_enough(o, o.visible & ~own.visible) for o in placed):
            continue
        weight = alpha[inside][..., None]
        canvas[region] = canvas[region] * (1 - weight) + layer[inside][..., :3] * weight
        for other in placed:
            other.visible &= ~own.visible
        placed.append(own)
        return


def _enough(item: _Placed, visible: NDArray[np.bool_]) -> bool:
    pixels = int(visible.sum())
    return pixels >= _LEAST_PIXELS and pixels >= _LEAST_VISIBLE * item.whole


def _layer(rng: np.random.Generator, stamp: Any, mirrored: bool) -> NDArray[np.float32]:
    """(h, w, 4) float32 RGBA of a cut-out, resized, turned and relit."""
    from PIL import Image, ImageOps

    longest = max(stamp.size)
    # At most doubled: beyond that a small cut-out is only a blur.
    target = min(np.exp(rng.uniform(np.log(40), np.log(330))), 2.0 * longest)
    size = tuple(max(8, round(edge * target / longest)) for edge in stamp.size)
    image = stamp.resize(size, Image.Resampling.LANCZOS)
    if mirrored and rng.random() < 0.5:
        image = ImageOps.mirror(image)
    image = image.rotate(float(rng.normal(0, 6)), Image.Resampling.BICUBIC, expand=True)
    layer = np.array(image.crop(image.getchannel("A").getbbox()), np.float32)
    layer[..., :3] = np.clip(layer[..., :3] * rng.uniform(0.8, 1.15), 0, 255)
    return layer


def _expose(rng: np.random.Generator, canvas: NDArray[np.float32], plan: BatchPlan) -> NDArray[np.uint8]:
    """What the camera of this batch makes of a scene: blur, brightness, noise."""
    from PIL import Image, ImageFilter

    sharp = Image.fromarray(np.clip(np.round(canvas), 0, 255).astype(np.uint8))
    seen = np.asarray(sharp.filter(ImageFilter.GaussianBlur(plan.blur)), np.float32)
    noisy = seen * rng.uniform(*plan.brightness) + rng.normal(0, plan.noise, canvas.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)
