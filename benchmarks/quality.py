"""Decoding, quality measures and perceptual hashes, against cleanvision, imagededup and imagehash.

Run: python benchmarks/quality.py     (needs the samples trees and textile, and the group `peers`)

The same JPEG files of real photographs are read by all: 250-pixel pictures of fabric, aerial photos of 3.8
megapixels as they are (very sharp: 3.9 bits a pixel), and those enlarged to 15 megapixels, which are about as
soft at the scale of the pixel as those of cameras (1 to 2 bits a pixel). A third of each set is darkened,
brightened, blurred, made flat or grey, so that there is something to flag. cleanvision looks for all its issues but
exact duplicates; its near-duplicates are by imagehash's hash, as ours.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import imagehash
import numpy as np
import pyarrow as pa
from common import in_turn, peak_memory, report
from PIL import Image, ImageEnhance, ImageFilter

from pipeline import schema
from pipeline.quality import QualityWorker
from pipeline.samples import samples_root
from pipeline.torch_compat import import_torchvision

EDGE = 512  # the default of curation.quality.measured_edge
# cleanvision's own thresholds, in our measures. It counts RGB's entropy over three histograms: log2(3) bits more.
DARK, LIGHT, BLURRY, ASPECT, ENTROPY = 0.32, 0.05, 0.29, 0.35, 3.0

Change = Callable[[Image.Image], Image.Image]
CHANGES: tuple[Change, ...] = (
    lambda i: ImageEnhance.Brightness(i).enhance(0.2),
    lambda i: ImageEnhance.Brightness(i).enhance(0.45),
    lambda i: Image.blend(i, Image.new("RGB", i.size, "white"), 0.97),
    lambda i: i.filter(ImageFilter.GaussianBlur(max(i.size) / 100)),
    lambda i: i.filter(ImageFilter.GaussianBlur(max(i.size) / 25)),
    lambda i: Image.blend(i, Image.new("RGB", i.size, i.resize((1, 1)).getpixel((0, 0))), 0.99),
    lambda i: i.convert("L").convert("RGB"),
    lambda i: i.convert("L"),
    lambda i: i.crop((0, 0, i.width, i.height // 4)),
)


def fabric() -> Iterator[Image.Image]:
    """300 pictures of 250 x 250."""
    for path in sorted((samples_root() / "textile").rglob("*.jpg"))[::6][:300]:
        yield Image.open(path).convert("RGB")


def aerial(scale: int, views: int) -> Iterator[Image.Image]:
    """`views` turned and mirrored parts of the largest aerial photo, enlarged."""
    path = max((samples_root() / "trees").rglob("*.png"), key=lambda p: np.prod(Image.open(p).size))
    photo = Image.open(path).convert("RGB")
    for k in range(views):
        turned = photo.transpose(list(Image.Transpose)[k % 7]) if k % 8 else photo
        inset = 13 * k
        part = turned.crop((inset, inset, turned.width, turned.height))
        yield part.resize((part.width * scale, part.height * scale), Image.Resampling.LANCZOS)


def write(folder: Path, photos: Iterator[Image.Image], quality: int) -> list[Path]:
    """JPEG files; every third photo is spoilt."""
    paths = []
    for k, photo in enumerate(photos):
        spoilt = CHANGES[k // 3 % len(CHANGES)](photo) if k % 3 == 0 else photo
        paths.append(folder / f"{k:04d}.jpg")
        spoilt.save(paths[-1], quality=quality)
    return paths


def rows_of(paths: list[Path]) -> pa.Table:
    """Rows of `images`."""
    rows = []
    for path in paths:
        with Image.open(path) as image:
            width, height, mode = *image.size, image.mode
        same = {"image_id": path.name, "uri": str(path), "file_name": path.name, "parent_id": path.name}
        size = {"width": width, "height": height, "photo_width": width, "photo_height": height}
        rest = {"batch": "b", "location": "", "tile_x": 0, "tile_y": 0, "format": "JPEG", "orientation": 1}
        rows.append(same | size | rest | {"mode": mode, "bytes": 1, "attributes": []})
    return schema.table("images").from_rows(rows)


def by_cleanvision(paths: list[Path]) -> dict[str, np.ndarray]:
    """(n,) its flags, by issue."""
    from cleanvision import Imagelab

    kinds = ["dark", "light", "odd_aspect_ratio", "low_information", "blurry", "grayscale", "odd_size"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        lab = Imagelab(filepaths=[str(p) for p in paths])
        lab.find_issues({k: {} for k in [*kinds, "near_duplicates"]}, n_jobs=1, verbose=False)
    return {k: lab.issues[f"is_{k}_issue"].to_numpy(bool) for k in kinds}


def in_its_words(found: pa.Table, modes: list[str]) -> dict[str, np.ndarray]:
    """What cleanvision would flag, from our measures."""
    value = {c: found.column(c).to_numpy() for c in found.column_names if c not in ("image_id", "batch")}
    rgb = np.array([mode != "L" for mode in modes])
    side = np.sqrt(value["width"].astype(float) * value["height"])
    low, high = np.percentile(side, [25, 75])
    reach = 3 * (high - low)
    ratio = value["aspect_ratio"]
    return {
        "dark": value["highlights"] < DARK,
        "light": 1 - value["shadows"] < LIGHT,
        "odd_aspect_ratio": np.minimum(ratio, 1 / ratio) < ASPECT,
        "low_information": value["entropy"] + np.log2(3) * rgb < ENTROPY,
        "blurry": value["thumbnail_sharpness"] < BLURRY,
        "grayscale": ~rgb,
        "odd_size": (side < low - reach) | (side > high + reach) if reach else side != low,
    }


def by_imagededup(paths: list[Path]) -> list[str]:
    """Its perceptual hashes."""
    import_torchvision()  # which imagededup imports for its other methods
    from imagededup.methods import PHash

    hasher = PHash(verbose=False)
    return [hasher.encode_image(str(p)) for p in paths]


def by_imagehash(paths: list[Path]) -> np.ndarray:
    """(n,) uint64 perceptual hashes."""
    bits = [np.packbits(imagehash.phash(Image.open(p)).hash) for p in paths]
    return np.array([int(b.view(">u8")[0]) for b in bits], np.uint64)


def compare(name: str, paths: list[Path], edge: int, rounds: int) -> None:
    """One line for each peer."""
    rows = rows_of(paths)
    n = len(paths)

    def ours() -> pa.Table:
        return QualityWorker(measured_edge=edge)(rows)

    turn, found, flags = in_turn(ours, lambda: by_cleanvision(paths), rounds)
    sizes = {f"{k}x": pa.concat_tables([rows] * k) for k in (1, 10)}
    memory = {s: peak_memory(lambda some=some: QualityWorker(measured_edge=edge)(some)) for s, some in sizes.items()}
    words = in_its_words(found, rows.column("mode").to_pylist())
    equal = {issue: float((words[issue] == flags[issue]).mean()) for issue in flags}
    raised = ", ".join(f"{issue} {int(flags[issue].sum())}" for issue in flags)
    worst = min(equal, key=lambda issue: equal[issue])
    print(f"agreement: {equal}; cleanvision flags {raised}")
    agreement = f"flags {np.mean(list(equal.values())):.4f} equal, {worst} {equal[worst]:.3f}"
    report(
        f"measures, flags and hashes of {name}",
        n / turn.ours,
        n / turn.peer,
        peer_name="cleanvision 0.3.7",
        aim=20,
        agreement=agreement,
        unit="images/core-s",
        more_is_better=True,
        met=None,
        note=floor_note(paths, n / turn.peer),
        memory=memory,
    )
    turn, found, _ = in_turn(ours, lambda: by_imagededup(paths), rounds)
    hashes = found.column("phash").to_numpy().view(np.uint64)
    bits = np.bitwise_count(hashes ^ by_imagehash(paths))
    report(
        f"all measures and a hash, against a hash alone, of {name}",
        n / turn.ours,
        n / turn.peer,
        peer_name="imagededup PHash",
        aim=1,
        agreement=f"{np.mean(bits == 0):.3f} of hashes bit-equal to imagehash, {bits.max()} bits off at most",
        unit="images/core-s",
        more_is_better=True,
        memory=memory,
    )


def floor_note(paths: list[Path], peer: float) -> str:
    """What no reader of these files can do better: to undo their Huffman code."""
    import time

    data = [np.frombuffer(p.read_bytes(), np.uint8) for p in paths]
    start = time.process_time()
    for d in data:
        cv2.imdecode(d, cv2.IMREAD_REDUCED_GRAYSCALE_8)
    rate = len(data) / (time.process_time() - start)
    return f"libjpeg's decoding at an eighth, in grey, is {rate:.0f} images/core-s, {rate / peer:.1f}x the peer"


def main() -> None:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        sets = {
            "fabric, 250 x 250": (fabric(), 92, 512, 3),
            "aerial photos, 3.8 MP, very sharp": (aerial(1, 24), 90, EDGE, 2),
            "the same enlarged to 15 MP": (aerial(2, 12), 80, EDGE, 1),
        }
        for k, (name, (photos, quality, edge, rounds)) in enumerate(sets.items()):
            room = Path(folder, str(k))
            room.mkdir()
            paths = write(room, photos, quality)
            size = sum(p.stat().st_size for p in paths) * 8
            pixels = sum(int(np.prod(Image.open(p).size)) for p in paths)
            print(f"{name}: {len(paths)} files, {size / pixels:.2f} bits a pixel")
            compare(name, paths, edge, rounds)
            if k:
                full = QualityWorker(measured_edge=0)(rows_of(paths)).column("phash").to_numpy().view(np.uint64)
                print(f"in full: {np.mean(full == by_imagehash(paths)):.3f} of hashes bit-equal to imagehash")


if __name__ == "__main__":
    main()
