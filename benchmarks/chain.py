"""Boxes, masks, vectors and tags of photos: `pipeline.chain` against the glue one would write, one photo at a time,
each model asked by itself and the photo decoded anew for each.

Run: python benchmarks/chain.py [--photos N] [--rounds N] [compact|foundation|full|full-half ...]

`compact` asks our own role classes on both sides, so its glue is as fast as they are. `foundation` is a small random
network of each package, and its glue is each package's own: `groundingdino.util.inference.predict`, `SamPredictor`,
open_clip, pycocotools. `full` is ViT-B-32, Swin-T and SAM ViT-B with random weights, for a GPU; `full-half` lets ours
compute in bfloat16. The glue draws as many masks of a photo as we do. It needs the sample scenes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.pop("OMP_NUM_THREADS", None)  # before torch is loaded
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # waiting threads would take cores from the other stages, on both sides

import numpy as np
import torch
import yaml
from common import report
from learning import CLIP, DINO, SAM, TOKENIZER
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.flop_counter import FlopCounterMode

from pipeline import chain as chain_module
from pipeline import weights
from pipeline.chain import Chain
from pipeline.config import Project, load_project, samples_root
from pipeline.models import clip_net, grounding_dino_net, sam_net, zero_shot
from pipeline.models.captions import WordPieces
from pipeline.models.profiles import build_encoder, build_labeller, build_segmenter

SIZES = ((640, 480), (3200, 2400))
BOXES = 6  # masks a photo, on average over a few
FLOOR = 0.3
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ARCHITECTURE = "ViT-B-32/laion2b_s34b_b79k"


@dataclass(frozen=True)
class Networks:
    """Random networks of the three packages."""

    clip: clip_net.Design
    dino: grounding_dino_net.DinoConfig
    sam: sam_net.SamConfig
    precision: str = "float32"  # ours, on a GPU


def networks(kind: str) -> Networks:
    if kind == "foundation":
        return Networks(clip_net.Design("small", CLIP), DINO, SAM)
    precision = "bfloat16" if kind == "full-half" else "float32"
    return Networks(clip_net.design(ARCHITECTURE), grounding_dino_net.SWIN_T, sam_net.VIT_B, precision)


def photographs(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    found = sorted((samples_root() / "scenes").glob("*-day/images/*.jpg"))[:count]
    if not found:
        raise SystemExit("run: cvp samples pull scenes")
    paths = [folder / f"{size[0]}_{path.name}" for path in found]
    for path, source in zip(paths, found, strict=True):
        Image.open(source).resize(size, Image.Resampling.BICUBIC).save(path, quality=92)
    return paths


def project(profile: str, folder: Path, threshold: float = 0.0, precision: str = "float32") -> Project:
    text = yaml.safe_load((Path(__file__).parents[1] / "projects" / "scenes" / "project.yaml").read_text())
    labeller: dict[str, Any] = {"name": "boxes", "kind": "profile"}
    text |= {"profile": profile, "batch_size": 8, "labelling": {"labellers": [labeller], "mask_floor": FLOOR}}
    if profile == "foundation":
        labeller["options"] = {"box_threshold": threshold, "text_threshold": 0.0, "floor": threshold}
        text["labelling"]["mask_floor"] = 0.0
        text["models"] = {
            role: {"checkpoint": f"{role}.safetensors", "options": {"precision": precision}}
            for role in ("encoder", "detector", "segmenter")
        }
    (folder / "project.yaml").write_text(yaml.safe_dump(text))
    return load_project(folder)


def write_networks(folder: Path, what: Networks) -> None:
    torch.manual_seed(0)
    clip_net.save(folder / "encoder.safetensors", clip_net.build(what.clip), what.clip)
    sam_net.save(folder / "segmenter.safetensors", sam_net.build(what.sam))
    network = grounding_dino_net.calmed(grounding_dino_net.build(what.dino, WordPieces(weights.resolve(TOKENIZER))))
    grounding_dino_net.save(folder / "detector.safetensors", network, what.dino)


def compact_glue(what: Project) -> Callable[[Path, int], int]:
    config = what.config
    detector = build_labeller(config.labelling.labellers[0], what.folder, config)
    segmenter, encoder = build_segmenter(config), build_encoder(config)

    def one(path: Path, count: int) -> int:
        (found,) = detector.detect([np.asarray(Image.open(path).convert("RGB"))])
        wanted = found.boxes[found.scores.argsort()[::-1][:count]]
        segmenter.segment([np.asarray(Image.open(path).convert("RGB"))], [wanted])
        vectors = encoder.encode_images([np.asarray(Image.open(path).convert("RGB"))])
        zero_shot.probabilities(vectors, what.ontology, config.labelling.templates, encoder)
        return len(wanted)

    return one


def foundation_glue(what: Project, sizes: Networks) -> Callable[[Path, int], int]:
    from groundingdino.datasets import transforms
    from groundingdino.util.inference import predict
    from segment_anything import SamPredictor

    names = list(what.config.classes)
    caption = ". ".join(names) + "."
    dino, _ = grounding_dino_net.load(what.folder / "detector.safetensors", WordPieces(weights.resolve(TOKENIZER)))
    look = transforms.Compose(
        [
            transforms.RandomResize([sizes.dino.shorter], max_size=sizes.dino.longest),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    sam = SamPredictor(sam_net.load(what.folder / "segmenter.safetensors")[0].to(DEVICE))
    design = clip_net.design_of(what.folder / "encoder.safetensors")
    clip = clip_net.load(what.folder / "encoder.safetensors", design).to(DEVICE)
    prepare, tokens = clip_net.preprocess(design), clip_net.tokenizer(design)
    with torch.no_grad():
        words = clip.encode_text(tokens([f"a photo of a {name}" for name in names]).to(DEVICE), normalize=True)

    least: dict[Path, float] = {}  # of each photo, found in the first turn, which is not timed: words of every box cost

    def one(path: Path, count: int) -> int:
        photo = Image.open(path).convert("RGB")
        image, _ = look(photo, None)
        boxes, scores, _ = predict(dino, image, caption, least.get(path, 0.0), 0.0, device=DEVICE)
        order = scores.argsort(descending=True)
        if path not in least:
            least[path] = float(scores[order[min(count, len(order) - 1)]])
        best = boxes[order[:count]].numpy() * np.tile(photo.size, 2)
        sam.set_image(np.asarray(Image.open(path).convert("RGB")))
        for x, y, width, height in best:
            box = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
            drawn, guess, _ = sam.predict(box=box, multimask_output=True)
            coco_mask.encode(np.asfortranarray(drawn[guess.argmax()], np.uint8))
        with torch.no_grad():
            vector = clip.encode_image(prepare(Image.open(path))[None].to(DEVICE), normalize=True)
            (clip.logit_scale.exp() * vector @ words.T).softmax(-1).cpu()
        return len(best)

    return one


def threshold_for(what: Project, paths: list[Path]) -> float:
    """The score that `BOXES` boxes of a random detector reach, on average over a few photos."""
    detector = build_labeller(what.config.labelling.labellers[0], what.folder, what.config)
    found = detector.detect([np.asarray(Image.open(path).convert("RGB")) for path in paths[:4]])
    return float(np.mean([np.sort(said.scores)[-BOXES] for said in found]))


class Decoding:
    """Core-seconds spent in decoding, by all threads."""

    def __init__(self) -> None:
        self.seconds, self._lock, self._real = 0.0, threading.Lock(), chain_module.decode
        chain_module.decode = self  # type: ignore[assignment]

    def __call__(self, data: bytes, most: int) -> Any:
        start = time.thread_time()
        photo = self._real(data, most)
        with self._lock:
            self.seconds += time.thread_time() - start
        return photo


def timed(work: Callable[[], int]) -> tuple[float, float, int]:
    wall, cores = time.perf_counter(), time.process_time()
    masks = work()
    return time.perf_counter() - wall, time.process_time() - cores, masks


def operations(what: Project, photo: Path, boxes: int) -> float:
    """Floating-point operations that the networks need for one photo, as torch counts them."""
    config, pixels = what.config, np.asarray(Image.open(photo).convert("RGB"))
    detector = build_labeller(config.labelling.labellers[0], what.folder, config)
    segmenter, encoder = build_segmenter(config), build_encoder(config)
    wanted = np.tile(np.array([[10.0, 10.0, 200.0, 200.0]]), (boxes, 1))
    with FlopCounterMode(display=False) as counted:
        detector.detect([pixels])
        segmenter.segment([pixels], [wanted])
        encoder.encode_images([pixels])
    return float(counted.get_total_flops())


def matrix_peak(kind: torch.dtype, size: int = 8192, times: int = 20) -> float:
    """Operations a second of a large matrix product on this GPU."""
    a, b = (torch.randn(size, size, device=DEVICE, dtype=kind) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        a @ b
    torch.cuda.synchronize()
    return 2 * size**3 * times / (time.perf_counter() - start)


def compare(name: str, what: Project, one: Callable[[Path, int], int], paths: list[Path], rounds: int) -> None:
    chain = Chain.of(what)
    counts = [len(seen.segments.masks) for seen in chain.run(paths)]

    def ours() -> int:
        return sum(len(seen.segments.masks) for seen in chain.run(paths))

    def glue() -> int:
        return sum(one(path, count) for path, count in zip(paths, counts, strict=True))

    glue()
    clock = Decoding()
    turns = [(timed(ours), timed(glue)) for _ in range(rounds)]
    chain_module.decode = clock._real
    share = clock.seconds / sum(mine[1] for mine, _ in turns)
    width, height = Image.open(paths[0]).size
    agreement = f"masks drawn: {turns[-1][0][2]} and {turns[-1][1][2]}; {share:.0%} of our core-seconds decode"
    if DEVICE == "cuda":
        seconds = statistics.median(turn[0][0] for turn in turns) / len(paths)
        needed = operations(what, paths[0], round(np.mean(counts)))
        peaks = {str(kind)[6:]: matrix_peak(kind) for kind in (torch.float32, torch.bfloat16)}
        shares = ", ".join(
            f"{needed / seconds / peak:.1%} of {kind}'s {peak / 1e12:.0f}" for kind, peak in peaks.items()
        )
        agreement += f"; {torch.cuda.get_device_name()}, {needed / 1e12:.2f} TFLOP a photo: {shares} TFLOP/s"
        agreement += f"; at most {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    for unit, which in (("s", 0), ("core-s", 1)):
        mine, theirs = (statistics.median(turn[side][which] for turn in turns) for side in (0, 1))
        report(
            f"chain of {name} models, {len(paths)} JPEGs of {width} x {height}, {len(paths) / mine:.2f} per {unit}",
            mine,
            theirs,
            peer_name="one photo at a time, decoded for each model",
            aim=3.0,
            unit=unit,
            agreement=agreement,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="the chain against plain glue")
    parser.add_argument("kinds", nargs="*", default=["compact", "foundation"], metavar="KIND")
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = [photographs(folder, given.photos, size) for size in SIZES]
        for kind in given.kinds:
            if kind == "compact":
                what = project("compact", folder)
                glue = compact_glue(what)
            else:
                sizes = networks(kind)
                write_networks(folder, sizes)
                threshold = threshold_for(project("foundation", folder, 0.0, sizes.precision), sets[0])
                what = project("foundation", folder, threshold, sizes.precision)
                glue = foundation_glue(what, sizes)
            for paths in sets:
                compare(kind, what, glue, paths, given.rounds)


if __name__ == "__main__":
    main()
