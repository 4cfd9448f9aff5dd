"""What the same weights say of the same photos on a GPU and on a CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import masks
from pipeline.models.clip import ClipEncoder
from pipeline.models.grounding_dino import GroundingDino
from pipeline.models.precision import autocast
from pipeline.models.sam import Sam
from tests.pipeline.models import clip_files, small

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.weights,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HALF = ("bfloat16", "float16")
CLASSES = {"tree": ("tree", "tree crown"), "car": ("car",), "house": ("house", "roof")}


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32 proper: cuDNN's own default rounds to ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_cpu(make: Callable[[], Any]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        return make()


@pytest.mark.parametrize(("precision", "least"), [("float32", 1 - 1e-6), ("auto", 0.999), ("float16", 0.9999)])
def test_clip_gives_the_same_vectors(precision: str, least: float, tmp_path: Path, record_property: Any) -> None:
    clip_files.encoder(tmp_path)
    here = on_cpu(lambda: clip_files.encoder(tmp_path).encode_images(small.photos()))
    encoder: ClipEncoder = clip_files.encoder(tmp_path, precision=precision)
    assert encoder.device == "cuda"
    there = encoder.encode_images(small.photos())
    cosine = (here * there).sum(axis=1)
    record_property("cosine", float(cosine.min()))
    assert there.dtype == np.float32
    assert cosine.min() >= least


def drawn(sam: Sam) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    """Logits and masks of five boxes in each photo."""
    random, logits, found = np.random.default_rng(0), [], []
    photos = small.photos()
    low = [random.uniform(0, 100, (5, 2)) for _ in photos]
    boxes = [np.hstack([corner, corner + random.uniform(40, 150, (5, 2))]) for corner in low]
    for embedding, wanted in zip(sam.embed(photos), boxes, strict=True):
        logits.append(sam.decode(embedding, wanted)[0].float().cpu())
    for photo, said in zip(photos, sam.segment(photos, boxes), strict=True):
        found += [masks.decode(text, *photo.shape[:2]) for text in said.masks]
    return logits, found


@pytest.mark.parametrize(("precision", "off", "apart"), [("float32", 1e-4, 1e-4), ("bfloat16", 0.05, 0.02)])
def test_sam_draws_the_same_masks(
    precision: Any, off: float, apart: float, tmp_path: Path, record_property: Any
) -> None:
    path = small.sam_checkpoint(tmp_path)
    logits, found = on_cpu(lambda: drawn(Sam(path)))
    sam = Sam(path, precision=precision)
    assert sam.device == "cuda"
    other_logits, other = drawn(sam)
    most = max((a - b).abs().max().item() / a.abs().max().item() for a, b in zip(logits, other_logits, strict=True))
    share = float(np.mean([(a ^ b).mean() for a, b in zip(found, other, strict=True)]))
    record_property("logits", most)
    record_property("pixels", share)
    assert most <= off
    assert share <= apart


@pytest.mark.parametrize(("precision", "off"), [("float32", 1e-4), ("bfloat16", 0.05), ("float16", 0.05)])
def test_grounding_dino_finds_the_same_boxes(precision: str, off: float, tmp_path: Path, record_property: Any) -> None:
    path = small.dino_checkpoint(tmp_path)

    def made(**options: Any) -> GroundingDino:
        return small.dino(path, CLASSES, floor=0.0, **options)

    here = on_cpu(lambda: made().propose(small.photos()))
    detector = made(precision=precision)
    assert detector.device == "cuda"
    there = detector.propose(small.photos())
    # Queries of nearly equal rank change places, and take other boxes with them: scores by rank are compared.
    apart = [
        np.abs(
            np.sort(here.scores[(here.image == i) & (here.prompt == p)])[::-1][:20]
            - np.sort(there.scores[(there.image == i) & (there.prompt == p)])[::-1][:20]
        ).max()
        for i in range(len(small.photos()))
        for p in range(len(detector.questions.prompts))
    ]
    record_property("scores", float(max(apart)))
    assert max(apart) <= off


@pytest.mark.parametrize("precision", HALF)
def test_autocast_computes_in_what_was_asked_for(precision: str) -> None:
    ones = torch.ones(4, 4, device="cuda")
    with autocast("cuda", precision):
        assert (ones @ ones).dtype == getattr(torch, precision)
    with autocast("cuda", "float32"):
        assert (ones @ ones).dtype == torch.float32
