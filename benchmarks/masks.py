"""COCO run-length text of masks that are known inside a box, against pycocotools, and back to pixels.

Run: python benchmarks/masks.py
"""

from __future__ import annotations

from functools import partial

import numpy as np
from common import in_turn, peak_memory, report
from pycocotools import mask as coco

from pipeline import masks

MASKS, HEIGHT, WIDTH = 2000, 480, 640


def made_up(count: int = MASKS, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Star-like shapes of all sizes, each as its crop, and the (n, 2) upper left corners."""
    generator = np.random.default_rng(seed)
    crops, corners = [], []
    for _ in range(count):
        a, b = np.exp(generator.normal(3.6, 0.6, 2)).clip(6, 150)
        y, x = np.mgrid[-1.2 * b : 1.2 * b, -1.2 * a : 1.2 * a]
        shape = (x / a) ** 2 + (y / b) ** 2 < 1 + 0.3 * np.sin(5 * np.arctan2(y, x))
        rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
        crop = shape[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        crops.append(np.ascontiguousarray(crop))
        corners.append(generator.integers(0, [WIDTH - crop.shape[1] + 1, HEIGHT - crop.shape[0] + 1]))
    return crops, np.array(corners)


def ours(crops: list[np.ndarray], corners: np.ndarray) -> list[str]:
    return masks.encode_crops(crops, corners, HEIGHT, WIDTH)


def theirs(crops: list[np.ndarray], corners: np.ndarray) -> list[str]:
    """pycocotools wants the whole frame, column-major."""
    texts = []
    for crop, (x, y) in zip(crops, corners.tolist(), strict=True):
        frame = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        frame[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        texts.append(coco.encode(frame)["counts"].decode())
    return texts


def main() -> None:
    crops, corners = made_up()
    turn, mine, reference = in_turn(partial(ours, crops, corners), partial(theirs, crops, corners), 5)
    assert mine == reference, "the texts must be equal"
    memory = {"1x": peak_memory(partial(ours, crops, corners))}
    memory["10x"] = peak_memory(partial(ours, crops * 10, np.tile(corners, (10, 1))))
    report(
        f"masks to run-length text, {WIDTH} x {HEIGHT}, from crops of their boxes",
        MASKS / turn.ours,
        MASKS / turn.peer,
        peer_name="pycocotools",
        unit="masks/core-s",
        more_is_better=True,
        aim=5,
        agreement="byte-equal",
        memory=memory,
    )

    def decoded(texts: list[str]) -> None:
        for text in texts:
            masks.decode(text, HEIGHT, WIDTH)

    rles = [{"size": [HEIGHT, WIDTH], "counts": text.encode()} for text in mine]
    turn, pixels, frames = in_turn(
        lambda: [masks.decode(text, HEIGHT, WIDTH) for text in mine[:500]],
        lambda: [coco.decode(r).astype(bool) for r in rles[:500]],
    )
    report(
        f"run-length text to {WIDTH} x {HEIGHT} pixels",
        500 / turn.ours,
        500 / turn.peer,
        peer_name="pycocotools",
        unit="masks/core-s",
        more_is_better=True,
        aim=1,
        agreement=f"{sum(np.array_equal(a, b) for a, b in zip(pixels, frames, strict=True))} of 500 equal",
        memory={size: peak_memory(partial(decoded, mine[:500] * k)) for size, k in (("1x", 1), ("10x", 10))},
    )


if __name__ == "__main__":
    main()
